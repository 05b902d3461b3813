"""Choose the settings that the papers of the methods leave open: the same number of tries for every method.

Each setting of `train/grids/tuning.toml` is trained on synthetic datasets of other seeds than the reported one, and
judged by the accuracy on their validation split, the mean over the scenarios by which the method selects its
checkpoint; no test split is read. Per method the setting with the highest mean over the datasets is chosen, the first
one of equals. Finished runs are kept, so that the program can be stopped and started again.

    python benchmarks/tuning.py --plan
    python benchmarks/tuning.py --datasets 101 102 --jobs 2
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from pipeline.errors import UserError
from pipeline.manifests.manifest import load_manifest
from pipeline.store.reader import open_store
from train.cli.options import runs_progress
from train.data.feature_bank import FeatureBank
from train.runs.log import best_validation, read_times
from train.training.sweep import Cell, list_cells, read_grid, run_cells

GRID = Path("train/grids/tuning.toml")
SETTINGS = Path("data_manifests/demo/dataset.toml")
# A run and its start, by measured runs on two cores (two at once).
SECONDS_PER_RUN = 45


@dataclass(frozen=True)
class Tried:
    """A setting of a method, and its validation accuracy in percent by dataset."""

    method: str
    run: str
    setting: dict[str, Any]
    accuracies: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The mean over the datasets, by which settings are compared."""
        return mean(self.accuracies)


def main() -> int:
    """Parse the options, train what is not trained yet, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", type=int, nargs="+", default=[101, 102], help="seeds of synthetic datasets")
    parser.add_argument("--out", type=Path, default=Path("build/tuning"))
    parser.add_argument("--jobs", type=int, default=1, help="runs at once")
    parser.add_argument(
        "--plan", action="store_true", help="print how many runs there would be, and how long they take"
    )
    options = parser.parse_args()
    try:
        if options.plan:
            print_plan(options.datasets, options.jobs)
            return 0
        cells = {seed: train_all(seed, options.out / str(seed), options.jobs) for seed in options.datasets}
        tried = read_tried(cells, options.out)
        print_table(tried, options.datasets)
        folders = [options.out / str(seed) / "runs" / cell.name for seed, of in cells.items() for cell in of]
        seconds = sum(sum(read_times(folder).values()) for folder in folders)
        print(f"\n{len(folders)} runs, {seconds / 3600:.1f} hours of training epochs")
    except UserError as error:
        parser.exit(2, f"{error}\n")
    return 0


def print_plan(datasets: Sequence[int], jobs: int) -> None:
    """Print the number of settings per method, of runs and of hours."""
    cells = list_cells(read_grid(GRID), None, "m", "s")
    counts: dict[str, int] = {}
    for cell in cells:
        counts[method_of(cell)] = counts.get(method_of(cell), 0) + 1
    for method, count in counts.items():
        print(f"{method:<24}{count:>3} settings")
    runs = len(cells) * len(datasets)
    print(
        f"{runs} runs on {len(datasets)} datasets, about {runs * SECONDS_PER_RUN / 3600 * 2 / max(jobs, 1):.1f} hours"
    )


def method_of(cell: Cell) -> str:
    """Return the method and variant that a cell tries a setting of, its name without number and seed."""
    return cell.name.removesuffix(f"-seed{cell.config.seed}").rstrip("0123456789").removesuffix("-")


def train_all(seed: int, folder: Path, jobs: int) -> list[Cell]:
    """Generate and extract the dataset of `seed` in `folder`, train every cell on it and return the cells."""
    data, store = folder / "data", folder / "store.zarr"
    run_command("mavqa-manifest", "synthesize", "--settings", SETTINGS, "--seed", seed, "--out", data)
    extract = ("--weights", "seeded", "--seconds", 3, "--decoder", "pyav")
    run_command("mavqa-extract", "--manifest", data, "--videos", data / "videos", "--store", store, *extract)
    manifest, bank = load_manifest(data), FeatureBank(open_store(store))
    cells = list_cells(read_grid(GRID), None, str(data), str(store))
    with runs_progress(bank, len(cells)) as progress:
        outcome = run_cells(cells, manifest, bank, folder / "runs", progress, jobs)
    if outcome.failures:
        raise UserError(f"some runs failed: {outcome.failures}")
    return cells


def run_command(*arguments: object) -> None:
    """Run a command of this environment; raise `UserError` if it fails."""
    command = [str(Path(sys.executable).parent / str(arguments[0])), *map(str, arguments[1:])]
    if subprocess.run(command, check=False).returncode:
        raise UserError(f"{' '.join(command)} failed")


def read_tried(cells: dict[int, list[Cell]], out: Path) -> list[Tried]:
    """Return every setting with its accuracies, in the order of the grid, without the run that others start from."""
    first = next(iter(cells.values()))
    common = read_grid(GRID).settings
    tried = []
    for cell in (cell for cell in first if cell.config.start_from):
        own = {**cell.config.options, "learning_rate": cell.config.learning_rate}
        setting = {name: value for name, value in own.items() if common.get(name) != value}
        accuracies = [mean(best_validation(out / str(seed) / "runs" / cell.name).values()) for seed in cells]
        tried.append(Tried(method_of(cell), cell.name, setting, tuple(accuracies)))
    return tried


def choose(tried: Sequence[Tried]) -> list[Tried]:
    """Return the best setting of each method, the first one of equals."""
    methods = dict.fromkeys(one.method for one in tried)
    return [max((one for one in tried if one.method == method), key=lambda one: one.mean) for method in methods]


def print_table(tried: Sequence[Tried], datasets: Sequence[int]) -> None:
    """Print a Markdown table of all settings; the chosen ones are bold."""
    chosen = choose(tried)
    print(f"| method | setting | {' | '.join(f'dataset {seed}' for seed in datasets)} | mean |")
    print(f"|---|---|{'---:|' * (len(datasets) + 1)}")
    for one in tried:
        setting = ", ".join(f"{name} {value}" for name, value in one.setting.items()) or "as in the grid"
        values = [f"{accuracy:.2f}" for accuracy in (*one.accuracies, one.mean)]
        cells = [one.method, setting, *values]
        print(f"| {' | '.join(f'**{cell}**' if one in chosen else cell for cell in cells)} |")


if __name__ == "__main__":
    sys.exit(main())
