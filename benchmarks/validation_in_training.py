"""Train with and without the validation questions in the training split, and set what either says of itself.

The released code of the ECCV 2024 missing-modality paper trains on train and val together and logs its accuracy on
val. This program does so on the demo's data: the same backbone, schedule and seeds, once on train alone, once on both,
and shows the accuracy on val that chose the epoch beside the accuracy on test. What val gains beyond what test does
(there is more to learn from, too) is what the log overstates.

    python benchmarks/validation_in_training.py --seeds 3 --jobs 2
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from statistics import mean

from pipeline.errors import UserError
from pipeline.manifests.manifest import Manifest, load_manifest, save_manifest
from pipeline.store.reader import open_store
from train.cli.options import training_progress
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
        lacking = [path for path in (options.manifest, options.store) if not path.is_dir()]
        if lacking:
            raise UserError(f"{lacking[0]} is missing: run 'make demo' first, or give --manifest and --store")
        if options.seeds < 1:
            raise UserError(f"--seeds {options.seeds}: give at least one")
        manifest, bank = load_manifest(options.manifest), FeatureBank(open_store(options.store))
        if "val" not in manifest.questions:
            raise UserError(f"{options.manifest} has no val split: there is nothing to train on besides")
        print(f"{'trained on':<14}{'seed':>5}{'val':>9}{'test':>9}   (accuracy in percent, everything there)")
        for name, trained in (("train", manifest), ("train and val", with_validation(manifest))):
            folder = options.out / name.replace(" ", "-")
            save_manifest(trained, folder / "data")
            found = measure(trained, bank, folder, options.store, options.seeds, options.jobs)
            for seed, (val, test) in enumerate(found):
                print(f"{name:<14}{seed:>5}{val:>9.2f}{test:>9.2f}")
            print(f"{name:<14}{'mean':>5}{mean(val for val, _ in found):>9.2f}{mean(test for _, test in found):>9.2f}")
    except UserError as error:
        parser.exit(2, f"{error}\n")
    return 0


def with_validation(manifest: Manifest) -> Manifest:
    """Return the manifest with the questions of val in train too, as the release trains."""
    both = (*manifest.questions["train"], *manifest.questions["val"])
    return replace(manifest, questions={**manifest.questions, "train": both})


def measure(
    manifest: Manifest, bank: FeatureBank, out: Path, store: Path, seeds: int, jobs: int
) -> list[tuple[float, float]]:
    """Return (accuracy on val of the chosen epoch, accuracy on test), in percent, of each seed."""
    demo = read_grid(GRID)
    entries = [entry for entry in demo.methods if entry.name == METHOD]
    grid = Grid(preset=demo.preset, backbones=demo.backbones, settings=demo.settings, methods=entries)
    cells = list_cells(grid, range(seeds), str(out / "data"), str(store))
    with training_progress() as progress:
        documents = run_cells(cells, manifest, bank, out / "runs", progress, jobs)
    return [
        (mean(best_validation(out / "runs" / name).values()), document["scenarios"]["complete"]["overall"])
        for name, document in documents.items()
    ]


if __name__ == "__main__":
    sys.exit(main())
