"""`mavqa-inspect`: what a store holds, whether it is whole, how far from published arrays; a picture of a sound."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.command import (
    Command,
    InputError,
    file_option,
    folder_option,
    json_option,
    plain_console,
    progress_bar,
    show_json,
)
from pipeline.errors import UserError

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

    Exit code 2 where the store is found to be damaged, 3 where an array of --reference is not of the feature.
    """
    from pipeline.inspection.verify import summarise_store, verify_store
    from pipeline.store.reader import open_store

    _refuse_mixtures(verify, reference is not None or feature is not None, spectrogram, picture)
    opened = open_store(store)
    if reference is not None or feature is not None:
        _compare(opened, reference, feature, as_json)
        return
    if spectrogram is not None:
        from pipeline.inspection.spectrogram_plot import plot_spectrogram

        target = picture or Path(f"{spectrogram.stem}.png")
        plot_spectrogram(spectrogram, opened, target)
        if as_json:
            show_json({"format": 1, "picture": str(target)})
        else:
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


def _refuse_mixtures(verify: bool, compares: bool, spectrogram: Path | None, picture: Path | None) -> None:
    looks = {"--verify": verify, "--reference": compares, "--spectrogram": spectrogram is not None}
    asked = [name for name, is_asked in looks.items() if is_asked]
    if len(asked) > 1:
        raise UserError(f"{' and '.join(asked)} do not go together: give one, and the other in a call of its own")
    if picture is not None and spectrogram is None:
        raise UserError("--picture says where the drawing of --spectrogram goes: give --spectrogram VIDEO with it")


def _compare(store: "FeatureStore", reference: Path | None, feature: str | None, as_json: bool) -> None:
    from pipeline.inspection.compare import compare_with_reference

    if reference is None or feature is None:
        raise UserError("--reference and --feature go together: name the folder of arrays and the feature they hold")
    with progress_bar("comparing") as progress:
        document = compare_with_reference(store, feature, reference, progress)
    if as_json:
        show_json(document)
    else:
        _show_comparison(document)
    if damaged := document["summary"]["videos_damaged"]:
        where = f"complete rows of {feature} in {damaged} videos"
        raise InputError(f"store {store.path} is damaged: {where} hold no numbers: extract it anew")
    if document["refused"]:
        sys.exit(FAILURES_RECORDED)


def _show_comparison(document: dict[str, Any]) -> None:
    from rich.table import Table

    console = plain_console()
    summary = document["summary"]
    table = Table("video", "cosine", "least (row)", "largest difference (row)", "rows < 0.99", "steps", "axes")
    for video in document["videos"][:VIDEOS_SHOWN]:
        table.add_row(
            video["video_id"],
            _shown(video["cosine"]),
            f"{_shown(video['least_cosine'])} ({video['least_cosine_row']})",
            f"{_shown(video['largest_difference'], '.4g')} ({video['largest_difference_row']})",
            str(len(video["rows_unlike"])),
            f"{video['steps_in_store']}, reference {video['steps_in_reference']}",
            video["axes"],
        )
    console.print(table)
    left_out = summary["compared"] - VIDEOS_SHOWN
    if left_out > 0:
        console.print(f"... and {left_out} more that are more alike: --json has them all")
    for refused in document["refused"]:
        console.print(f"refused: {refused['video_id']}: the array {refused['reason']}", soft_wrap=True)
    for line in _conclude(document, summary):
        console.print(line, soft_wrap=True)


def _shown(number: float | None, form: str = ".6f") -> str:
    return "none" if number is None else format(number, form)


def _conclude(document: dict[str, Any], summary: dict[str, Any]) -> tuple[str, str]:
    one_sided = (len(document[side]) for side in ("refused", "only_in_store", "only_in_reference"))
    return (
        f"{document['feature']}: {summary['compared']} videos compared, cosine {_shown(summary['cosine_mean'])} in the "
        f"mean, {_shown(summary['cosine_least'])} at least ({_shown(summary['row_cosine_least'])} in a row), largest "
        f"difference {_shown(summary['largest_difference'], '.4g')}",
        f"{summary['videos_with_rows_unlike']} with rows below 0.99, {summary['videos_of_other_steps']} of other "
        "steps; {} refused, {} only in the store, {} only in the reference".format(*one_sided),
    )


def _show(store: str, document: dict[str, Any]) -> None:
    from rich.table import Table

    console = plain_console()
    console.print(f"{store}: {document['videos']} videos of {document['seconds']} steps")
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
        console.print(f"failed: {failure['video_id']} {failure['modality']}: {failure['reason']}")
    for problem in document.get("problems", []):
        console.print(f"problem: {problem}")
    if "problems" in document and not document["problems"]:
        console.print("verified: every complete row is whole, absent and failed ones are holes")
