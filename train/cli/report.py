"""`mavqa-report`: compare evaluated runs in tables and on one page."""

from pathlib import Path

import click

from pipeline.cli.command import folder_option, json_option, show_json
from pipeline.cli.progress import show_progress
from pipeline.errors import UserError
from train.cli.options import RecordingCommand


@click.command(cls=RecordingCommand, short_help="Compare evaluated runs in tables and on one page.")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@folder_option("--out", "Folder to write the page, tables and CSV files to.", required=True)
@json_option
def report(runs: tuple[Path, ...], out: Path, as_json: bool) -> None:
    """Compare evaluated RUNS in tables and on one self-contained page.

    Each of RUNS is a run folder or a folder of runs. Seeds of the same method are pooled. Writes index.html, tables.md,
    tables.tex, results.csv and gains.csv.

    \b
    Examples:
      mavqa-report runs/avst-rmm-avr-0 runs/avst-zero-fill-0 --out report
      mavqa-report build/demo/runs --out build/demo/report
    """
    from train.report.page import write_report

    found = [run for folder in runs for run in find_runs(folder)]
    with show_progress() as progress:
        progress.update("report", 0, None, "runs", f"comparing {len(found)} runs")
        page = write_report(found, out)
    if as_json:
        show_json({"format": 1, "page": str(page), "runs": [str(run) for run in found]})
    else:
        click.echo(f"report: {page}", err=True)


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
