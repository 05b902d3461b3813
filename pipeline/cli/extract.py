"""`mavqa-extract`: features of raw videos into a store, resumable. The work is in `pipeline.run.coordinator`."""

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.command import (
    FAILURES_RECORDED,
    Command,
    RenamedOption,
    folder_option,
    json_option,
    plain_console,
    show_json,
)
from pipeline.errors import UserError
from pipeline.extractors.registry import EXTRACTORS, QUESTION_EXTRACTORS
from pipeline.machine import available_cores, sees_gpu
from pipeline.media.decoders.registry import DECODERS, choose_decoder, open_decoder

if TYPE_CHECKING:
    from pipeline.run.coordinator import Progress, Summary

FAILURES_SHOWN = 10
# Networks on a GPU wait for frames: several decoder processes feed one worker.
CORES_PER_GPU_WORKER = 4

FEATURES = f"Comma-separated names. Of videos: {', '.join(EXTRACTORS)}; of questions: {', '.join(QUESTION_EXTRACTORS)}."

EXAMPLES = """\b
Examples:
  mavqa-extract --dataset music-avqa
  mavqa-extract --manifest data_manifests/mine --videos ~/clips --store stores/mine.zarr
  mavqa-extract --dataset music-avqa --features clip-vit-b32,clip-vit-b32-sentence,clip-vit-b32-words
  mavqa-extract --manifest build/demo/data --videos build/demo/data/videos --store stores/trial.zarr --weights seeded
  mavqa-extract --dataset music-avqa --store s3://bucket/music-avqa.zarr --scheduler tcp://HOST:8786
"""


@click.command(cls=Command, epilog=EXAMPLES)
@click.option(
    "--dataset",
    default="music-avqa",
    show_default=True,
    help="Name of the dataset, used in the defaults of --manifest, --videos and --store.",
)
@folder_option("--manifest", "Folder of the manifest.  [default: data_manifests/DATASET]")
@folder_option("--videos", "Folder of the videos.  [default: videos in --manifest, else data/videos/DATASET]")
@click.option("--store", metavar="PATH-or-URL", help="Feature store to write.  [default: stores/DATASET.zarr]")
@click.option("--features", default="resnet18-map,vggish,tokens", show_default=True, help=FEATURES)
@click.option(
    "--weights",
    default="pretrained",
    show_default=True,
    help="Weights of the networks: pretrained (downloaded once), a folder of checkpoints, or seeded (random).",
)
@click.option(
    "--normalisation",
    type=click.Choice(["published", "trained"]),
    default="published",
    show_default=True,
    help="Preprocessing constants of the features that have a choice, such as resnet18-map: published (MUSIC-AVQA's) "
    "or trained (those of the weights).",
)
@click.option(
    "--decoder",
    default="auto",
    show_default=True,
    help=f"Video decoder: auto, {', '.join(DECODERS)}. `auto`: PyAV for a new store, the store's decoder for an "
    "existing one.",
)
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Device of the networks; `auto`: a GPU if one is available.",
)
@click.option(
    "--seconds",
    type=click.IntRange(1),
    help="Time steps per video, one per second.  [default: 60 for a new store, else the store's]",
)
@click.option(
    "--padding",
    cls=RenamedOption,
    former=("--short",),
    type=click.Choice(["pad", "cycle", "released"]),
    default="pad",
    show_default=True,
    help="How to fill time steps after the end of a short video: pad (missing), cycle (repeat the video), released "
    "(as the official script).",
)
@click.option(
    "--workers",
    type=click.IntRange(1),
    help="Number of local worker processes.  [default: one per core, on a GPU one per four cores]",
)
@click.option(
    "--decoding-processes",
    type=click.IntRange(1),
    help="Number of decoder processes of each worker.  [default: 1, on a GPU 4]",
)
@click.option("--scheduler", metavar="ADDRESS", help="Dask scheduler to use instead of local workers.")
@click.option("--break-lock", is_flag=True, help="Take over the lock that a killed run left on an object store.")
@click.option("--retry-failed", is_flag=True, help="Try failed videos again.")
@click.option(
    "--accept",
    multiple=True,
    metavar="NAME",
    help="Allow rows of NAME computed with different settings than the stored ones. Repeatable.",
)
@json_option
def extract(as_json: bool, **options: Any) -> None:
    """Extract features of a dataset's videos and questions into a feature store.

    Each video is decoded once. A run can be stopped at any time; the next run resumes it and computes only what is
    pending. Exit codes: 0 all features complete or absent, 2 invalid usage or input, 3 finished with recorded failures.
    """
    summary = _run(**options)
    if as_json:
        show_json(
            {
                "format": 1,
                "store": summary.store,
                "videos": summary.videos,
                "extracted": summary.extracted,
                "questions": summary.questions,
                "features": summary.states,
                "failures": summary.failures,
            }
        )
    else:
        _show(summary)
    if not summary.is_complete:
        sys.exit(FAILURES_RECORDED)


