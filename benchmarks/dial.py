"""When does recalling a missing modality pay? Methods on synthetic datasets from independent to redundant modalities.

Without --train, print for each redundancy how much either modality determines of the other and of the answers, and the
floors that use no video; no clip is rendered. With --train, synthesize and extract each dataset, train the grid
train/grids/dial.toml on it, and write to --out: accuracies.csv, gains.csv, dial.svg (gain over a learned constant and
over modality dropout against the mutual information of the modalities) and groups.svg (the gain over a learned constant
on questions about the audio, about the frames, about both: the backbone itself answers those about what is available).
Finished steps are skipped: run it again to go on after an interruption. A run took 0.8 minutes of one core (20 runs, 16
minutes), so that the runs of five redundancies and five seeds take two to three hours on two cores.

    python benchmarks/dial.py
    python benchmarks/dial.py --train --seeds 5 --jobs 2
    python benchmarks/dial.py --gains
    python benchmarks/dial.py --trend
"""

import argparse
import csv
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from pipeline.errors import UserError
from pipeline.manifests.manifest import Manifest
from pipeline.manifests.templates import COLUMNS
from pipeline.synthetic import read_redundancy
from pipeline.synthetic.dataset import (
    REDUNDANCY_FILE,
    SceneSettings,
    make_vocabulary,
    measure_redundancy,
    sample_scenes,
    select_questions,
)
from pipeline.synthetic.difficulty import DIFFICULTIES
from train.evaluation.floors import filled_majority, template_majority
from train.evaluation.statistics import correct_holm
from train.report.gains import find_pairs, paired_gain
from train.report.plots import COLOURS, STYLE
from train.report.tables import Block, build_blocks, pool_counts
from train.runs.results import ResultRow, read_results

REDUNDANCIES = (0.0, 0.25, 0.5, 0.75, 1.0)
GRID = Path(__file__).resolve().parent.parent / "train" / "grids" / "dial.toml"
SCENARIOS = ("audio-missing", "visual-missing")
BASELINES = ("constant-fill", "modality-dropout")
# The common start of the methods, in the tables only: without a modality it is far below all others.
START = "zero-fill"
_COLUMNS = {column.label: column for column in COLUMNS}
GROUPS = {"All": _COLUMNS["All"], "Audio": _COLUMNS["A"], "Visual": _COLUMNS["V"], "Audio-Visual": _COLUMNS["AV"]}
SPLIT = "test"


@dataclass(frozen=True)
class Accuracy:
    """The accuracy in percent of one run, named by its entry of the grid, on a group of questions of a scenario."""

    redundancy: float
    bits: float
    scenario: str
    group: str
    entry: str
    seed: int
    accuracy: float


@dataclass(frozen=True)
class Comparison:
    """The gain in points of a method over a baseline: its mean, its 95 % interval and p-value if any, and by seed."""

    redundancy: float
    bits: float
    scenario: str
    group: str
    over: str
    method: str
    points: float
    low: float | None
    high: float | None
    p: float | None
    by_seed: tuple[float, ...]


