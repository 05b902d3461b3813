"""Shared parts of the commands of stage two: options, checks of their inputs, tables and progress on stderr."""

import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.command import Command, Decorator, complete_names, folder_option, plain_console
from pipeline.cli.progress import Progress, show_progress
from pipeline.errors import UserError
from pipeline.manifests.sources.registry import SOURCES
from train.data.loading import CACHES, LoadingSettings
from train.training.tracking import TRACKERS

if TYPE_CHECKING:
    from train.asking.answerer import Answerer
    from train.data.feature_bank import FeatureBank
    from train.training.sweep import RunProgress

# What the table adds to a split that the run's training used.
_NOTES = {"": "", "selection": " (the epoch was selected on it)", "training": " (trained on it)"}


def store_option(default: str) -> Decorator:
    """Return the option for a feature store with the described default."""
    return click.option("--store", metavar="PATH-or-URL", help=f"Feature store.  [default: {default}]")


_LOADING = (
    click.option(
        "--cache",
        type=click.Choice(CACHES),
        default="auto",
        show_default=True,
        help="Where decoded features are kept: in memory, on the device, on disk in files that runs share, or none. "
        "auto: on a GPU if it has room, else in memory, else on disk.",
    ),
    folder_option("--cache-dir", "Folder in which --cache disk puts STORE.cache.  [default: beside the store]"),
    click.option(
        "--memory-limit",
        metavar="GB",
        type=click.FloatRange(min=0),
        help="Largest size of the features that are kept in memory.  [default: half of what is free]",
    ),
    click.option(
        "--workers",
        type=click.IntRange(min=0),
        default=LoadingSettings.workers,
        show_default=True,
        help="Threads that gather batches ahead of the training step.",
    ),
)

_FEATURES = (
    click.option(
        "--device",
        default="auto",
        show_default=True,
        help="Device to run on: cpu, cuda, or auto (that of the training's features if it is available, else cpu).",
    ),
    click.option(
        "--weights",
        help="Weights of the feature networks: pretrained, seeded or a folder of checkpoints; they must be those of "
        "the training.  [default: seeded if the training's were, else pretrained]",
    ),
    store_option("none; for runs that did not record how their features were extracted, and whose store is gone"),
)

device_option = click.option(
    "--device", default="auto", show_default=True, help="Device to run on: cpu, cuda, or auto (a GPU if available)."
)


tracker_option = click.option(
    # Not `--log`: torchrun refuses it as an abbreviation of its own `--log-dir`, also after the program's name.
    "--tracker",
    "trackers",
    multiple=True,
    metavar="NAME",
    shell_complete=complete_names(TRACKERS),
    help=f"Record the losses and the learning rate of the training steps: {', '.join(TRACKERS)}. Repeatable.",
)


class RecordingCommand(Command):
    """A command that records its arguments in JSON: they, and the working directory, must be UTF-8."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments. Raises `UserError` if one of them is not UTF-8."""
        given = list(args)
        rest = super().parse_args(ctx, args)
        for text in (*given, os.getcwd()):
            try:
                text.encode()
            except UnicodeEncodeError:
                raise UserError(f"{text!r} is not UTF-8, in which runs record paths and names: rename it") from None
        return rest


def loading_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of how features are read to a command, which gets them as `loading`."""

    @wraps(command)
    def with_loading(
        *arguments: Any,
        cache: Any,
        cache_dir: Path | None,
        memory_limit: float | None,
        workers: int,
        **settings: Any,
    ) -> Any:
        if memory_limit is not None and not math.isfinite(memory_limit):
            raise UserError(f"--memory-limit {memory_limit} is no size: pass a number of GB")
        memory_bytes = None if memory_limit is None else round(memory_limit * 1e9)
        loading = LoadingSettings(cache, memory_bytes, cache_dir and cache_dir.absolute(), workers)
        return command(*arguments, loading=loading, **settings)

    added: Callable[..., Any] = with_loading
    for option in reversed(_LOADING):
        added = option(added)
    return added


def features_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of how the features of new videos are computed: `device`, `weights` and `store`."""
    for option in reversed(_FEATURES):
        command = option(command)
    return command


