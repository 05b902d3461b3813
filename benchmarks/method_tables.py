"""Print how the methods of a folder of runs compare: their accuracies, or the gains of one over the baselines.

A Markdown table of the test split, with the labels, intervals and corrected p-values of `mavqa-report`. Methods
are in the order of their mean accuracy over the two scenarios with one modality missing. Nothing is trained.

    python benchmarks/method_tables.py build/demo/methods
    python benchmarks/method_tables.py build/demo/methods --gains rmm-avr-paper rmm-avr-recommended
"""

import argparse
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from statistics import mean

from pipeline.errors import UserError
from train.cli.report import find_runs
from train.evaluation.statistics import Estimate
from train.report.gains import Gain, scenario_gains
from train.report.tables import Block, Line, build_blocks
from train.report.text import percent
from train.runs.results import read_results

SPLIT = "test"
SCENARIOS = ("complete", "audio-missing", "visual-missing", "natural")
ONE_MISSING = ("audio-missing", "visual-missing")
BASELINES = ("constant-fill", "modality-dropout", "retrieval-fill")


def main() -> int:
    """Parse the options, print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="?", default=Path("build/demo/runs"), help="folder of runs")
    parser.add_argument("--gains", nargs="+", metavar="ENTRY", help="entries of the grid whose gains are printed")
    options = parser.parse_args()
    try:
        blocks = read_blocks(options.runs)
        lines = list(gain_lines(blocks, options.gains) if options.gains else accuracy_lines(blocks))
    except UserError as error:
        parser.exit(2, f"{error}\n")
    print("\n".join(lines))
    return 0


def read_blocks(folder: Path) -> dict[str, Block]:
    """Return {scenario: its block} of the runs in `folder`, in the order of `SCENARIOS`.

    Raises `UserError` if there are none, or if they answered several sets of questions.
    """
    runs = find_runs(folder)
    folders = {row.key: run for run in runs for row in read_results(run)}
    found = build_blocks([row for run in runs for row in read_results(run)], folders)
    found = [block for block in found if block.split == SPLIT and block.scenario in SCENARIOS]
    blocks = {block.scenario: block for block in found}
    if len(blocks) < len(found):
        raise UserError(f"the runs in {folder} answered several sets of questions: pass runs of one dataset")
    return {scenario: blocks[scenario] for scenario in SCENARIOS if scenario in blocks}


def accuracy_lines(blocks: dict[str, Block]) -> Iterator[str]:
    """Yield a table of accuracies in percent, with the half of their interval's width."""
    cells: dict[str, dict[str, Estimate]] = {}
    for scenario, block in blocks.items():
        for line in block.lines:
            estimate = line.cells["All"]
            if estimate is not None:
                cells.setdefault(line.label, {})[scenario] = estimate
    yield f"| method | {' | '.join(blocks)} | mean of the missing |"
    yield f"|---|{'---:|' * (len(blocks) + 1)}"
    for label, of_line in sorted(cells.items(), key=lambda item: -_mean_missing(item[1])):
        accuracies = (_describe(of_line[scenario]) if scenario in of_line else "–" for scenario in blocks)
        yield f"| {label} | {' | '.join(accuracies)} | {percent(_mean_missing(of_line))} |"


def _mean_missing(of_line: dict[str, Estimate]) -> float:
    return mean(of_line[scenario].mean for scenario in ONE_MISSING)


def _describe(cell: Estimate) -> str:
    if cell.interval is None:
        return percent(cell.mean)
    return f"{percent(cell.mean)} ± {(cell.interval.high - cell.interval.low) / 2:.1f}"


def gain_lines(blocks: dict[str, Block], entries: Sequence[str]) -> Iterator[str]:
    """Yield a table of the gains in points of the runs of grid `entries` over each of `BASELINES`.

    Raises `UserError` if an entry has no runs.
    """
    labels = {entry: _find_label(blocks.values(), entry) for entry in entries}
    baselines = {line.label for block in blocks.values() for line in block.lines if line.method in BASELINES}
    gains = scenario_gains([*blocks.values()])
    yield f"| method | over | {' | '.join(gains)} |"
    yield f"|---|---|{'---|' * len(gains)}"
    for label in labels.values():
        for baseline in sorted(baselines - {label}):
            found = [by_baseline.get(baseline, {}).get(label) for by_baseline in gains.values()]
            if any(found):
                yield f"| {label} | {baseline} | {' | '.join(map(describe_gain, found))} |"


def _find_label(blocks: Collection[Block], entry: str) -> str:
    """Return the label of the line with the runs of a grid's entry."""

    def is_of_entry(line: Line) -> bool:
        return any(row.run.rpartition("-seed")[0] == entry for row in line.rows)

    labels = {line.label for block in blocks for line in block.lines if line.role != "floor" and is_of_entry(line)}
    if len(labels) != 1:
        raise UserError(f"{len(labels)} methods have runs named {entry}-seed*: pass the name of one entry of the grid")
    return labels.pop()


def describe_gain(gain: Gain | None) -> str:
    """Describe a gain, its interval and its corrected p-value."""
    if gain is None:
        return "–"
    if gain.interval is None:
        return f"{gain.points:+.2f}"
    p = "" if gain.p_holm is None else f", p {gain.p_holm:.3f}"
    return f"{gain.points:+.2f} [{gain.interval.low:+.2f}, {gain.interval.high:+.2f}]{p}"


if __name__ == "__main__":
    sys.exit(main())
