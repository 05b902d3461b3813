"""`mavqa-extract`: features of raw videos into a store, resumable. The work is in `pipeline.run.coordinator`."""

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.command import (
    FAILURES_RECORDED,
    Command,
    RenamedOption,
    complete_folders,
    complete_names,
    folder_option,
    json_option,
    plain_console,
    plain_name,
    show_json,
)
from pipeline.cli.progress import Progress, show_progress
from pipeline.extractors.registry import DEFAULT_FEATURES, EXTRACTORS, QUESTION_EXTRACTORS
from pipeline.media.decoders.registry import DECODERS

if TYPE_CHECKING:
    from pipeline.run.coordinator import Progress as RunProgress
    from pipeline.run.coordinator import Summary

FAILURES_SHOWN = 10

FEATURES = f"Comma-separated names. Of videos: {', '.join(EXTRACTORS)}; of questions: {', '.join(QUESTION_EXTRACTORS)}."

EXAMPLES = """\b
Examples:
  mavqa-extract --dataset music-avqa
  mavqa-extract --manifest data_manifests/mine --videos ~/clips --store stores/mine.zarr
  mavqa-extract --dataset music-avqa --features clip-vit-b32,clip-vit-b32-sentence,clip-vit-b32-words
  mavqa-extract --manifest build/demo/data --videos build/demo/data/videos --store stores/trial.zarr --weights seeded
  mavqa-extract --dataset music-avqa --store s3://bucket/music-avqa.zarr --scheduler tcp://HOST:8786
"""


@click.command(
    cls=Command,
    short_help="Decode each video once and store its features.",
    epilog=EXAMPLES,
    on_interrupt="the store keeps what is done, run the same command again to resume",
)
@click.option(
    "--dataset",
    default="music-avqa",
    show_default=True,
    shell_complete=complete_folders("data_manifests"),
    callback=plain_name,
    help="Name of the dataset, used in the defaults of --manifest, --videos and --store.",
)
@folder_option("--manifest", "Folder of the manifest.  [default: data_manifests/DATASET]")
@folder_option("--videos", "Folder of the videos.  [default: videos in the manifest, else data/videos/DATASET]")
@click.option("--store", metavar="PATH-or-URL", help="Feature store to write.  [default: stores/DATASET.zarr]")
@click.option(
    "--features",
    default=",".join(DEFAULT_FEATURES),
    show_default=True,
    shell_complete=complete_names([*EXTRACTORS, *QUESTION_EXTRACTORS], separator=","),
    help=FEATURES,
)
@click.option(
    "--weights",
    default="pretrained",
    show_default=True,
    help="Weights of the networks: pretrained (downloaded once), a folder of checkpoints, or seeded (random).",
)
@click.option(
    "--normalisation",
    type=click.Choice(["published", "trained"]),
    help="Preprocessing constants of the features that have a choice, such as resnet18-map: published (MUSIC-AVQA's) "
    "or trained (those of the weights).  [default: published for a new store, else the store's]",
)
@click.option(
    "--audio",
    type=click.Choice(["resampled", "released"]),
    help="Waveform of the features that have a choice, such as vggish: resampled (with a low-pass filter) or released "
    "(as moviepy wrote it for the official features, for imported checkpoints).  [default: resampled for a new store, "
    "else the store's]",
)
@click.option(
    "--decoder",
    default="auto",
    show_default=True,
    shell_complete=complete_names(["auto", *DECODERS]),
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
    help="How to fill time steps after the end of a short video: pad (missing), cycle (repeat the video), released "
    "(as the official script).  [default: pad for a new store, else the store's]",
)
@click.option(
    "--workers",
    type=click.IntRange(1),
    help="Number of local worker processes.  [default: one per core; with GPUs one per four cores, at least one per "
    "GPU]",
)
@click.option(
    "--decoding-processes",
    type=click.IntRange(1),
    help="Number of decoder processes of each worker.  [default: 1, on a GPU 4]",
)
@click.option(
    "--max-cpu-seconds",
    type=click.IntRange(1),
    help="CPU time for decoding one file.  [default: 30 s per minute of --seconds, and 0.1 s per million pixels of its "
    "decoded frames]",
)
@click.option(
    "--max-memory-gb",
    type=click.FloatRange(0, min_open=True),
    default=1.5,
    show_default=True,
    help="Memory for decoding one file.",
)
@click.option(
    "--max-pixels", type=click.IntRange(1), default=64_000_000, show_default=True, help="Largest frame, in pixels."
)
@click.option(
    "--max-file-gb",
    type=click.FloatRange(0, min_open=True),
    default=20.0,
    show_default=True,
    help="Largest file to decode.",
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
                "encoded": summary.encoded,
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
    **requested: Any,
) -> "Summary":
    from pipeline.manifests.manifest import load_manifest
    from pipeline.store.location import locate

    loaded = load_manifest(manifest or Path("data_manifests") / dataset)
    folder = videos or _videos_folder(manifest or Path("data_manifests") / dataset, dataset)
    address = locate(store or Path("stores") / f"{dataset}.zarr").address
    # Slow imports, after the checks of the paths.
    from pipeline.run.coordinator import extract
    from pipeline.run.request import Request

    names = [name.strip() for name in features.split(",") if name.strip()]
    with show_progress() as shown:
        request = Request(features=names, **requested)
        return extract(loaded, folder.absolute(), address, request, partial(_show_progress, shown))


def _videos_folder(manifest: Path, dataset: str) -> Path:
    """Return the manifest's own folder of videos, to which `synthesize` writes, or else the dataset's default."""
    own = manifest / "videos"
    return own if own.is_dir() else Path("data/videos") / dataset


def _show_progress(shown: Progress, progress: "RunProgress") -> None:
    if progress.note:
        shown.write(progress.note)
        return
    if progress.unit == "MB":
        shown.update(f"download {progress.file}", progress.done, progress.total, "MB")
        return
    if progress.unit == "questions":
        shown.update("encode", progress.done, progress.total, "questions")
        return
    shown.finish("encode")
    failed = f"{progress.failed} failed" if progress.failed else ""
    detail = "starting workers" if progress.total is None else failed
    shown.update("extract", progress.done, progress.total, "videos", detail)


def _show(summary: "Summary") -> None:
    from rich.table import Table

    table = Table("feature", "complete", "absent", "failed", "pending")
    for name, counts in summary.states.items():
        table.add_row(name, *(str(counts[state]) for state in ("complete", "absent", "failed", "pending")))
    console = plain_console(stderr=True)
    if summary.states:
        console.print(table)
    for failure in summary.failures[:FAILURES_SHOWN]:
        console.print(f"failed: {failure['video_id']} ({failure['feature']}): {failure['reason']}")
    if len(summary.failures) > FAILURES_SHOWN:
        console.print(f"... and {len(summary.failures) - FAILURES_SHOWN} more: mavqa-inspect {summary.store}")
    counts = {"videos extracted": summary.extracted, "question texts encoded": summary.encoded}
    work = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    of_manifest = f"{summary.videos} videos, {summary.questions} question texts"
    click.echo(f"{summary.store}: {work or 'nothing to extract'}; {of_manifest}", err=True)
