"""Measure how large the features are that trained methods answer from, compared with the real ones.

For every method and missing modality: the squared deviation of each time step from the mean real step, averaged over
its elements and divided by the variance of the real features, which have 1 on average. Features of a reverse chain that
is not bounded are far above. Beside them are the recovery error and the accuracy of the result rows, and the largest
over the smallest weight of the slots (`slot_spread.py`). Medians over the steps, the largest step, means over the
seeds. Only methods that impute features are measured; nothing is trained.

    python benchmarks/chain_scale.py build/demo/methods
"""

import argparse
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median

import numpy as np
import torch
from slot_spread import DEMO, check_demo, encode_steps, spreads
from torch import Tensor

from pipeline.errors import UserError
from pipeline.manifests.manifest import load_manifest
from pipeline.store.reader import open_store
from pipeline.store.schema import MODALITIES
from train.cli.report import find_runs
from train.data.dataset import QuestionDataset
from train.data.feature_bank import FeatureBank
from train.data.scenarios import OTHER, SCENARIO_OF
from train.evaluation.predict import BATCH_SIZE
from train.interfaces import MissingModalityMethod, SupportsImputation, inputs_of
from train.methods.rmm import RelationMemory
from train.runs.folder import load_run
from train.runs.results import read_results


@dataclass(frozen=True)
class Scale:
    """The size of the features of `modality` with `missing` imputed: over all steps the `median` and the `largest`."""

    missing: str
    modality: str
    median: float
    largest: float


@dataclass(frozen=True)
class Measured:
    """What one run answers from with `missing` imputed; `spread` is None without slots."""

    missing: str
    imputed: Scale
    available: Scale
    spread: float | None
    recovery: float | None
    accuracy: float


def main() -> int:
    """Parse the options, print a Markdown table with a line per method and missing modality."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="*", default=[DEMO / "runs"], help="run folders, or folders of runs")
    parser.add_argument("--manifest", type=Path, default=DEMO / "data")
    parser.add_argument("--store", type=Path, default=DEMO / "store.zarr")
    parser.add_argument("--split", default="test")
    options = parser.parse_args()
    try:
        of_entries: dict[tuple[str, str], list[Measured]] = {}
        for run in (run for folder in options.runs for run in find_runs(folder)):
            check_demo(options.manifest, options.store, run)
            for measured in measure_run(run, options.manifest, options.store, options.split):
                entry = run.name.rpartition("-seed")[0] or run.name
                of_entries.setdefault((entry, measured.missing), []).append(measured)
    except UserError as error:
        parser.exit(2, f"{error}\n")
    print("\n".join(table_lines(of_entries)))
    return 0


def measure_run(run: Path, manifest_folder: Path, store_folder: Path, split: str) -> list[Measured]:
    """Return a measurement per missing modality; [] if the run's method does not impute features."""
    method, config = load_run(run)
    if not isinstance(method, SupportsImputation):
        return []
    manifest, store = load_manifest(manifest_folder), open_store(store_folder)
    dataset = QuestionDataset(FeatureBank(store), manifest, split, inputs_of(method.backbone, config.map_size))
    rows = {row.scenario: row for row in read_results(run) if row.kind == "model" and row.split == split}
    memory = getattr(method, "memory", None)
    spread = {}
    if isinstance(memory, RelationMemory):
        steps = encode_steps(method, store, manifest, split, config.map_size)
        spread = {missing: float(spreads(memory, missing, of).median()) for missing, of in steps.items()}
        memory.float()
    scales = {(scale.missing, scale.modality): scale for scale in measure_scales(method, dataset)}
    found = []
    for missing, available in OTHER.items():
        row = rows.get(SCENARIO_OF[missing,])
        if row is None:
            raise UserError(f"{run} has no results of {SCENARIO_OF[missing,]} on {split}: evaluate it again")
        sizes = (scales[missing, missing], scales[missing, available])
        found.append(Measured(missing, *sizes, spread.get(missing), row.recovery, row.accuracies.overall.accuracy))
    return found


def table_lines(of_entries: Mapping[tuple[str, str], Sequence[Measured]]) -> Iterator[str]:
    """Yield a Markdown table of {(method, missing modality): a measurement per seed}."""
    yield "| method | missing | imputed: median | largest | available: median | largest | error | slots | accuracy |"
    yield f"|---|---|{'---:|' * 7}"
    for (entry, missing), seeds in of_entries.items():
        sizes = []
        for of_seeds in ([seed.imputed for seed in seeds], [seed.available for seed in seeds]):
            sizes += [f"{median(scale.median for scale in of_seeds):.3g}", f"{max(s.largest for s in of_seeds):.3g}"]
        values = (
            _mean_or_dash((seed.recovery for seed in seeds), ".2f"),
            _mean_or_dash((seed.spread for seed in seeds), ".4g"),
            f"{mean(seed.accuracy for seed in seeds):.2f}",
        )
        yield f"| {entry} | {missing} | {' | '.join([*sizes, *values])} |"


def _mean_or_dash(values: Iterable[float | None], format_spec: str) -> str:
    known = [value for value in values if value is not None]
    return format(mean(known), format_spec) if known else "–"


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
        completed = [(m, method.complete(batch.without(m))) for m in MODALITIES]
        for missing, representation in [(None, encoded), *completed]:
            yield missing, {m: representation.features[m][both].flatten(1).double() for m in MODALITIES}


def _summarise(sizes: Tensor) -> Sequence[float]:
    return float(sizes.median()), float(sizes.max())


if __name__ == "__main__":
    sys.exit(main())
