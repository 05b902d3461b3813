"""`mavqa-extract`: raw videos to a feature store, resumable. The work is in `pipeline.run.coordinator`."""

import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.command import Command, RenamedOption, folder_option, json_option, plain_console, show_json
from pipeline.errors import UserError
from pipeline.extractors.registry import EXTRACTORS, QUESTION_EXTRACTORS

if TYPE_CHECKING:
    from pipeline.extractors.weights import WeightsSource
    from pipeline.run.coordinator import Progress, Summary

FAILURES_RECORDED = 3
FAILURES_SHOWN = 10
# Networks on a GPU wait for pictures: several processes decode for one copy of them.
CORES_OF_A_GPU_WORKER = 4

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
@click.option("--dataset", default="music-avqa", show_default=True, help="Gives the defaults of the next three.")
@folder_option("--manifest", "Manifest folder.  [default: data_manifests/DATASET]")
@folder_option("--videos", "Folder of the videos.  [default: data/videos/DATASET]")
@click.option("--store", metavar="PATH-or-URL", help="Feature store to write.  [default: stores/DATASET.zarr]")
@click.option("--features", default="resnet18-map,vggish,tokens", show_default=True, help=FEATURES)
@click.option(
    "--weights",
    default="pretrained",
    show_default=True,
    help="'pretrained', a folder of checkpoints, or 'seeded' (random).",
)
@click.option(
    "--normalisation",
    type=click.Choice(["published", "trained"]),
    default="published",
    show_default=True,
    help="Preprocessing constants of resnet18-map: MUSIC-AVQA's, or those that the network was trained with.",
)
@click.option(
    "--decoder",
    default="auto",
    show_default=True,
    help="auto, pyav, torchcodec, torchcodec-cuda, decord; auto: the store's own, in a new one PyAV, the best.",
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--seconds", type=click.IntRange(1), help="Steps of a video.  [default: the store's, 60 in a new one]")
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
    "--workers", type=click.IntRange(1), help="Worker processes.  [default: one a core, on a GPU one for four]"
)
@click.option(
    "--decoding-processes",
    type=click.IntRange(1),
    help="Processes of each worker that decode ahead of its networks.  [default: 1, on a GPU 4]",
)
@click.option("--scheduler", metavar="ADDRESS", help="Use this Dask scheduler instead of local workers.")
@click.option("--break-lock", is_flag=True, help="Take over the lock that a killed run left on an object store.")
@click.option("--retry-failed", is_flag=True, help="Try failed videos again.")
@click.option("--accept", multiple=True, metavar="NAME", help="Mix in a feature made with other settings, knowingly.")
@json_option
def extract(as_json: bool, **options: Any) -> None:
    """Decode each video once and store its features.

    A run may be stopped at any time: the next one goes on where it was. Nothing that is complete is made again.
    Exit codes: 0 all complete or absent, 2 wrong use or input, 3 finished with failures recorded.
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
        raise UserError("--workers starts local workers, --scheduler uses those that are there: leave one of them out")
    loaded = load_manifest(manifest or Path("data_manifests") / dataset)
    folder = videos or _videos_folder(manifest, dataset)
    address = locate(store or Path("stores") / f"{dataset}.zarr").address
    from pipeline.run.cluster import GPU, ClusterOptions
    from pipeline.run.coordinator import RunOptions, extract
    from pipeline.run.plan import ExtractionPlan, stored_choices

    known = stored_choices(address)
    video_names, question_names = _split_features(features)
    source = _weights(weights)
    workers_device, own_device = _devices(device, scheduler)
    cores_of_worker = CORES_OF_A_GPU_WORKER if workers_device == "cuda" else 1
    plan = ExtractionPlan(
        store=address,
        features=video_names,
        question_features=question_names,
        weights=source,
        decoder=_decoder(decoder, known.decoder),
        device=workers_device,
        question_device=own_device,
        seconds=seconds or known.seconds,
        padding=padding,
        normalisation=normalisation,
        decoding_processes=decoding_processes or cores_of_worker,
    )
    label = GPU if scheduler and plan.device == "cuda" else ""
    usual = math.ceil(_available_cores() / cores_of_worker)
    cluster = ClusterOptions(workers or usual, scheduler, label)
    run = RunOptions(cluster, retry_failed, accept, break_lock)
    if source.kind == "seeded":
        click.echo("weights: seeded (random networks, for trials; not comparable with published features)", err=True)
    with _progress() as on_progress:
        return extract(loaded, folder.absolute(), plan, run, on_progress)


def _videos_folder(manifest: Path | None, dataset: str) -> Path:
    """Return the folder beside a manifest's files, where `synthesize` puts clips, or the dataset's usual one."""
    beside = manifest / "videos" if manifest else None
    return beside if beside and beside.is_dir() else Path("data/videos") / dataset


def _split_features(text: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    unknown = [name for name in names if name not in EXTRACTORS and name not in QUESTION_EXTRACTORS]
    if unknown or not names:
        known = ", ".join([*EXTRACTORS, *QUESTION_EXTRACTORS])
        raise UserError(f"--features {text!r}: {', '.join(unknown) or 'no name'} is no feature: choose from {known}")
    return tuple(n for n in names if n in EXTRACTORS), tuple(n for n in names if n in QUESTION_EXTRACTORS)


def _available_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _decoder(asked: str, stored: str) -> str:
    """Return the name of a decoder that loads here, `auto` resolved; say which it is and why.

    Raises `UserError` where the decoder asked for, or the store's own, does not load here.
    """
    from pipeline.media.decoders.registry import choose_decoder, open_decoder

    name, why = asked, "as asked for"
    if asked == "auto":
        name, why = (stored, "the store's own") if stored != "auto" else choose_decoder()
    version = open_decoder(name).version()
    click.echo(f"decoder: {name}, {why}: {version}", err=True)
    return name


def _weights(text: str) -> "WeightsSource":
    from pipeline.extractors.weights import hub_cache, parse_weights

    return parse_weights(text, hub_cache())


def _devices(name: str, scheduler: str | None) -> tuple[str, str]:
    """Return the device of the workers, and of this process, which makes the questions' features."""
    if name == "cpu":
        return name, name
    from pipeline.run.devices import sees_gpu

    here = "cuda" if sees_gpu() else "cpu"
    if scheduler:
        from pipeline.run.cluster import GPU, offers_label

        return "cuda" if name == "cuda" or offers_label(scheduler, GPU) else "cpu", here
    if name == "cuda" and here == "cpu":
        raise UserError("--device cuda: torch sees no CUDA device here: install a driver, or use --device cpu")
    return here, here


@contextmanager
def _progress() -> Iterator[Callable[["Progress"], None]]:
    """Give a function that draws what is done, how fast and the time left on stderr, a line for each unit."""
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
    lines = {}

    def show(progress: "Progress") -> None:
        bar.start()
        unit = progress.unit
        if unit not in lines:
            lines[unit] = bar.add_task(unit, total=None, rate="", failed="")
        task = next(task for task in bar.tasks if task.id == lines[unit])
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
    did = f"{summary.extracted} videos extracted" if summary.extracted else "nothing was left to extract"
    click.echo(f"{summary.store}: {did}; {summary.videos} videos, {summary.questions} question texts", err=True)
