"""Measure how large the features are that a trained method answers from, compared with the real ones.

For every run, missing modality and modality: the squared deviation of each time step from the mean real step, averaged
over its elements and divided by the variance of the real features, which have 1 on average. Features of a reverse chain
that is not bounded are far above. Beside them stand the recovery error and the accuracy of the result rows, and the
median spread of the slots' weights (`slot_spread.py`). Nothing is trained.

    python benchmarks/chain_scale.py build/demo/methods/*-seed0
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from slot_spread import DEMO, check_demo, encode_steps, spreads
from torch import Tensor

from pipeline.errors import UserError
from pipeline.manifests.manifest import load_manifest
from pipeline.store.reader import open_store
from pipeline.store.schema import MODALITIES
from train.data.dataset import QuestionDataset
from train.data.feature_bank import FeatureBank
from train.data.scenarios import SCENARIO_OF
from train.evaluation.predict import BATCH_SIZE
from train.interfaces import MissingModalityMethod, SupportsImputation, inputs_of
from train.methods.rmm import RelationMemory
from train.runs.folder import load_run
from train.runs.results import ResultRow, read_results


@dataclass(frozen=True)
class Scale:
    """The size of the features of `modality` with `missing` imputed: over all steps the `median` and the `largest`."""

    missing: str
    modality: str
    median: float
    largest: float


def main() -> int:
    """Parse the options, print a line per run, missing modality and modality."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--manifest", type=Path, default=DEMO / "data")
    parser.add_argument("--store", type=Path, default=DEMO / "store.zarr")
    parser.add_argument("--split", default="test")
    options = parser.parse_args()
    print(
        f"{'run':<32}{'missing':<9}{'features':<10}{'median':>10}{'largest':>12}{'error':>9}{'spread':>9}{'accuracy':>10}"
    )
    try:
        for run in options.runs:
            check_demo(options.manifest, options.store, run)
            print_run(run, options.manifest, options.store, options.split)
    except UserError as error:
        parser.exit(2, f"{error}\n")
    return 0


def print_run(run: Path, manifest_folder: Path, store_folder: Path, split: str) -> None:
    """Print the lines of one run; nothing if its method does not impute features."""
    method, config = load_run(run)
    if not isinstance(method, SupportsImputation):
        return
    manifest, store = load_manifest(manifest_folder), open_store(store_folder)
    dataset = QuestionDataset(FeatureBank(store), manifest, split, inputs_of(method.backbone, config.map_size))
    rows = {row.scenario: row for row in read_results(run) if row.kind == "model" and row.split == split}
    memory = getattr(method, "memory", None)
    spread = {}
    if isinstance(memory, RelationMemory):
        steps = encode_steps(method, store, manifest, split, config.map_size)
        spread = {missing: float(spreads(memory, missing, of).median()) for missing, of in steps.items()}
        memory.float()
    for scale in measure_scales(method, dataset):
        facts = describe(rows.get(SCENARIO_OF[scale.missing,]), spread.get(scale.missing))
        numbers = f"{scale.median:>10.3g}{scale.largest:>12.3g}"
        print(f"{run.name:<32}{scale.missing:<9}{scale.modality:<10}{numbers}{facts}")


def describe(row: ResultRow | None, spread: float | None) -> str:
    """Return recovery error, spread of the slots and accuracy as text; "–" for what there is not."""
    error = "–" if row is None or row.recovery is None else f"{row.recovery:.3g}"
    accuracy = "–" if row is None else f"{row.accuracies.overall.accuracy:.2f}"
    return f"{error:>9}{'–' if spread is None else f'{spread:.4g}':>9}{accuracy:>10}"


@torch.inference_mode()
def measure_scales(method: MissingModalityMethod, dataset: QuestionDataset) -> list[Scale]:
    """Return the sizes of what `method` answers from; only steps with both modalities count.

    Raises `UserError` if no question is on a complete video.
    """
    assert isinstance(method, torch.nn.Module)
    method.eval()
    rows = np.flatnonzero(dataset.naturally_complete)
    if not len(rows):
        raise UserError("the split has no question on a complete video: pass another --split")
    real: dict[str, list[Tensor]] = {modality: [] for modality in MODALITIES}
    answered: dict[tuple[str, str], list[Tensor]] = {}
    for missing, parts in _encode(method, dataset, rows):
        for modality, steps in parts.items():
            (real[modality] if missing is None else answered.setdefault((missing, modality), [])).append(steps)
    means = {modality: torch.cat(parts).mean(0) for modality, parts in real.items()}
    variances = {m: float((torch.cat(parts) - means[m]).square().mean()) for m, parts in real.items()}
    return [
        Scale(*key, *_summarise((torch.cat(parts) - means[key[1]]).square().mean(1) / variances[key[1]]))
        for key, parts in answered.items()
    ]


def _encode(
    method: MissingModalityMethod, dataset: QuestionDataset, rows: np.ndarray
) -> Iterator[tuple[str | None, dict[str, Tensor]]]:
    """Yield (missing modality, or None, {modality: the steps [step, element] that are answered from})."""
    assert isinstance(method, SupportsImputation)
    for batch in dataset.batches(BATCH_SIZE, rows=rows):
        both = batch.audio_mask & batch.visual_mask
        encoded = method.backbone.encode(batch)
        completed = {None: encoded, **{m: method.complete(batch.without(m)) for m in MODALITIES}}
        for missing, representation in completed.items():
            yield missing, {m: representation.features[m][both].flatten(1).double() for m in MODALITIES}


def _summarise(sizes: Tensor) -> Sequence[float]:
    return float(sizes.median()), float(sizes.max())


if __name__ == "__main__":
    sys.exit(main())
