"""Compare the accuracy with a missing modality to the accuracy that the released evaluation would report.

The released test code of the ECCV 2024 missing-modality paper treats a modality as missing after adding normal noise
to its real features (standard deviation 0.3 for audio, 0.7 for visual). It refines the noisy features with AVR and
never uses the slots of RMM. This program does the same with the features of trained runs whose method imputes features,
with AVR if the method has it. Nothing is trained. Source: the released `net_avst.py`, which samples its noise without a
seed; here it has one.

Prints a Markdown table of accuracies in percent, means over the seeds: `removed`, the modality is missing; `by noise`,
as released; `complete`.

    python benchmarks/noise_as_missing.py
    python benchmarks/noise_as_missing.py --runs build/demo/methods --entries zero-fill rmm-avr-recommended
"""

import argparse
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
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
    """Accuracies of one run in percent: `removed`, without the modality `missing`; with `noise` added; `complete`."""

    missing: str
    removed: float
    noise: float
    complete: float


def main() -> int:
    """Parse the options, evaluate every run, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", type=Path, default=DEMO / "data")
    parser.add_argument("--store", type=Path, default=DEMO / "store.zarr")
    parser.add_argument("--runs", type=Path, default=DEMO / "runs", help="folder of trained runs")
    parser.add_argument("--entries", nargs="+", metavar="ENTRY", help="entries of the grid (default: all)")
    parser.add_argument("--split", default="test")
    options = parser.parse_args()
    try:
        absent = [path for path in (options.manifest, options.store, options.runs) if not path.is_dir()]
        if absent:
            raise UserError(f"{absent[0]} is missing: run 'make demo' first, or pass --manifest, --store and --runs")
        manifest, bank = load_manifest(options.manifest), FeatureBank(open_store(options.store))
        of_entries: dict[tuple[str, str], list[Measured]] = {}
        for folder in sorted(path.parent for path in options.runs.glob("*/checkpoint.safetensors")):
            entry = folder.name.rpartition("-seed")[0] or folder.name
            if options.entries is None or entry in options.entries:
                for measured in measure_run(folder, manifest, bank, options.split):
                    of_entries.setdefault((entry, measured.missing), []).append(measured)
        print("| method | missing | removed | by noise | complete |\n|---|---|---:|---:|---:|")
        for (entry, missing), seeds in of_entries.items():
            means = (mean(getattr(seed, name) for seed in seeds) for name in ("removed", "noise", "complete"))
            print(f"| {entry} | {missing} | {' | '.join(f'{value:.2f}' for value in means)} |")
    except UserError as error:
        parser.exit(2, f"{error}\n")
    return 0


def measure_run(folder: Path, manifest: Manifest, bank: FeatureBank, split: str) -> list[Measured]:
    """Return the accuracies of one trained run for each missing modality, over the complete questions of `split`.

    Returns [] if the method does not impute features.
    """
    method, config = load_run(folder)
    dataset = QuestionDataset(bank, manifest, split, inputs_of(method.backbone, config.map_size))
    if not isinstance(method, SupportsImputation):
        return []
    return [measure(method, dataset, missing) for missing in MODALITIES]


def measure(method: MissingModalityMethod, dataset: QuestionDataset, missing: str) -> Measured:
    """Return the accuracies of a method with `missing` as the missing modality."""
    rows = questions_of(dataset, "complete")
    masks = {
        scenario: dict.fromkeys((q.question_id for q in dataset.questions), hidden_in(scenario))
        for scenario in ("complete", f"{missing}-missing")
    }
    removed, complete = (
        percent_correct(dataset, rows, predict(method, dataset, rows, masks[scenario], BATCH_SIZE, "cpu"))
        for scenario in (f"{missing}-missing", "complete")
    )
    noisy: list[int] = []
    generator = torch.Generator().manual_seed(0)
    for batch in dataset.batches(BATCH_SIZE, rows=rows):
        noisy += choose_answers(answer_noisy(method, batch, missing, generator), batch.choices)
    return Measured(missing, removed, percent_correct(dataset, rows, noisy), complete)


@torch.inference_mode()
def answer_noisy(method: Any, batch: Batch, missing: str, generator: torch.Generator) -> Tensor:
    """Return logits [batch, answer] with noise on the real features of `missing`, refined if the method has AVR."""
    method.eval()
    representation = method.backbone.encode(batch)
    real = representation.features[missing]
    noise = torch.randn(real.shape, generator=generator) * RELEASED_NOISE[missing]
    noisy = replace(representation, features={**representation.features, missing: real + noise})
    refiner = getattr(method, "refiner", None)
    if isinstance(refiner, AudioVisualRefiner):
        noisy = replace(noisy, features={**noisy.features, missing: refined_features(refiner, [noisy])[0][missing]})
    logits: Tensor = method.backbone.answer(noisy).logits
    return logits


if __name__ == "__main__":
    sys.exit(main())
