"""`mavqa-import-features`: folders of published arrays into a store. The work is in `pipeline.arrays.import_arrays`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.cli.command import (
    FAILURES_RECORDED,
    Command,
    complete_folders,
    folder_option,
    json_option,
    plain_console,
    plain_name,
    show_json,
)
from pipeline.cli.progress import Progress, show_progress
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.arrays.import_arrays import ImportSummary

FAILURES_SHOWN = 10

EXAMPLES = """\b
Examples:
  mavqa-import-features --from vggish=feats/vggish --from resnet18-map=feats/res18_14x14
  mavqa-import-features --from feats/vggish --absent audio --made-by "VGGish of the authors, downloaded in May"
  mavqa-import-features --manifest data_manifests/mine --store stores/mine.zarr --from r2plus1d=arrays --seconds 10
  mavqa-import-features --dataset music-avqa --from feats/clip_patch-level_vit_b32 --from feats/clip_qst
"""


@click.command(
    cls=Command,
    name="import-features",
    short_help="Import published arrays into a feature store.",
    epilog=EXAMPLES,
    on_interrupt="the store keeps what is done, run the same command again to resume",
)
@click.option(
    "--dataset",
    default="music-avqa",
    show_default=True,
    shell_complete=complete_folders("data_manifests"),
    callback=plain_name,
    help="Name of the dataset, used in the defaults of --manifest and --store.",
)
@folder_option("--manifest", "Folder of the manifest.  [default: data_manifests/DATASET]")
@click.option("--store", metavar="PATH-or-URL", help="Feature store to write.  [default: stores/DATASET.zarr]")
@click.option(
    "--from",
    "sources",
    multiple=True,
    required=True,
    metavar="FEATURE=DIR",
    help="Folder of a feature's arrays, one VIDEO.npy [time, ...] per video, or QUESTION.npy [1, ...] per question. A "
    "folder with its name in a release, such as vggish or res18_14x14, needs no FEATURE=. Repeatable.",
)
@click.option(
    "--seconds",
    type=click.IntRange(1),
    help="Time steps per video, one per second; arrays with more are cut.  [default: 60 for a new store, else the "
    "store's]",
)
@click.option("--made-by", metavar="TEXT", help="What is known about how the arrays were made, for the store's spec.")
@click.option(
    "--absent",
    multiple=True,
    type=click.Choice(["audio", "visual"]),
    help="A video without an array does not have this modality. By default its features are failed. Repeatable.",
)
@click.option("--break-lock", is_flag=True, help="Take over the lock that a killed run left on an object store.")
@json_option
def import_features(
    dataset: str,
    manifest: Path | None,
    store: str | None,
    sources: tuple[str, ...],
    seconds: int | None,
    made_by: str | None,
    absent: tuple[str, ...],
    break_lock: bool,
    as_json: bool,
) -> None:
    """Import features that others published as arrays, without reading any video.

    A store has either imported or extracted features of videos. Features of questions, such as tokens, can be added by
    mavqa-extract. A run can be stopped at any time; the next run imports only what is not complete yet.
    Exit codes: 0 all features complete or absent, 2 invalid usage or input, 3 finished with recorded failures.
    """
    from pipeline.arrays.import_arrays import import_features as run_import
    from pipeline.arrays.layouts import parse_source
    from pipeline.manifests.manifest import load_manifest
    from pipeline.store.location import locate

    folders: dict[str, Path] = {}
    for feature, folder in map(parse_source, sources):
        if feature in folders:
            raise UserError(f"--from names {feature} twice, {folders[feature]} and {folder}: pass one folder")
        folders[feature] = folder
    loaded = load_manifest(manifest or Path("data_manifests") / dataset)
    address = locate(store or Path("stores") / f"{dataset}.zarr").address
    with show_progress() as shown:
        summary = run_import(
            loaded,
            address,
            folders,
            seconds=seconds,
            made_by=made_by,
            absent=absent,
            break_lock=break_lock,
            on_progress=lambda task, done, total: _show_progress(shown, task, done, total),
        )
    if as_json:
        show_json({"format": 1, **vars(summary)})
    else:
        _show(summary)
    if not summary.is_complete:
        sys.exit(FAILURES_RECORDED)


def _show_progress(shown: Progress, task: str, done: int, total: int) -> None:
    units = {"check": "arrays", "import": "videos"}
    shown.update(task, done, total, units.get(task, "question texts"))


def _show(summary: "ImportSummary") -> None:
    from rich.table import Table

    console = plain_console(stderr=True)
    table = Table("feature", "complete", "absent", "failed", "pending")
    for name, counts in summary.states.items():
        table.add_row(name, *(str(counts[state]) for state in ("complete", "absent", "failed", "pending")))
    console.print(table)
    for failure in summary.failures[:FAILURES_SHOWN]:
        name = failure.get("video_id") or f"question {failure['question_id']}"
        console.print(f"failed: {name} ({failure['feature']}): {failure['reason']}", soft_wrap=True)
    if len(summary.failures) > FAILURES_SHOWN:
        console.print(f"... and {len(summary.failures) - FAILURES_SHOWN} more: pass --json for all of them")
    for note in summary.notes:
        click.echo(note, err=True)
    if summary.differing:
        largest = max(summary.differing, key=lambda entry: entry["largest_difference"])
        click.echo(
            f"{len(summary.differing)} questions have another array than an earlier question with the same text, which "
            f"was imported; the largest difference is {largest['largest_difference']:.4g} ({largest['question_id']})",
            err=True,
        )
    work = f"{summary.imported} arrays imported" if summary.imported else "nothing to import"
    of_manifest = f"{summary.videos} videos, {summary.questions} question texts"
    click.echo(f"{summary.store}: {work}; {of_manifest}", err=True)
