"""Compare training with and without the validation questions in the training split: accuracy on val and on test.

The released code of the ECCV 2024 missing-modality paper trains on train and val together and logs its accuracy on
val. This program trains on the demo's data with the same backbone, schedule and seeds, once on train only, once on
both. It prints a Markdown table of the accuracy on val of the selected epoch and that on test, the mean and the seeds.
Training on both gains on test because of more data; what it gains on val beyond that is how much the log overstates.

    python benchmarks/validation_in_training.py --seeds 3 --jobs 2
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean

from pipeline.errors import UserError
from pipeline.manifests.manifest import Manifest, load_manifest, save_manifest
from pipeline.store.reader import open_store
from train.cli.options import runs_progress
from train.data.feature_bank import FeatureBank
from train.runs.log import best_validation
from train.training.sweep import Grid, list_cells, read_grid, run_cells

DEMO = Path("build/demo")
GRID = Path("train/grids/demo.toml")
METHOD = "zero-fill"


def main() -> int:
    """Parse the options, train everything, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", type=Path, default=DEMO / "data")
    parser.add_argument("--store", type=Path, default=DEMO / "store.zarr")
    parser.add_argument("--out", type=Path, default=Path("build/validation-in-training"))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    try:
        missing = [path for path in (options.manifest, options.store) if not path.is_dir()]
        if missing:
            raise UserError(f"{missing[0]} is missing: run 'make demo' first, or pass --manifest and --store")
        if options.seeds < 1:
            raise UserError(f"--seeds {options.seeds}: pass at least 1")
        manifest, bank = load_manifest(options.manifest), FeatureBank(open_store(options.store))
        if "val" not in manifest.questions:
            raise UserError(f"{options.manifest} has no val split to add to the training split")
        print("| trained on | val, which chose the epoch | test |\n|---|---:|---:|")
        for name, trained in (("train", manifest), ("train and val", with_validation(manifest))):
            folder = options.out / name.replace(" ", "-")
            save_manifest(trained, folder / "data")
            accuracies = measure(trained, bank, folder, options.store, options.seeds, options.jobs)
            print(f"| {name} | {' | '.join(map(describe, zip(*accuracies, strict=True)))} |")
    except UserError as error:
        parser.exit(2, f"{error}\n")
    return 0


def describe(accuracies: Sequence[float]) -> str:
    """Return the mean over the seeds, then their values."""
    return f"{mean(accuracies):.2f} ({', '.join(f'{accuracy:.2f}' for accuracy in accuracies)})"


def with_validation(manifest: Manifest) -> Manifest:
    """Return the manifest with the questions of val added to train, as in the release."""
    both = (*manifest.questions["train"], *manifest.questions["val"])
    return replace(manifest, questions={**manifest.questions, "train": both})


def measure(
    manifest: Manifest, bank: FeatureBank, out: Path, store: Path, seeds: int, jobs: int
) -> list[tuple[float, float]]:
    """Return (accuracy on val of the selected epoch, accuracy on test) of each seed, in percent."""
    demo = read_grid(GRID)
    entries = [entry for entry in demo.methods if entry.name == METHOD]
    grid = Grid(preset=demo.preset, backbones=demo.backbones, settings=demo.settings, methods=entries)
    cells = list_cells(grid, range(seeds), str(out / "data"), str(store))
    with runs_progress(bank) as progress:
        outcome = run_cells(cells, manifest, bank, out / "runs", progress, jobs)
    if outcome.failures:
        raise UserError(f"some seeds failed: {outcome.failures}")
    return [
        (mean(best_validation(out / "runs" / name).values()), document["scenarios"]["complete"]["overall"])
        for name, document in outcome.documents.items()
    ]


if __name__ == "__main__":
    sys.exit(main())
