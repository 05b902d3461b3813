"""Print how the methods of a folder of runs compare: their accuracies, the gains of some, or what finding these takes.

A Markdown table of the test split, with the labels and intervals of `mavqa-report`; p is corrected for all comparisons
of the table. Methods are in the order of their mean accuracy over the two scenarios with one modality missing. Nothing
is trained.

    python benchmarks/method_tables.py build/demo/methods
    python benchmarks/method_tables.py build/demo/methods --gains rmm-avr-paper rmm-avr-recommended
    python benchmarks/method_tables.py build/demo/methods --power rmm-avr-recommended
"""

import argparse
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from statistics import mean

from pipeline.errors import UserError
from train.cli.report import find_runs
from train.evaluation.statistics import Estimate, correct_holm
from train.report.gains import Gain, scenario_gains
from train.report.power_table import Comparison, find_comparisons
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
    parser.add_argument("--power", metavar="ENTRY", help="entry of the grid: what it takes to find its gains")
    options = parser.parse_args()
    try:
        blocks = read_blocks(options.runs)
        if options.power:
            lines = [*power_lines(blocks, options.power, find_comparisons(find_runs(options.runs)))]
        else:
            lines = [*(gain_lines(blocks, options.gains) if options.gains else accuracy_lines(blocks))]
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
    """Yield a table of accuracies in percent, with half of the width of an interval over seeds and videos."""
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
    yield "\n±: half the 95 % interval over seeds and videos; without it, none is estimated."


def _mean_missing(of_line: dict[str, Estimate]) -> float:
    return mean(of_line[scenario].mean for scenario in ONE_MISSING)


def _describe(cell: Estimate) -> str:
    if cell.interval is None or cell.interval.over != "seeds and videos":
        return percent(cell.mean)
    return f"{percent(cell.mean)} ± {(cell.interval.high - cell.interval.low) / 2:.1f}"


def gain_lines(blocks: dict[str, Block], entries: Sequence[str]) -> Iterator[str]:
    """Yield a table of the gains in points of the runs of grid `entries` over each of `BASELINES`.

    Raises `UserError` if an entry has no runs.
    """
    labels = [_find_label(blocks.values(), entry) for entry in entries]
    baselines = {line.label for block in blocks.values() for line in block.lines if line.method in BASELINES}
    gains = scenario_gains([*blocks.values()])
    pairs = [(label, baseline) for label in labels for baseline in sorted(baselines - {label})]
    rows = {
        (label, baseline): [by_baseline.get(baseline, {}).get(label) for by_baseline in gains.values()]
        for label, baseline in pairs
    }
    rows = {pair: found for pair, found in rows.items() if any(found)}
    tested = [gain.p for found in rows.values() for gain in found if gain is not None and gain.p is not None]
    corrected = iter(correct_holm(tested))
    yield f"| method | over | {' | '.join(gains)} |"
    yield f"|---|---|{'---|' * len(gains)}"
    for pair, found in rows.items():
        yield f"| {' | '.join([*pair, *(_describe_gain(gain, corrected) for gain in found)])} |"
    yield f"\nIn points, with 95 % intervals; p with Holm's correction for the {len(tested)} comparisons of this table."


def power_lines(blocks: dict[str, Block], entry: str, comparisons: Sequence[Comparison]) -> Iterator[str]:
    """Yield a table of the standard deviations of the gains of a grid's `entry`, and of what finding them takes."""
    label = _find_label(blocks.values(), entry)
    yield "| scenario | over | seeds | videos | residual | seeds for 1 point | for 3 | questions for 3, five seeds |"
    yield f"|---|---|{'---:|' * 6}"
    for found in comparisons:
        if found.method != label or found.block.scenario not in ONE_MISSING or found.block.split != SPLIT:
            continue
        deviations = (found.parts.of_seeds, found.parts.of_videos, found.parts.of_residual)
        numbers = (found.seeds_for(1.0), found.seeds_for(3.0), found.questions_for(3.0, 5))
        cells = [
            *(f"{variance**0.5:.1f}" for variance in deviations),
            *("–" if n is None else f"{n:,}" for n in numbers),
        ]
        yield f"| {' | '.join([found.block.scenario, found.over, *cells])} |"
    yield f"\nGains of {label}. Standard deviations in points. –: no number is enough."


def _find_label(blocks: Collection[Block], entry: str) -> str:
    """Return the label of the line with the runs of a grid's entry."""

    def is_of_entry(line: Line) -> bool:
        return any(row.run.rpartition("-seed")[0] == entry for row in line.rows)

    labels = {line.label for block in blocks for line in block.lines if line.role != "floor" and is_of_entry(line)}
    if len(labels) != 1:
        raise UserError(f"{len(labels)} methods have runs named {entry}-seed*: pass the name of one entry of the grid")
    return labels.pop()


def _describe_gain(gain: Gain | None, corrected: Iterator[float]) -> str:
    """Describe a gain, its interval, and the next of the `corrected` p-values, which are of gains with an interval."""
    if gain is None:
        return "–"
    if gain.interval is None:
        return f"{gain.points:+.2f}"
    p = next(corrected)
    shown = "p < 0.001" if p < 0.001 else f"p {p:.3f}"
    return f"{gain.points:+.2f} [{gain.interval.low:+.2f}, {gain.interval.high:+.2f}], {shown}"


if __name__ == "__main__":
    sys.exit(main())
