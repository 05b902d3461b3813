"""Set what the released evaluation would report beside what a run answers when a modality is really missing.

It trains nothing. The released test code of the ECCV 2024 missing-modality paper calls a modality missing when normal
noise was added to its real features (0.3 to the sound's, 0.7 to the picture's); it refines them where there is a
refinement, and recalls nothing. This program does the same to the features of trained runs, of those methods that
answer from features (others would be asked for something that they never do). Source: the released `net_avst.py`; its
noise is drawn anew at each call, here from one seed.
"""

import argparse
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import UserError
from pipeline.manifests.manifest import Manifest, load_manifest
from pipeline.store.reader import open_store
from pipeline.store.schema import MODALITIES
from train.data.batch import Batch
from train.data.dataset import QuestionDataset
from train.data.feature_bank import FeatureBank
from train.data.scenarios import hidden_in
from train.evaluation.predict import BATCH_SIZE, choose_answers, percent_correct, predict, questions_of
from train.interfaces import MissingModalityMethod, SupportsImputation, inputs_of
from train.methods.avr import AudioVisualRefiner, refined_features
from train.runs.folder import load_run

DEMO = Path("build/demo")
RELEASED_NOISE = {"audio": 0.3, "visual": 0.7}


@dataclass(frozen=True)
class Measured:
    """Accuracies of one run with `missing` taken away, in percent: `really`, by `noise` alone, and with all there."""

    run: str
    missing: str
    really: float
    noise: float
    complete: float


def main() -> int:
    """Parse the options, evaluate every run both ways, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", type=Path, default=DEMO / "data")
    parser.add_argument("--store", type=Path, default=DEMO / "store.zarr")
    parser.add_argument("--runs", type=Path, default=DEMO / "runs", help="folder of trained runs")
    parser.add_argument("--split", default="test")
    options = parser.parse_args()
    try:
        lacking = [path for path in (options.manifest, options.store, options.runs) if not path.is_dir()]
        if lacking:
            raise UserError(f"{lacking[0]} is missing: run 'make demo' first, or give --manifest, --store and --runs")
        manifest, bank = load_manifest(options.manifest), FeatureBank(open_store(options.store))
        folders = sorted(path.parent for path in options.runs.glob("*/checkpoint.safetensors"))
        print("accuracy in percent; 'noise' is the released evaluation, which sees the modality it calls missing\n")
        print(f"{'run':<28}{'missing':<10}{'really':>9}{'noise':>9}{'complete':>10}")
        for folder in folders:
            for found in measure_run(folder, manifest, bank, options.split):
                print(
                    f"{found.run:<28}{found.missing:<10}{found.really:>9.2f}{found.noise:>9.2f}{found.complete:>10.2f}"
                )
    except UserError as error:
        parser.exit(2, f"{error}\n")
    return 0


def measure_run(folder: Path, manifest: Manifest, bank: FeatureBank, split: str) -> list[Measured]:
    """Return both accuracies of one trained run for each modality, over the complete questions of `split`.

    There are none of a run whose method has no stand-ins at the features level.
    """
    method, config = load_run(folder)
    dataset = QuestionDataset(bank, manifest, split, inputs_of(method.backbone, config.map_size))
    if not isinstance(method, SupportsImputation):
        return []
    return [measure(folder.name, method, dataset, missing) for missing in MODALITIES]


def measure(run: str, method: MissingModalityMethod, dataset: QuestionDataset, missing: str) -> Measured:
    """Return both accuracies of a method with `missing` taken away."""
    rows = questions_of(dataset, "complete")
    masks = {
        scenario: dict.fromkeys((q.question_id for q in dataset.questions), hidden_in(scenario))
        for scenario in ("complete", f"{missing}-missing")
    }
    really, complete = (
        percent_correct(dataset, rows, predict(method, dataset, rows, masks[scenario], BATCH_SIZE, "cpu"))
        for scenario in (f"{missing}-missing", "complete")
    )
    noisy: list[int] = []
    generator = torch.Generator().manual_seed(0)
    for batch in dataset.batches(BATCH_SIZE, rows=rows):
        noisy += choose_answers(answer_noisy(method, batch, missing, generator), batch.choices)
    return Measured(run, missing, really, percent_correct(dataset, rows, noisy), complete)


@torch.inference_mode()
def answer_noisy(method: Any, batch: Batch, missing: str, generator: torch.Generator) -> Tensor:
    """Return logits [batch, answer] with noise on the real features of `missing`, refined where the method can."""
    method.eval()
    seen = method.backbone.encode(batch)
    real = seen.features[missing]
    noise = torch.randn(real.shape, generator=generator) * RELEASED_NOISE[missing]
    noisy = replace(seen, features={**seen.features, missing: real + noise})
    refiner = getattr(method, "refiner", None)
    if isinstance(refiner, AudioVisualRefiner):
        noisy = replace(noisy, features={**noisy.features, missing: refined_features(refiner, noisy)[missing]})
    logits: Tensor = method.backbone.answer(noisy).logits
    return logits


if __name__ == "__main__":
    sys.exit(main())
