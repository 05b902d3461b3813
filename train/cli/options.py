"""What the commands of stage two share: inputs that must be there, tables and progress on stderr."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from pipeline.cli.command import Decorator, plain_console
from pipeline.errors import UserError
from pipeline.manifests.sources.registry import SOURCES

device_option = click.option(
    "--device", default="auto", show_default=True, help="cpu, cuda, or auto: a GPU if there is one."
)


def store_option(default: str) -> Decorator:
    """Return the option that takes a feature store, a folder or a URL."""
    return click.option("--store", metavar="PATH-or-URL", help=f"Feature store.  [default: {default}]")


def require_store(store: str, dataset: str) -> str:
    """Return `store`, or raise `UserError` saying which command fills it."""
    from pipeline.store.location import has_store, locate

    if not has_store(locate(store)):
        get = f"run 'mavqa-extract --dataset {dataset}', or give" if dataset in SOURCES else "name one with"
        raise UserError(f"feature store {store} is missing: {get} --store")
    return store


def require_manifest(manifest: Path, dataset: str) -> Path:
    """Return `manifest`, or raise `UserError` saying which command builds it."""
    if not (manifest / "dataset.toml").is_file():
        command = f"mavqa-manifest build {dataset} --out {manifest}"
        build = f"run '{command}', or give" if dataset in SOURCES else "name one with"
        raise UserError(f"manifest {manifest} is missing: {build} --manifest")
    return manifest


def require_run(run: Path) -> Path:
    """Return `run`, or raise `UserError` where it is no run folder."""
    if not (run / "config.json").is_file():
        raise UserError(f"run {run} is no run folder (it has no config.json): name one that mavqa-train made")
    return run


def show_scenarios(documents: Mapping[str, Mapping[str, Any]]) -> None:
    """Draw {run: document of mavqa-evaluate} on stderr: overall accuracies in percent by scenario.

    The question-only floor differs by seed, so it is drawn for a single run alone.
    """
    from rich.box import SIMPLE_HEAD
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
    plain_console(stderr=True).print(table)


def report_left_out(questions: int) -> None:
    """Say on stderr that `questions` are asked in no scenario, where there are any."""
    if questions:
        click.echo(f"{questions} questions are on videos that could not be extracted: no scenario asks them", err=True)


@contextmanager
def training_progress() -> Iterator[Callable[[str, Any], None]]:
    """Give a function of (run's name, `train.training.fit.Progress`) that draws on stderr while the block runs.

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
