"""Choose the settings that the papers of the methods leave open: the same number of tries for every method.

Each setting of `train/grids/tuning.toml` is trained on synthetic datasets of other seeds than the reported one, and
judged by the accuracy on their validation split, the mean over the scenarios by which the method selects its
checkpoint; no test split is read. Per method the setting with the highest mean over the datasets is chosen, the first
one of equals. Finished runs are kept, so that the program can be stopped and started again; the accuracies of finished
settings are written to a table, from which the choice is made, also of datasets that were tried elsewhere.

    python benchmarks/tuning.py --plan
    python benchmarks/tuning.py --datasets 101 102 --jobs 2
    python benchmarks/tuning.py --datasets
"""

import argparse
import csv
import io
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from pipeline.errors import UserError
from pipeline.files import replace_text
from pipeline.manifests.manifest import load_manifest
from pipeline.store.reader import open_store
from train.cli.options import runs_progress
from train.data.feature_bank import FeatureBank
from train.runs.log import best_validation
from train.runs.presets import PRESETS
from train.training.sweep import Cell, list_cells, read_grid, run_cells

GRID = Path("train/grids/tuning.toml")
TABLE = Path("train/grids/tuning.csv")
# A run and its start, by measured runs on two cores (two at once).
SECONDS_PER_RUN = 45

# {(run, its setting, dataset): validation accuracy in percent}
Accuracies = dict[tuple[str, str, int], float]


@dataclass(frozen=True)
class Tried:
    """A setting of a method, by the name of its run in the grid, and its validation accuracy in percent by dataset."""

    method: str
    run: str
    setting: str
    accuracies: dict[int, float]

    @property
    def mean(self) -> float:
        """The mean over the datasets, by which settings are compared."""
        return mean(self.accuracies.values())


def main() -> int:
    """Parse the options, train what is not trained yet, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", type=int, nargs="*", default=[101, 102], help="seeds of synthetic datasets")
    parser.add_argument("--out", type=Path, default=Path("build/tuning"))
    parser.add_argument("--table", type=Path, default=TABLE, help="CSV of all accuracies, which is extended")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once")
    parser.add_argument(
        "--plan", action="store_true", help="print how many runs there would be, and how long they take"
    )
    options = parser.parse_args()
    try:
        if options.plan:
            print_plan(options.datasets, options.jobs)
            return 0
        known = read_table(options.table)
        for seed in options.datasets:
            cells = train_all(seed, options.out / str(seed), options.jobs)
            known |= read_accuracies(seed, cells, options.out / str(seed) / "runs")
            write_table(options.table, known)
        print_table(collect(known))
    except UserError as error:
        parser.exit(2, f"{error}\n")
    return 0


def print_plan(datasets: Sequence[int], jobs: int) -> None:
    """Print the number of settings per method, of runs and of hours."""
    cells = list_cells(read_grid(GRID), None, "m", "s")
    counts: dict[str, int] = {}
    for cell in (cell for cell in cells if cell.config.start_from):
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
    run_command("mavqa-manifest", "synthesize", "--settings", "demo", "--seed", seed, "--out", data)
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


def describe(cell: Cell) -> str:
    """Return the options and the learning rate of a setting that are not those of the preset and of all settings."""
    grid = read_grid(GRID)
    own = {**cell.config.options, "learning_rate": cell.config.learning_rate}
    common = {**PRESETS[grid.preset].options.get(cell.config.method, {}), **grid.settings}
    return ", ".join(f"{name} {value}" for name, value in own.items() if common.get(name) != value) or "as in the grid"


def read_accuracies(seed: int, cells: Sequence[Cell], runs: Path) -> Accuracies:
    """Return the accuracies of the settings on one dataset, without that of the run that they start from."""
    settings = [cell for cell in cells if cell.config.start_from]
    return {(c.name, describe(c), seed): mean(best_validation(runs / c.name).values()) for c in settings}


def read_table(path: Path) -> Accuracies:
    """Return the accuracies of a table; {} if there is none."""
    if not path.exists():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return {(row["run"], row["setting"], int(row["dataset"])): float(row["accuracy"]) for row in rows}


def write_table(path: Path, accuracies: Accuracies) -> None:
    """Write a line per setting and dataset."""
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(["run", "setting", "dataset", "accuracy"])
    writer.writerows([*key, f"{accuracy:.4f}"] for key, accuracy in sorted(accuracies.items()))
    replace_text(path, sink.getvalue())


def collect(accuracies: Accuracies) -> list[Tried]:
    """Return the settings in the order of the grid, those of a method only if all were tried on the same datasets.

    Raises `UserError` if the table has a run or a setting of it that the grid does not have.
    """
    cells = {cell.name: cell for cell in list_cells(read_grid(GRID), None, "m", "s") if cell.config.start_from}
    settings = {name: describe(cell) for name, cell in cells.items()}
    for name, setting, _ in accuracies:
        if settings.get(name) != setting:
            raise UserError(f"{GRID} has no run {name} with {setting}: remove it from the table")
    tried = []
    for name, cell in cells.items():
        of_run = {dataset: accuracy for (run, _, dataset), accuracy in sorted(accuracies.items()) if run == name}
        tried.append(Tried(method_of(cell), name, settings[name], of_run))
    is_equal = {
        one.method: all(o.accuracies.keys() == one.accuracies.keys() for o in tried if o.method == one.method)
        for one in tried
    }
    return [one for one in tried if one.accuracies and is_equal[one.method]]


def choose(tried: Sequence[Tried]) -> list[Tried]:
    """Return the best setting of each method, the first one of equals."""
    methods = dict.fromkeys(one.method for one in tried)
    return [max((one for one in tried if one.method == method), key=lambda one: one.mean) for method in methods]


def print_table(tried: Sequence[Tried]) -> None:
    """Print a Markdown table of all settings; the chosen ones are bold. Then what all settings of a method share."""
    chosen, datasets = choose(tried), sorted({dataset for one in tried for dataset in one.accuracies})
    shared = {method: share_of(tried, method) for method in dict.fromkeys(one.method for one in tried)}
    print(f"| method | setting | {' | '.join(f'dataset {seed}' for seed in datasets)} | mean |")
    print(f"|---|---|{'---:|' * (len(datasets) + 1)}")
    for one in tried:
        of_datasets = [f"{one.accuracies[seed]:.2f}" if seed in one.accuracies else "–" for seed in datasets]
        own = [part for part in one.setting.split(", ") if part not in shared[one.method]]
        cells = [one.method, ", ".join(own) or "nothing else", *of_datasets, f"{one.mean:.2f}"]
        print(f"| {' | '.join(f'**{cell}**' if one in chosen else cell for cell in cells)} |")
    print("\nWhat all settings of a method have in common:\n")
    for method, parts in shared.items():
        if parts:
            print(f"- {method}: {', '.join(parts)}")


def share_of(tried: Sequence[Tried], method: str) -> list[str]:
    """Return the parts, such as "slots 75", that all settings of a method have in common."""
    settings = [one.setting.split(", ") for one in tried if one.method == method]
    return [part for part in settings[0] if all(part in setting for setting in settings)]


if __name__ == "__main__":
    sys.exit(main())