def _run(
    dataset: str,
    manifest: Path | None,
    videos: Path | None,
    store: str | None,
    features: str,
    weights: str,
    normalisation: Any,
    decoder: str,
    device: str,
    seconds: int | None,
    padding: Any,
    workers: int | None,
    decoding_processes: int | None,
    scheduler: str | None,
    break_lock: bool,
    retry_failed: bool,
    accept: tuple[str, ...],
) -> "Summary":
    from pipeline.manifests.manifest import load_manifest
    from pipeline.store.location import locate

    if workers and scheduler:
        raise UserError("--workers starts local workers, --scheduler uses existing ones: pass only one of them")
    loaded = load_manifest(manifest or Path("data_manifests") / dataset)
    folder = videos or _videos_folder(manifest, dataset)
    address = locate(store or Path("stores") / f"{dataset}.zarr").address
    # Slow imports, after the checks of the paths.
    from pipeline.extractors.weights import hub_cache, parse_weights
    from pipeline.run.cluster import GPU, ClusterOptions
    from pipeline.run.coordinator import RunOptions, extract
    from pipeline.run.plan import ExtractionPlan, stored_choices

    stored = stored_choices(address)
    video_features, question_features = _split_features(features)
    source = parse_weights(weights, hub_cache())
    workers_device, own_device = _devices(device, scheduler)
    cores_per_worker = CORES_PER_GPU_WORKER if workers_device == "cuda" else 1
    plan = ExtractionPlan(
        store=address,
        features=video_features,
        question_features=question_features,
        weights=source,
        decoder=_choose_decoder(decoder, stored.decoder),
        device=workers_device,
        question_device=own_device,
        seconds=seconds or stored.seconds,
        padding=padding,
        normalisation=normalisation,
        decoding_processes=decoding_processes or cores_per_worker,
    )
    label = GPU if scheduler and plan.device == "cuda" else ""
    default_workers = math.ceil(available_cores() / cores_per_worker)
    cluster = ClusterOptions(workers or default_workers, scheduler, label)
    run = RunOptions(cluster, retry_failed, accept, break_lock)
    if source.kind == "seeded":
        click.echo("weights: seeded (random networks, for trials; not comparable with published features)", err=True)
    with _progress_bars() as on_progress:
        return extract(loaded, folder.absolute(), plan, run, on_progress)


def _videos_folder(manifest: Path | None, dataset: str) -> Path:
    """Return the manifest's own folder of videos, to which `synthesize` writes, or else the dataset's default."""
    own = manifest / "videos" if manifest else None
    return own if own and own.is_dir() else Path("data/videos") / dataset


def _split_features(text: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the features of videos and those of questions in the comma-separated names `text`."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    unknown = [name for name in names if name not in EXTRACTORS and name not in QUESTION_EXTRACTORS]
    if unknown or not names:
        known = ", ".join([*EXTRACTORS, *QUESTION_EXTRACTORS])
        problem = f"unknown feature {', '.join(unknown)}" if unknown else "no feature is named"
        raise UserError(f"--features {text!r}: {problem}: choose from {known}")
    return tuple(n for n in names if n in EXTRACTORS), tuple(n for n in names if n in QUESTION_EXTRACTORS)


def _choose_decoder(requested: str, stored: str) -> str:
    """Return the name of the decoder, with `auto` resolved, and print it with the reason for the choice.

    Raises `UserError` if the requested decoder, or the store's, does not load here.
    """
    name, reason = requested, "as requested"
    if requested == "auto":
        name, reason = (stored, "the store's decoder") if stored != "auto" else choose_decoder()
    version = open_decoder(name).version()
    click.echo(f"decoder: {name}, {reason}: {version}", err=True)
    return name


def _devices(name: str, scheduler: str | None) -> tuple[str, str]:
    """Return the device of the workers, and that of this process, which computes the question features."""
    if name == "cpu":
        return name, name

    here = "cuda" if sees_gpu() else "cpu"
    if scheduler:
        from pipeline.run.cluster import GPU, offers_label

        return "cuda" if name == "cuda" or offers_label(scheduler, GPU) else "cpu", here
    if name == "cuda" and here == "cpu":
        raise UserError("--device cuda: torch finds no CUDA device here: install a driver, or pass --device cpu")
    return here, here


@contextmanager
def _progress_bars() -> Iterator[Callable[["Progress"], None]]:
    """Yield a function that shows progress, speed and remaining time on stderr, one line per unit."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        SpinnerColumn(),
        TextColumn("extracting {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[failed]}"),
    )
    bar = Bar(*columns, console=Console(stderr=True))
    task_ids = {}

    def show(progress: "Progress") -> None:
        bar.start()
        unit = progress.unit
        if unit not in task_ids:
            task_ids[unit] = bar.add_task(unit, total=None, rate="", failed="")
        task = next(task for task in bar.tasks if task.id == task_ids[unit])
        speed = task.finished_speed or task.speed
        rate = f"{speed:.1f} {unit}/s" if speed else "" if progress.total is not None else "starting workers"
        failed = f"{progress.failed} failed" if progress.failed else ""
        bar.update(task.id, completed=progress.done, total=progress.total, rate=rate, failed=failed)
        if progress.note:
            bar.console.print(progress.note, markup=False, emoji=False)

    try:
        yield show
    finally:
        bar.stop()


def _show(summary: "Summary") -> None:
    from rich.table import Table

    table = Table("feature", "complete", "absent", "failed", "pending")
    for name, counts in summary.states.items():
        table.add_row(name, *(str(counts[state]) for state in ("complete", "absent", "failed", "pending")))
    console = plain_console(stderr=True)
    console.print(table)
    for failure in summary.failures[:FAILURES_SHOWN]:
        console.print(f"failed: {failure['video_id']} ({failure['feature']}): {failure['reason']}")
    if len(summary.failures) > FAILURES_SHOWN:
        console.print(f"... and {len(summary.failures) - FAILURES_SHOWN} more: mavqa-inspect {summary.store}")
    work = f"{summary.extracted} videos extracted" if summary.extracted else "nothing to extract"
    click.echo(f"{summary.store}: {work}; {summary.videos} videos, {summary.questions} question texts", err=True)