def main() -> int:
    """Parse the options, print what there is to recall, train if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--redundancies", type=float, nargs="+", default=list(REDUNDANCIES), metavar="SHARE")
    parser.add_argument("--difficulty", choices=list(DIFFICULTIES), default="normal")
    parser.add_argument("--videos", type=int, default=500)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help="of the datasets")
    parser.add_argument("--train", action="store_true", help="train, and write the tables and figures")
    parser.add_argument("--gains", action="store_true", help="print a Markdown table of the gains of trained levels")
    parser.add_argument("--trend", action="store_true", help="print a Markdown table of how the gains rise per bit")
    parser.add_argument("--grid", type=Path, default=GRID)
    parser.add_argument("--seeds", type=int, default=5, help="of the runs")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("build/dial"))
    options = parser.parse_args()
    try:
        if options.train:
            write_results([run_level(redundancy, options) for redundancy in options.redundancies], options.out)
        elif options.gains or options.trend:
            folders = [level_folder(redundancy, options) for redundancy in options.redundancies]
            gains = [gain for folder in folders for gain in read_comparisons(folder)]
            print("\n".join(trend_lines(gains) if options.trend else gain_lines(gains)))
        else:
            print_measures(options)
    except UserError as error:
        parser.exit(2, f"{error}\n")
    return 0


def print_measures(options: argparse.Namespace) -> None:
    """Print a Markdown table with a line per redundancy and one of the demo's scenes, which have none."""
    print(
        "| redundancy | bits | of instruments | template majority | filled majority "
        "| observer: question | audio | visual |\n|---|---:|---:|---:|---:|---:|---:|---:|"
    )
    for redundancy in (None, *options.redundancies):
        settings = SceneSettings(options.seconds, options.seed, redundancy, options.difficulty)
        splits = sample_scenes(options.videos, settings)
        questions = select_questions(splits, settings.seed)
        manifest = Manifest("dial", settings.release, "", (), questions, make_vocabulary())
        floors = [
            floor(manifest.questions["train"], questions[SPLIT]) for floor in (template_majority, filled_majority)
        ]
        percentages = [f"{floor.overall.accuracy:.1f}" for floor in floors]
        if redundancy is None:
            print(f"| the demo | | | {' | '.join(percentages)} | | | |")
            continue
        measured = measure_redundancy(splits, questions, settings)
        bits = [f"{measured['states'][name]['mutual_information']:.1f}" for name in ("everything", "instruments")]
        found = measured["answers"]["all"]
        observers = (found["question"], found["audio"]["accuracy"], found["visual"]["accuracy"])
        cells = [*bits, *percentages, *(f"{value:.1f}" for value in observers)]
        print(f"| {redundancy:g} | {' | '.join(cells)} |")


def level_folder(redundancy: float, options: argparse.Namespace) -> Path:
    """Return the folder of the data and the runs of one redundancy."""
    out: Path = options.out
    return out / f"{options.difficulty}-{redundancy:g}"


def run_level(redundancy: float, options: argparse.Namespace) -> Path:
    """Synthesize, extract, train and report one redundancy; return its folder. Finished steps are skipped."""
    folder = level_folder(redundancy, options)
    data, store, runs = folder / "data", folder / "store.zarr", folder / "runs"
    if not (data / REDUNDANCY_FILE).is_file():  # the last file that is written
        scenes = ("--videos", options.videos, "--seconds", options.seconds, "--seed", options.seed)
        dial = ("--redundancy", redundancy, "--difficulty", options.difficulty)
        run_mavqa("manifest", "synthesize", "--out", data, *scenes, *dial)
    places = ("--manifest", data, "--store", store)
    numbers = ("--weights", "seeded", "--seconds", options.seconds, "--decoder", "pyav")
    run_mavqa("extract", *places, "--videos", data / "videos", *numbers)
    run_mavqa("sweep", options.grid, *places, "--out", runs, "--seeds", options.seeds, "--jobs", options.jobs)
    run_mavqa("report", runs, "--out", folder / "report")
    return folder


def run_mavqa(*words: object) -> None:
    """Run a command of mavqa; raise `UserError` if it fails."""
    command = [sys.executable, "-m", "mavqa", *map(str, words)]
    if subprocess.run(command, check=False).returncode:
        raise UserError(f"{' '.join(command[2:])} failed: fix its cause, then run this program again")


def write_results(folders: Sequence[Path], out: Path) -> None:
    """Write the tables and figures of all levels to `out`."""
    accuracies = [row for folder in folders for row in read_accuracies(folder)]
    gains = [gain for folder in folders for gain in read_comparisons(folder)]
    write_table(accuracies, out / "accuracies.csv")
    write_table(gains, out / "gains.csv")
    panels = [(scenario, "All", over) for scenario in SCENARIOS for over in BASELINES]
    draw(gains, panels, out / "dial.svg")
    panels = [(scenario, group, BASELINES[0]) for scenario in SCENARIOS for group in [*GROUPS][1:]]
    draw(gains, panels, out / "groups.svg")


