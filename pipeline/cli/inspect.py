"""`mavqa-inspect`: what a store holds, whether it is whole, how far from published arrays; a picture of a sound."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.commands import Command, InputError, file_option, folder_option, json_option, progress_bar, show_json
from pipeline.failure import UserError

if TYPE_CHECKING:
    from pipeline.store.reader import FeatureStore

FAILURES_RECORDED = 3
VIDEOS_SHOWN = 20

EXAMPLES = """\b
Examples:
  mavqa-inspect stores/music-avqa.zarr
  mavqa-inspect stores/music-avqa.zarr --json | jq .features
  mavqa-inspect stores/music-avqa.zarr --verify
  mavqa-inspect stores/music-avqa.zarr --reference feats/vggish --feature vggish
  mavqa-inspect stores/music-avqa.zarr --spectrogram data/videos/music-avqa/00000093.mp4
"""


@click.command(cls=Command, epilog=EXAMPLES)
@click.argument("store")
@click.option("--verify", is_flag=True, help="Read every value and prove that complete rows are whole.")
@folder_option("--reference", "Compare with the arrays of this folder, one <video id>.npy [time, ...] a video.")
@click.option("--feature", metavar="NAME", help="The feature that --reference holds.")
@file_option("--spectrogram", "Draw this video's sound beside its stored audio features.", metavar="VIDEO")
@file_option("--picture", "Where the drawing goes.  [default: VIDEO's stem with .png, in this folder]")
@json_option
def inspect(
    store: str,
    verify: bool,
    reference: Path | None,
    feature: str | None,
    spectrogram: Path | None,
    picture: Path | None,
    as_json: bool,
) -> None:
    """Show what a feature store holds: features, states, sizes, failures.

    Exit code 2 where --verify finds the store damaged, 3 where an array of --reference is not of the feature.
    """
    from pipeline.store.reader import open_store
    from pipeline.verify import summarise_store, verify_store

    opened = open_store(store)
    if reference is not None or feature is not None:
        _compare(opened, reference, feature, as_json)
        return
    if spectrogram is not None:
        from pipeline.spectrogram import draw_spectrogram

        target = picture or Path(f"{spectrogram.stem}.png")
        draw_spectrogram(spectrogram, opened, target)
        click.echo(str(target))
        return
    document = summarise_store(opened)
    if verify:
        with progress_bar("verifying") as progress:
            document["problems"] = verify_store(opened, progress)
    if as_json:
        show_json(document)
    else:
        _show(store, document)
    if document.get("problems"):
        raise InputError(f"store {store} is damaged: {len(document['problems'])} problems, listed above")


def _compare(store: "FeatureStore", reference: Path | None, feature: str | None, as_json: bool) -> None:
    from pipeline.reference import compare_with_reference

    if reference is None or feature is None:
        raise UserError("--reference and --feature go together: name the folder of arrays and the feature they hold")
    with progress_bar("comparing") as progress:
        document = compare_with_reference(store, feature, reference, progress)
    if as_json:
        show_json(document)
    else:
        _show_comparison(document)
    if document["refused"]:
        sys.exit(FAILURES_RECORDED)


def _show_comparison(document: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(file=sys.stdout)
    summary = document["summary"]
    table = Table("video", "cosine", "least (row)", "largest difference (row)", "rows < 0.99", "steps", "axes")
    for video in document["videos"][:VIDEOS_SHOWN]:
        table.add_row(
            video["video_id"],
            f"{video['cosine']:.6f}",
            f"{video['least_cosine']:.6f} ({video['least_cosine_row']})",
            f"{video['largest_difference']:.4g} ({video['largest_difference_row']})",
            str(len(video["rows_unlike"])),
            f"{video['steps_in_store']}, reference {video['steps_in_reference']}",
            video["axes"],
        )
    console.print(table)
    left_out = summary["compared"] - VIDEOS_SHOWN
    if left_out > 0:
        console.print(f"... and {left_out} more that are more alike: --json has them all")
    for refused in document["refused"]:
        console.print(f"refused: {refused['video_id']}: the array {refused['reason']}", markup=False, soft_wrap=True)
    for line in _conclude(document, summary):
        console.print(line, markup=False, soft_wrap=True)


def _conclude(document: dict[str, Any], summary: dict[str, Any]) -> tuple[str, str]:
    one_sided = (len(document[side]) for side in ("refused", "only_in_store", "only_in_reference"))
    return (
        f"{document['feature']}: {summary['compared']} videos compared, cosine {summary['cosine_mean']:.6f} in the "
        f"mean, {summary['cosine_least']:.6f} at least ({summary['row_cosine_least']:.6f} in a row), largest "
        f"difference {summary['largest_difference']:.4g}",
        f"{summary['videos_with_rows_unlike']} with rows below 0.99, {summary['videos_of_other_steps']} of other "
        "steps; {} refused, {} only in the store, {} only in the reference".format(*one_sided),
    )


def _show(store: str, document: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(file=sys.stdout)
    console.print(f"{store}: {document['videos']} videos of {document['seconds']} steps", markup=False)
    table = Table(
        "feature", "shape", "dtype", "complete", "absent", "failed", "pending", "MB", "weights", "fingerprint"
    )
    for name, feature in document["features"].items():
        counts = (str(feature[state]) for state in ("complete", "absent", "failed", "pending"))
        weights = feature["spec"]["constants"].get("weights", {}).get("weights", "")
        megabytes = f"{feature['bytes_stored'] / 1e6:.1f}"
        shape = " ".join(map(str, feature["shape"]))
        table.add_row(name, shape, feature["dtype"], *counts, megabytes, weights, feature["fingerprint"][:8])
    console.print(table)
    for failure in document["failures"]:
        console.print(f"failed: {failure['video_id']} {failure['modality']}: {failure['reason']}", markup=False)
    for problem in document.get("problems", []):
        console.print(f"problem: {problem}", markup=False)
    if "problems" in document and not document["problems"]:
        console.print("verified: every complete row is whole, every other row is a hole")
