"""What the commands of stage two share: exit codes, options, JSON on stdout, progress on stderr."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from pipeline.failure import UserError

Decorator = Callable[[Any], Any]


# What the operating system refuses: a place that cannot be written or is no folder. The message names it.
NOT_OURS = (PermissionError, NotADirectoryError, FileExistsError, IsADirectoryError)


class InputError(click.ClickException):
    """A mistake that the user can mend: one line on stderr, exit code 2."""

    exit_code = 2


class Command(click.Command):
    """A command that a mistake of the user ends with one line on stderr and exit code 2."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except (UserError, *NOT_OURS) as error:
            raise InputError(" ".join(str(error).split())) from None


def folder_option(name: str, text: str, **settings: Any) -> Decorator:
    """Return an option that takes a folder, there or not."""
    return click.option(name, type=click.Path(file_okay=False, path_type=Path), help=text, **settings)


def file_option(name: str, text: str, **settings: Any) -> Decorator:
    """Return an option that takes a file, there or not."""
    return click.option(name, type=click.Path(dir_okay=False, path_type=Path), help=text, **settings)


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
device_option = click.option(
    "--device", default="auto", show_default=True, help="cpu, cuda, or auto: a GPU if there is one."
)


def existing_store(store: Path, dataset: str) -> Path:
    """Return `store`, or raise `UserError` saying which command fills it."""
    if not store.is_dir():
        raise UserError(f"feature store {store} is missing: run 'make extract DATASET={dataset}', or give --store")
    return store


def existing_manifest(manifest: Path, dataset: str) -> Path:
    """Return `manifest`, or raise `UserError` saying which command builds it."""
    if not (manifest / "dataset.toml").is_file():
        raise UserError(
            f"manifest {manifest} is missing: run 'mavqa-manifest build {dataset} --out {manifest}', or give --manifest"
        )
    return manifest


def existing_run(run: Path) -> Path:
    """Return `run`, or raise `UserError` where it is no run folder."""
    if not (run / "config.json").is_file():
        raise UserError(f"run {run} is no run folder (it has no config.json): name one that mavqa-train made")
    return run


def show_json(document: Any) -> None:
    """Write `document` to stdout as the one JSON document of a command."""
    click.echo(json.dumps(document, ensure_ascii=False, indent=2))


def show_scenarios(documents: Mapping[str, Mapping[str, Any]]) -> None:
    """Draw {run: document of mavqa-evaluate} on stderr: overall accuracies in percent by scenario.

    The question-only floor differs by seed, so it is drawn for a single run alone.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    scenarios = list(dict.fromkeys(name for document in documents.values() for name in document["scenarios"]))
    table = Table(title="Overall accuracy, %", title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    table.add_column("", no_wrap=True)
    for name in scenarios:
        table.add_column(name.replace("-", "\n", 1), justify="right", vertical="bottom")
    for run, document in documents.items():
        table.add_row(run, *(_overall(document["scenarios"].get(name)) for name in scenarios))
    table.add_section()
    for name, value in next(iter(documents.values()))["floors"].items():
        if value is not None and (len(documents) == 1 or name != "question_only"):
            table.add_row(f"floor: {name.replace('_', ' ')}", f"{value:.2f}", style="dim")
    Console(stderr=True).print(table)


@contextmanager
def training_progress() -> Iterator[Callable[[str, Any], None]]:
    """Give a function of (run's name, `train.fit.Progress`) that draws on stderr while the block runs.

    A terminal gets a bar per run; anything else gets one line per epoch.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        tasks: dict[str, Any] = {}

        def update(run: str, said: Any) -> None:
            if run not in tasks:
                tasks[run] = bars.add_task(run, total=said.epochs * said.steps)
            text = f"{run}  epoch {said.epoch}/{said.epochs}  loss {said.losses.get('total', float('nan')):.3f}"
            bars.update(tasks[run], completed=(said.epoch - 1) * said.steps + said.step, description=text)
            if said.validation is not None and not console.is_terminal:
                click.echo(f"{text}  {_validation(said.validation)}", err=True)

        yield update


def _validation(accuracies: Mapping[str, float]) -> str:
    return "  ".join(f"val {scenario} {accuracy:.2f}" for scenario, accuracy in accuracies.items())


def _overall(scenario: Mapping[str, Any] | None) -> str:
    return "–" if scenario is None else f"{scenario['overall']:.2f}"
