"""`mavqa-inspect`: summarise or verify a store, compare it with published arrays, plot a spectrogram."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.command import (
    FAILURES_RECORDED,
    Command,
    InputError,
    RenamedOption,
    file_option,
    folder_option,
    json_option,
    plain_console,
    show_json,
)
from pipeline.cli.progress import show_task
from pipeline.errors import UserError
from pipeline.store.schema import IMPORTED

if TYPE_CHECKING:
    from pipeline.inspection.verify import Problem
    from pipeline.store.reader import FeatureStore

VIDEOS_SHOWN = 20

EXAMPLES = """\b
Examples:
  mavqa-inspect stores/music-avqa.zarr
  mavqa-inspect stores/music-avqa.zarr --json | jq .features
  mavqa-inspect stores/music-avqa.zarr --verify
  mavqa-inspect stores/music-avqa.zarr --verify --repair
  mavqa-inspect stores/music-avqa.zarr --reference feats/vggish --feature vggish
  mavqa-inspect stores/music-avqa.zarr --spectrogram data/videos/music-avqa/00000093.mp4
"""


@click.command(cls=Command, short_help="Show, verify or compare a feature store.", epilog=EXAMPLES)
@click.argument("store")
@click.option("--verify", is_flag=True, help="Read all values and check that they match the recorded states.")
@click.option("--repair", is_flag=True, help="With --verify: make corrupt rows pending; extract them again afterwards.")
@folder_option("--reference", "Folder of arrays to compare with, one <video id>.npy [time, ...] per video.")
@click.option("--feature", metavar="NAME", help="Feature to compare with the arrays in --reference.")
@file_option("--spectrogram", "Plot this video's spectrogram above its stored audio features.", metavar="VIDEO")
@file_option(
    "--image",
    "Image file to which --spectrogram writes.  [default: VIDEO's stem with .png, in the current folder]",
    cls=RenamedOption,
    former=("--picture",),
)
@json_option
def inspect(
    store: str,
    verify: bool,
    repair: bool,
    reference: Path | None,
    feature: str | None,
    spectrogram: Path | None,
    image: Path | None,
    as_json: bool,
) -> None:
    """Show the contents of a feature store: features, states, sizes and failures.

    Exit codes: 2 if the store is corrupt, 3 if an array in --reference does not fit the feature.
    """
    from pipeline.inspection.verify import summarise_store, verify_store
    from pipeline.store.reader import open_store

    if repair and not verify:
        raise UserError("--repair makes pending what --verify finds: pass --verify as well")
    problems: Sequence[Problem] = ()
    _check_options(verify, reference is not None or feature is not None, spectrogram, image)
    opened = open_store(store)
    if reference is not None or feature is not None:
        _compare(opened, reference, feature, as_json)
        return
    if spectrogram is not None:
        from pipeline.inspection.spectrogram_plot import plot_spectrogram

        target = image or Path(f"{spectrogram.stem}.png")
        plot_spectrogram(spectrogram, opened, target)
        if as_json:
            show_json({"format": 1, "picture": str(target)})
        else:
            click.echo(str(target))
        return
    document = summarise_store(opened)
    if verify:
        with show_task("verify", "rows") as progress:
            problems = verify_store(opened, progress)
        document["problems"] = [problem.message for problem in problems]
    if as_json:
        show_json(document)
    else:
        _show(store, document)
    if repair and problems:
        from pipeline.inspection.repair import make_pending

        commands = _writers(opened, problems)
        rows, question_features = make_pending(opened, problems)
        click.echo(f"{rows} rows and {question_features} question features are pending: run {commands} again", err=True)
    elif document.get("problems"):
        raise InputError(f"store {store} is corrupt: {len(document['problems'])} problems, listed above")


def _writers(store: "FeatureStore", problems: "Sequence[Problem]") -> str:
    """Return the commands that write the features of `problems`."""
    names = {problem.feature for problem in problems if problem.feature}
    specs = [store.spec(name) if name in store.feature_names else store.question_spec(name) for name in names]
    return " and ".join(sorted({"mavqa-import-features" if s.is_imported else "mavqa-extract" for s in specs}))


def _check_options(verify: bool, compares: bool, spectrogram: Path | None, image: Path | None) -> None:
    """Raise `UserError` if options are combined of which one would be ignored."""
    modes = {"--verify": verify, "--reference": compares, "--spectrogram": spectrogram is not None}
    requested = [name for name, is_requested in modes.items() if is_requested]
    if len(requested) > 1:
        raise UserError(f"{' and '.join(requested)} cannot be combined: run the command once for each")
    if image is not None and spectrogram is None:
        raise UserError("--image is the file that --spectrogram writes: pass --spectrogram VIDEO as well")


def _compare(store: "FeatureStore", reference: Path | None, feature: str | None, as_json: bool) -> None:
    from pipeline.inspection.compare import compare_with_reference

    if reference is None or feature is None:
        raise UserError("--reference and --feature go together: pass the folder of arrays and the feature's name")
    with show_task("compare", "videos") as progress:
        document = compare_with_reference(store, feature, reference, progress)
    if as_json:
        show_json(document)
    else:
        _show_comparison(document)
    if corrupt := document["summary"]["videos_damaged"]:
        raise InputError(
            f"store {store.path} is corrupt: complete rows of {feature} have missing values in {corrupt} videos: "
            "extract it again"
        )
    if document["refused"]:
        sys.exit(FAILURES_RECORDED)


def _show_comparison(document: dict[str, Any]) -> None:
    from rich.table import Table

    console = plain_console()
    summary = document["summary"]
    table = Table("video", "cosine", "lowest (row)", "largest difference (row)", "rows < 0.99", "steps", "axes")
    for video in document["videos"][:VIDEOS_SHOWN]:
        table.add_row(
            video["video_id"],
            _format(video["cosine"]),
            f"{_format(video['least_cosine'])} ({video['least_cosine_row']})",
            f"{_format(video['largest_difference'], '.4g')} ({video['largest_difference_row']})",
            str(len(video["rows_unlike"])),
            f"{video['steps_in_store']}, reference {video['steps_in_reference']}",
            video["axes"],
        )
    console.print(table)
    remaining = summary["compared"] - VIDEOS_SHOWN
    if remaining > 0:
        console.print(f"... and {remaining} more with higher similarity: pass --json for all of them")
    for refused in document["refused"]:
        console.print(f"refused: {refused['video_id']}: the array {refused['reason']}", soft_wrap=True)
    console.print(
        f"{document['feature']}: {summary['compared']} videos compared, mean cosine {_format(summary['cosine_mean'])}, "
        f"lowest {_format(summary['cosine_least'])} ({_format(summary['row_cosine_least'])} for a row), largest "
        f"difference {_format(summary['largest_difference'], '.4g')}",
        soft_wrap=True,
    )
    console.print(
        f"{summary['videos_with_rows_unlike']} with rows below 0.99, {summary['videos_of_other_steps']} with another "
        f"number of steps; {len(document['refused'])} refused, {len(document['only_in_store'])} only in the store, "
        f"{len(document['only_in_reference'])} only in the reference",
        soft_wrap=True,
    )


def _format(number: float | None, form: str = ".6f") -> str:
    return "none" if number is None else format(number, form)


def _show(store: str, document: dict[str, Any]) -> None:
    from rich.table import Table

    console = plain_console()
    console.print(
        f"{store}: {document['videos']} videos with {document['seconds']} time steps, the longest has "
        f"{document['longest_seconds']} seconds"
    )
    table = Table(
        "feature", "shape", "dtype", "complete", "absent", "failed", "pending", "MB", "weights", "fingerprint"
    )
    for name, feature in document["features"].items():
        counts = (str(feature[state]) for state in ("complete", "absent", "failed", "pending"))
        constants = feature["spec"]["constants"]
        weights = IMPORTED if IMPORTED in constants else constants.get("weights", {}).get("weights", "")
        megabytes = f"{feature['bytes_stored'] / 1e6:.1f}"
        shape = " ".join(map(str, feature["shape"]))
        table.add_row(name, shape, feature["dtype"], *counts, megabytes, weights, feature["fingerprint"][:8])
    console.print(table)
    for failure in document["failures"]:
        console.print(f"failed: {failure['video_id']} {failure['modality']}: {failure['reason']}")
    for problem in document.get("problems", []):
        console.print(f"problem: {problem}")
    if "problems" in document and not document["problems"]:
        console.print("verified: complete rows have the values that were computed, absent and failed rows have none")
        if not document["is_sealed"]:
            console.print(
                "not verified: that no state or id was lost, because the last run was stopped; run it again to its end",
                soft_wrap=True,
            )
