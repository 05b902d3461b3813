"""`mavqa-demo`: the commands of both stages, one after the other, on synthetic videos."""

import shlex
from pathlib import Path

import click

from mavqa.commands import load
from pipeline.cli.command import Command, folder_option

# What becomes of `--out`, beside the videos and runs in it.
PAGE = Path("report") / "index.html"


@click.command(
    cls=Command,
    short_help="Run all stages on synthetic videos.",
    on_interrupt="what is finished is kept, run the same command again to go on",
)
@folder_option("--out", "Folder to write to.", default=Path("build/demo"), show_default=True)
@click.option("--seeds", type=click.IntRange(min=1), default=1, show_default=True, help="Number of seeds to train.")
@click.option(
    "--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Number of runs to train in parallel."
)
def demo(out: Path, seeds: int, jobs: int) -> None:
    """Run all stages on synthetic videos: generate, extract, train, compare, report.

    Renders 500 clips, extracts their features with random weights (nothing is downloaded), trains a question-only
    reference, zero-fill, modality-dropout and rmm-avr on AVST, and compares them on a page. Each command is printed
    before it is run. About five minutes on two cores, and 400 MB of disk.

    \b
    Examples:
      mavqa-demo
      mavqa-demo --out demo --seeds 3 --jobs 2
    """
    for number, words in enumerate(steps := list_steps(out, seeds, jobs), 1):
        click.secho(f"[{number}/{len(steps)}] mavqa {shlex.join(words)}", bold=True, err=True)
        name, *arguments = words
        code = load(name).main(arguments, prog_name=f"mavqa {name}", standalone_mode=False)
        if code:
            raise SystemExit(code)
    click.echo(f"open {(out / PAGE).absolute()} in a browser", err=True)


def list_steps(out: Path, seeds: int, jobs: int) -> list[list[str]]:
    """Return the words of each command after `mavqa`; every file is in the folder `out`."""
    data, store, runs = str(out / "data"), str(out / "store.zarr"), str(out / "runs")
    of_data = ["--manifest", data, "--store", store]
    extraction = [
        "--videos",
        str(out / "data" / "videos"),
        "--weights",
        "seeded",
        "--seconds",
        "3",
        "--decoder",
        "pyav",
    ]
    training = ["--out", runs, "--evaluation", str(out / "evaluation.json"), "--seeds", str(seeds), "--jobs", str(jobs)]
    return [
        ["manifest", "synthesize", "--settings", "demo", "--out", data],
        ["extract", *of_data, *extraction],
        ["sweep", "demo", *of_data, *training],
        ["report", runs, "--out", str((out / PAGE).parent)],
    ]