@contextmanager
def open_answerer(
    run: Path, shown: Progress, device: str, weights: str | None, store: str | None
) -> "Iterator[Answerer]":
    """Yield the `Answerer` of `run`; downloads of weights are shown."""
    from train.asking.answerer import Answerer
    from train.runs.folder import load_run

    def show_download(file: str, done: int, total: int) -> None:
        shown.update(f"download {file}", done // 10**6, (total or done) // 10**6, "MB")

    method, config = load_run(run, "cpu" if device == "auto" else device)
    opened = Answerer(run, method, config, device=device, weights=weights, store=store, on_download=show_download)
    with opened as answerer:
        yield answerer


def require_store(store: str, manifest: Path) -> str:
    """Return the address of `store`, which is valid from every working directory.

    Raises `UserError` with the command that creates it for `manifest` if it is missing, and if it is something else.
    """
    from pipeline.store.location import has_store, locate

    place = locate(store)
    if not has_store(place):
        found = place.names()
        if Path(place.address).is_file() or (found and "zarr.json" not in found):  # with it, a creation was stopped
            raise UserError(f"{store} is not a feature store: pass one that mavqa-extract created (--store)")
        raise UserError(
            f"feature store {store} is missing: create it with 'mavqa-extract --manifest {manifest} --store {store}', "
            "or pass another --store"
        )
    return place.address


def require_manifest(manifest: Path) -> Path:
    """Return `manifest`. Raises `UserError` with the command that builds it if it is missing."""
    if not (manifest / "dataset.toml").is_file():
        of_dataset = f" {manifest.name}" if manifest.name in SOURCES else ""
        raise UserError(
            f"manifest {manifest} is missing: build it with 'mavqa-manifest build{of_dataset}' (see its --help), "
            "or pass another --manifest"
        )
    return manifest


def require_run(run: Path) -> Path:
    """Return `run`. Raises `UserError` if it is not a run folder."""
    if not (run / "config.json").is_file():
        raise UserError(f"{run} is not a run folder (it has no config.json): pass one created by mavqa-train")
    return run


def show_scenarios(documents: Mapping[str, Mapping[str, Any]]) -> None:
    """Print a table of {run: document of mavqa-evaluate} to stderr: overall accuracies in percent by scenario.

    The question-only floor differs between seeds and is printed only for a single run.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    scenarios = list(dict.fromkeys(name for document in documents.values() for name in document["scenarios"]))
    splits = {f"{document['split']}{_NOTES[document['seen_in_training']]}" for document in documents.values()}
    title = f"Overall accuracy, %, {', '.join(sorted(splits))}"
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    table.add_column("", no_wrap=True)
    for name in scenarios:
        table.add_column(name.replace("-", "\n", 1), justify="right", vertical="bottom")
    for run, document in documents.items():
        cells = (document["scenarios"].get(name) for name in scenarios)
        table.add_row(run, *("–" if cell is None else f"{cell['overall']:.2f}" for cell in cells))
    table.add_section()
    for name, value in next(iter(documents.values()))["floors"].items():
        if value is not None and (len(documents) == 1 or name != "question_only"):
            table.add_row(f"floor: {name.replace('_', ' ')}", f"{value:.2f}", style="dim")
    plain_console(stderr=True).print(table)


def show_reliability(document: Mapping[str, Any]) -> None:
    """Print to stderr the expected calibration errors of the entry "reliability" of `mavqa-evaluate`."""
    calibrated_on = document["calibrated_on"]
    click.echo("Expected calibration error, percentage points", err=True)
    for scenario, found in document["scenarios"].items():
        after = ""
        if found["calibrated_error"] is not None:
            temperature = found["temperature"]
            at = "" if temperature is None else f" at temperature {temperature:.2f}"
            after = f", calibrated {found['calibrated_error']:.2f}{at}"
        click.echo(f"  {scenario}: {found['error']:.2f}{after}", err=True)
    if calibrated_on is None:
        click.echo("  not calibrated: split val has no question to calibrate on", err=True)
    else:
        click.echo(f"  calibrated on {calibrated_on['questions']:,} questions of {calibrated_on['split']}", err=True)


def report_unanswerable(document: Mapping[str, Any]) -> None:
    """Print to stderr how many questions are in no scenario, and how many cannot be answered, if there are any.

    `document`: that of `mavqa-evaluate`.
    """
    if questions := document["left_out"]:
        click.echo(f"{questions:,} questions are in no scenario: their videos could not be extracted", err=True)
    if unknown := document["unknown_answers"]:
        scenario, first = next(iter(document["scenarios"].items()))
        click.echo(
            f"{unknown:,} of {first['questions']:,} questions in {scenario} have answers that the run does not know: "
            "they count as wrong",
            err=True,
        )


@contextmanager
def runs_progress(bank: "FeatureBank", runs: int = 1) -> "Iterator[Callable[[str, RunProgress], None]]":
    """Yield a function of (run's name, its progress, or None at its end) that shows runs on stderr.

    A run is trained, then evaluated; before, the features of `bank` are cached, and files on disk are announced. Losses
    are means over the epoch so far; the accuracies are those of the last validation.
    """
    from train.evaluation.predict import EvaluationProgress

    with show_progress() as shown:

        def show_caching(feature: str, place: str, done: int, total: int) -> None:
            if done == 0 and place.startswith("disk"):
                shown.write(f"caching {feature} on {place}")
            task = f"cache {feature} ({place})"
            shown.update(task, done, total, "videos")
            if done == total:
                shown.finish(task)

        bank.on_caching = show_caching
        scores: dict[str, list[str]] = {}
        ended: list[str] = []
        if runs > 1:
            shown.update("sweep", 0, runs, "runs")

        def update(run: str, progress: "RunProgress") -> None:
            if isinstance(progress, EvaluationProgress):
                shown.finish(run)
                shown.update(f"evaluate {run}", progress.done, progress.total, "answers")
                return
            if progress is None:
                ended.append(run)
                shown.finish(run)
                shown.finish(f"evaluate {run}")
                if runs > 1:
                    shown.update("sweep", len(ended), runs, "runs")
                return
            if progress.validation is not None:
                scores[run] = [f"val {name} {accuracy:.2f}" for name, accuracy in progress.validation.items()]
            loss = progress.losses.get("total", float("nan"))
            detail = [f"epoch {progress.epoch}/{progress.epochs}", f"loss {loss:.3f}", *scores.get(run, [])]
            done = (progress.epoch - 1) * progress.steps + progress.step
            shown.update(run, done, progress.epochs * progress.steps, "steps", ", ".join(detail))

        yield update