def read_level(folder: Path) -> tuple[float, float]:
    """Return (redundancy, mutual information of the modalities in bits) of the dataset of a level."""
    document = read_redundancy(folder / "data")
    return document["redundancy"], document["states"]["everything"]["mutual_information"]


def read_blocks(folder: Path) -> list[Block]:
    """Return the blocks of a level's test split, one per scenario of `SCENARIOS`."""
    runs = [path.parent for path in sorted((folder / "runs").glob("*/results.jsonl"))]
    folders = {row.key: run for run in runs for row in read_results(run)}
    blocks = build_blocks([row for run in runs for row in read_results(run)], folders)
    return [block for block in blocks if block.split == SPLIT and block.scenario in SCENARIOS]


def name_entry(row: ResultRow) -> str:
    """Return the entry of the grid that a row's run is of."""
    return row.run.rpartition("-seed")[0]


def read_accuracies(folder: Path) -> list[Accuracy]:
    """Return the accuracies of the trained runs of a level."""
    redundancy, bits = read_level(folder)
    found = []
    for block in read_blocks(folder):
        for row in (row for line in block.lines for row in line.rows if row.kind == "model"):
            for group, column in GROUPS.items():
                count = pool_counts(row.accuracies, column)
                if count is not None:
                    names = (row.scenario, group, name_entry(row), row.seed)
                    found.append(Accuracy(redundancy, bits, *names, count.accuracy))
    return found


def read_comparisons(folder: Path) -> list[Comparison]:
    """Return the gains of a level over the `BASELINES`, on all questions and on those of each group."""
    redundancy, bits = read_level(folder)
    found = []
    for block in read_blocks(folder):
        for pair in find_pairs(block):
            over, method = name_entry(pair.baseline.rows[0]), name_entry(pair.method.rows[0])
            for group, column in GROUPS.items() if over in BASELINES else ():
                is_counted = pair.questions.are_of(column.types)
                gain = paired_gain(pair.differences[:, is_counted], pair.videos[is_counted], pair.seeds)
                bounds = (gain.interval.low, gain.interval.high) if gain.interval else (None, None)
                names = (block.scenario, group, over, method)
                points = tuple(gain.by_seed.values())
                found.append(Comparison(redundancy, bits, *names, gain.points, *bounds, gain.p, points))
    return found


def write_table(rows: Sequence[Accuracy | Comparison], path: Path) -> None:
    """Write a CSV file with a column per field; points by seed are separated by spaces."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(list(vars(rows[0])))
        writer.writerows([*map(_as_text, vars(row).values())] for row in rows)


def _as_text(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(map(_as_text, value))
    return "" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)


def draw(gains: Sequence[Comparison], panels: Sequence[tuple[str, str, str]], path: Path) -> None:
    """Draw the gains of all methods but the start against the mutual information.

    `panels`: (scenario, group, baseline) of each panel, row by row.
    """
    methods = sorted({gain.method for gain in gains} - {START})
    columns = len(panels) // len(SCENARIOS)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.2 * columns, 3.2 * len(SCENARIOS)), layout="constrained")
        grid = figure.subplots(len(SCENARIOS), columns, sharex=True, sharey=True, squeeze=False)
        for axes, (scenario, group, over) in zip(grid.flat, panels, strict=True):
            shown = [g for g in gains if (g.scenario, g.group, g.over) == (scenario, group, over)]
            for number, method in enumerate(methods):
                offset = 0.12 * (number - (len(methods) - 1) / 2)
                draw_method(
                    [g for g in shown if g.method == method], axes, method, COLOURS[number % len(COLOURS)], offset
                )
            axes.axhline(0, color="#8A8F98", linewidth=0.8)
            questions = "all questions" if group == "All" else f"{group} questions"
            axes.set_title(f"{scenario}, {questions}", fontsize=9)
            axes.set_ylabel(f"points over {over}")
            axes.set_xlabel("mutual information of audio and frames (bits)")
        handles = {h.get_label(): h for axes in grid.flat for h in axes.get_legend_handles_labels()[0]}
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False)
        figure.savefig(path)


def draw_method(gains: Sequence[Comparison], axes: Axes, method: str, colour: str, offset: float) -> None:
    """Draw one method's means as a line with their intervals, and its points by seed, `offset` bits to the right."""
    if not gains:
        return
    ordered = sorted(gains, key=lambda gain: gain.bits)
    at = [gain.bits + offset for gain in ordered]
    axes.plot(at, [gain.points for gain in ordered], color=colour, marker="o", markersize=4, label=method)
    for x, gain in zip(at, ordered, strict=True):
        axes.plot([x] * len(gain.by_seed), gain.by_seed, ".", color=colour, markersize=3, alpha=0.5)
        if gain.low is not None and gain.high is not None:
            axes.plot([x, x], [gain.low, gain.high], color=colour, linewidth=1)


