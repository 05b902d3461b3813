"""Measure how unevenly a relation memory weights its slots: largest over smallest weight of each time step.

The steps are the demo's test data, encoded by its trained backbone, each with its question. The memories are one
untrained memory of every variant and the trained one. A spread near 1 means that the mean slot is recalled for any
input. Nothing is trained. Source: Eq. 1-2 of the ECCV 2024 missing-modality paper; the bounds follow from the formulas:
a softmax over products of two probabilities.
"""

import argparse
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import UserError
from pipeline.manifests.manifest import Manifest, load_manifest
from pipeline.store.reader import FeatureStore, open_store
from train.data.dataset import QuestionDataset
from train.data.feature_bank import FeatureBank
from train.data.scenarios import OTHER
from train.evaluation.predict import BATCH_SIZE
from train.interfaces import MissingModalityMethod, inputs_of
from train.methods.imputation import AvailableSteps
from train.methods.rmm import RECALL_VARIANTS, RecallSettings, RelationMemory
from train.runs.folder import load_run

DEMO = Path("build/demo")
PAPER_SLOTS = 75

Steps = tuple[Tensor, Tensor]


def main() -> int:
    """Parse the options, encode the test data, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", type=Path, default=DEMO / "data")
    parser.add_argument("--store", type=Path, default=DEMO / "store.zarr")
    parser.add_argument("--run", type=Path, default=DEMO / "runs" / "rmm-avr-seed0")
    parser.add_argument("--split", default="test")
    parser.add_argument("--slots", type=int, default=PAPER_SLOTS, help="slots of the untrained memories (default: 75)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the untrained memories")
    options = parser.parse_args()
    try:
        check_demo(options.manifest, options.store, options.run)
        method, config = load_run(options.run)
        trained = memory_of(method, options.run)
        manifest = load_manifest(options.manifest)
        steps = encode_steps(method, open_store(options.store), manifest, options.split, config.map_size)
    except UserError as error:
        parser.exit(2, f"{error}\n")
    print_head(steps)
    for variant in RECALL_VARIANTS:
        print_spreads(f"{variant}, untrained", untrained_memory(method, variant, options.slots, options.seed), steps)
    print_spreads(f"{config.variant}, trained", trained, steps)
    return 0


def check_demo(manifest: Path, store: Path, run: Path) -> None:
    """Raise `UserError` if the manifest, the store or the run is missing."""
    missing = [path for path in (manifest, store, run) if not path.is_dir()]
    if missing:
        raise UserError(f"{missing[0]} is missing: run 'make demo' first, or pass --manifest, --store and --run")


def memory_of(method: Any, run: Path) -> RelationMemory:
    """Return the relation memory of a trained method; raise `UserError` if it has none."""
    memory = getattr(method, "memory", None)
    if not isinstance(memory, RelationMemory):
        raise UserError(f"run {run} has no relation memory: pass --run with a run of the method rmm or rmm-avr")
    return memory


def untrained_memory(method: MissingModalityMethod, variant: str, slots: int, seed: int) -> RelationMemory:
    """Return an untrained memory of `variant` for the features of the method's backbone."""
    torch.manual_seed(seed)
    backbone = method.backbone
    settings = RECALL_VARIANTS[variant]
    return RelationMemory(backbone.feature_shapes, backbone.channels, slots=slots, settings=settings)


@torch.inference_mode()
def encode_steps(
    method: MissingModalityMethod, store: FeatureStore, manifest: Manifest, split: str, map_size: int | None
) -> dict[str, Steps]:
    """Return {missing modality: (steps of the other modality [step, ...], their questions [step, channel])}.

    The questions are those on complete videos, each with the missing modality removed.
    """
    dataset = QuestionDataset(FeatureBank(store), manifest, split, inputs_of(method.backbone, map_size))
    rows = np.flatnonzero(dataset.naturally_complete)
    if not len(rows):
        raise UserError(
            f"split {split!r} of {manifest.name!r} has no question on a complete video: pass another --split"
        )
    steps = {}
    for missing in OTHER:
        parts = list(_encode_batches(method, dataset, rows, missing))
        steps[missing] = (torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts]))
    return steps


def _encode_batches(
    method: MissingModalityMethod, dataset: QuestionDataset, rows: np.ndarray, missing: str
) -> Iterator[Steps]:
    masks = {question.question_id: (missing,) for question in dataset.questions}
    for batch in dataset.batches(BATCH_SIZE, masks=masks, rows=rows):
        representation = method.backbone.encode(batch)
        steps = AvailableSteps(representation.masks[OTHER[missing]])
        yield steps.take(representation.features[OTHER[missing]]), steps.repeat(representation.question)


@torch.inference_mode()
def spreads(memory: RelationMemory, missing: str, steps: Steps) -> Tensor:
    """Return the largest over the smallest weight of each step, float64 [step], when `missing` is recalled."""
    memory = memory.double()
    available, question = steps
    parts = zip(available.split(BATCH_SIZE), question.split(BATCH_SIZE), strict=True)
    weights = torch.cat([memory.weights(OTHER[missing], a.double(), q.double()) for a, q in parts])
    return weights.amax(1) / weights.amin(1)


def bound(settings: RecallSettings, slots: int) -> float | None:
    """Return the largest spread that the formula allows; None if it has no bound.

    A softmax over products of probabilities, all in [0, 1], has a spread of at most e. An address of cosines is largest
    if one slot is aligned and all others are opposed: e / (e + (slots - 1) / e).
    """
    if settings.combination == "normalised_product":
        return None
    address = math.e / (math.e + (slots - 1) / math.e) if settings.addressing == "cosine" else 1.0
    return math.exp(address**2 / (settings.tau if settings.combination == "tau" else 1.0))


def print_head(steps: dict[str, Steps]) -> None:
    """Print the measured quantity and the names of the columns."""
    counts = ", ".join(f"{len(available)} with {missing} missing" for missing, (available, _) in steps.items())
    print(f"largest over smallest slot weight, over time steps ({counts}), each with one question\n")
    print(f"{'memory':<24}{'slots':>6}  {'case':<16}{'median':>14}{'maximum':>14}{'bound':>12}")


def print_spreads(name: str, memory: RelationMemory, steps: dict[str, Steps]) -> None:
    """Print the lines of one memory."""
    slots = len(memory.slots["question"])
    limit = bound(memory.settings, slots)
    shown = "none" if limit is None else f"{limit:.6f}"
    for missing, available in steps.items():
        spread = spreads(memory, missing, available)
        values = f"{float(spread.median()):>14.6g}{float(spread.max()):>14.6g}"
        print(f"{name:<24}{slots:>6}  {missing + ' missing':<16}{values}{shown:>12}")


if __name__ == "__main__":
    sys.exit(main())
