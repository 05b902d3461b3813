"""`mavqa-report`: tables and one page out of evaluated runs. It only parses options and shows the path."""

from pathlib import Path

import click

from pipeline.cli.command import Command, folder_option
from pipeline.errors import UserError


@click.command(cls=Command)
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@folder_option("--out", "Folder for index.html, tables.md, results.csv and gains.csv.", required=True)
def report(runs: tuple[Path, ...], out: Path) -> None:
    """Compare evaluated RUNS on one self-contained page.

    A folder that is no run stands for the runs in it. Seeds of the same method are pooled.

    \b
    Examples:
      mavqa-report runs/avst-rmm-avr-0 runs/avst-zero-fill-0 --out report
      mavqa-report build/demo/runs --out build/demo/report
    """
    from train.report.page import write_report

    page = write_report([run for folder in runs for run in find_runs(folder)], out)
    click.echo(f"report: {page}", err=True)


def find_runs(folder: Path) -> list[Path]:
    """Return `folder` if it is an evaluated run, else the evaluated runs in it, sorted.

    Raises `UserError` where there is none.
    """
    if (folder / "results.jsonl").is_file():
        return [folder]
    runs = sorted(path.parent for path in folder.glob("*/results.jsonl"))
    if not runs:
        raise UserError(f"{folder} holds no evaluated run: evaluate one with 'mavqa-evaluate RUN'")
    return runs