def trend_lines(gains: Sequence[Comparison]) -> Iterator[str]:
    """Yield a Markdown table of how much the gains over a learned constant rise per bit, on each group of questions.

    The slope of a seed is the least-squares line through its gains at the levels; shown are their mean and Student's t
    interval over the seeds, for these datasets. The backbone itself answers questions about what is available.
    """
    yield f"| scenario | method | {' | '.join(GROUPS)} |"
    yield f"|---|---|{'---|' * len(GROUPS)}"
    lines = dict.fromkeys((g.scenario, g.method) for g in sorted(gains, key=lambda g: (g.scenario, g.method)))
    for scenario, method in lines:
        if method in (START, BASELINES[0]):
            continue
        cells = []
        for group in GROUPS:
            names = (scenario, method, group, BASELINES[0])
            of_levels = [gain for gain in gains if (gain.scenario, gain.method, gain.group, gain.over) == names]
            cells.append(describe_slopes(fit_slopes(of_levels)))
        yield f"| {' | '.join([scenario, method, *cells])} |"
    yield "\nPoints per bit, with 95 % intervals over the seeds (Student's t, not corrected), for these datasets."


def fit_slopes(gains: Sequence[Comparison]) -> np.ndarray:
    """Return the slope in points per bit of each seed, float [seed]; the gains are those of one line by level."""
    bits, points = [gain.bits for gain in gains], np.array([gain.by_seed for gain in gains])
    return np.polyfit(bits, points, 1)[0]


def describe_slopes(slopes: np.ndarray) -> str:
    """Return the mean of `slopes` [seed] and its interval."""
    test = stats.ttest_1samp(slopes, 0.0).confidence_interval(0.95)
    return f"{slopes.mean():+.2f} [{test.low:+.2f}, {test.high:+.2f}]"


def gain_lines(gains: Sequence[Comparison]) -> Iterator[str]:
    """Yield a Markdown table of the gains on all questions: a line per scenario, baseline and method.

    A column per level, by its bits; an interval without 0 after Holm's correction within the table is marked with *.
    """
    shown = [gain for gain in gains if gain.group == "All" and gain.method != START]
    tested = [gain.p for gain in shown if gain.p is not None]
    corrected = iter(correct_holm(tested))
    cells: dict[tuple[str, str, str], dict[float, str]] = {}
    for gain in shown:
        mark = "*" if gain.p is not None and next(corrected) < 0.05 else ""
        bounds = "" if gain.low is None else f" [{gain.low:+.1f}, {gain.high:+.1f}]"
        of_line = cells.setdefault((gain.scenario, gain.over, gain.method), {})
        of_line[gain.bits] = f"{gain.points:+.1f}{bounds}{mark}"
    levels = sorted({gain.bits for gain in shown})
    yield f"| scenario | over | method | {' | '.join(f'{bits:.1f} bits' for bits in levels)} |"
    yield f"|---|---|---|{'---|' * len(levels)}"
    for names in sorted(cells):
        yield f"| {' | '.join([*names, *(cells[names].get(bits, '–') for bits in levels)])} |"
    yield (
        "\nIn points, with 95 % intervals over seeds and videos (not corrected), on one dataset per "
        f"level. *: p < 0.05 with Holm's correction for the {len(tested)} comparisons of this table."
    )


if __name__ == "__main__":
    sys.exit(main())
