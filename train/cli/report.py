"""`mavqa-report`: compare evaluated runs in tables and on one page."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from pipeline.cli.command import folder_option, json_option, plain_console, show_json
from pipeline.cli.progress import show_progress
from pipeline.errors import UserError
from train.cli.options import RecordingCommand


@click.command(cls=RecordingCommand, short_help="Compare evaluated runs in tables and on one page.")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@folder_option("--out", "Folder to write the page, tables and CSV files to.  [required without --power]")
@click.option(
    "--power",
    is_flag=True,
    help="Instead of the report, print how the gains vary over seeds and videos, and the seeds and questions that a "
    "gain of one and of three points needs.",
)
@json_option
def report(runs: tuple[Path, ...], out: Path | None, power: bool, as_json: bool) -> None:
    """Compare evaluated RUNS in tables and on one self-contained page.

    Each of RUNS is a run folder or a folder of runs. Seeds of the same method are pooled. Writes index.html, tables.md,
    tables.tex, results.csv and gains.csv.

    \b
    Examples:
      mavqa-report runs/avst-rmm-avr-0 runs/avst-zero-fill-0 --out report
      mavqa-report build/demo/runs --out build/demo/report
      mavqa-report build/demo/methods --power
    """
    if power == (out is not None):
        raise UserError("pass --out with a folder for the report, or --power, which writes no files")
    found = [run for folder in runs for run in find_runs(folder)]
    if out is None:
        _print_power(found, as_json)
    else:
        _write_report(found, out, as_json)


def _write_report(runs: list[Path], out: Path, as_json: bool) -> None:
    from train.report.page import write_report

    with show_progress() as progress:
        progress.update("report", 0, None, "runs", f"comparing {len(runs)} runs")
        page = write_report(runs, out)
    if as_json:
        show_json({"format": 1, "page": str(page), "runs": [str(run) for run in runs]})
    else:
        click.echo(f"report: {page}", err=True)


def _print_power(runs: list[Path], as_json: bool) -> None:
    from train.report.power_table import find_comparisons, to_document

    with show_progress() as progress:
        progress.update("power", 0, None, "runs", f"comparing {len(runs)} runs")
        document = to_document(find_comparisons(runs))
    if as_json:
        show_json(document)
    else:
        _show_power(document)


def _show_power(document: Mapping[str, Any]) -> None:
    """Print the document of `train.report.power_table` to stderr: a table per dataset, split and scenario."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    console = plain_console(stderr=True)
    power, significance = (f"{100 * document[name]:.0f} %" for name in ("power", "significance"))
    console.print(
        "SD: standard deviation of the gain over seeds, over videos, and of a seed on a video (residual), in points. "
        f"Then what a gain needs to be found with {power} power, two-sided at {significance}: the seeds on these "
        "questions, and the questions for a number of seeds; – where no number is enough."
    )
    tables: dict[str, Table] = {}
    for found in document["comparisons"]:
        title = "{dataset} {release}, {split}: {scenario}".format(**found)
        if title not in tables:
            tables[title] = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
            for head in ("over", "method"):
                tables[title].add_column(head, no_wrap=True)
            of_needs = [
                head
                for need in found["needs"]
                for head in (
                    f"{need['points']:g} pt:\nseeds",
                    *(f"questions,\n{seeds} seeds" for seeds in need["questions_by_seeds"]),
                )
            ]
            for head in ("gain", "seeds", "questions", "SD\nseed", "SD\nvideo", "SD\nresidual", *of_needs):
                tables[title].add_column(head, justify="right", vertical="bottom")
        tables[title].add_row(*_power_cells(found))
    for table in tables.values():
        console.print(table)


def _power_cells(found: Mapping[str, Any]) -> list[str]:
    needs = [
        "–" if number is None else f"{number:,}"
        for need in found["needs"]
        for number in (need["seeds_on_these_questions"], *need["questions_by_seeds"].values())
    ]
    counts = [f"{found[name]:,}" for name in ("seeds", "questions")]
    deviations = [f"{deviation:.2f}" for deviation in found["deviations"].values()]
    return [found["over"], found["method"], f"{found['points']:+.2f}", *counts, *deviations, *needs]


def find_runs(folder: Path) -> list[Path]:
    """Return `folder` if it has results, then the evaluated runs in it, sorted.

    Raises `UserError` if there are none.
    """
    runs = [
        path.parent for path in (folder / "results.jsonl", *sorted(folder.glob("*/results.jsonl"))) if path.is_file()
    ]
    if not runs:
        raise UserError(f"{folder} contains no evaluated run: evaluate one with 'mavqa-evaluate RUN'")
    return runs
