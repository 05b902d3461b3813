"""`mavqa-inspect`: what a store holds, whether it is whole, and a picture of a video's sound."""

import sys
from pathlib import Path
from typing import Any

import click

from pipeline.commands import Command, InputError, file_option, json_option, progress_bar, show_json

EXAMPLES = """\b
Examples:
  mavqa-inspect stores/music-avqa.zarr
  mavqa-inspect stores/music-avqa.zarr --json | jq .features
  mavqa-inspect stores/music-avqa.zarr --verify
  mavqa-inspect stores/music-avqa.zarr --spectrogram data/videos/music-avqa/00000093.mp4
"""


@click.command(cls=Command, epilog=EXAMPLES)
@click.argument("store")
@click.option("--verify", is_flag=True, help="Read every value and prove that complete rows are whole.")
@file_option("--spectrogram", "Draw this video's sound beside its stored audio features.", metavar="VIDEO")
@file_option("--picture", "Where the drawing goes.  [default: VIDEO's stem with .png, in this folder]")
@json_option
def inspect(store: str, verify: bool, spectrogram: Path | None, picture: Path | None, as_json: bool) -> None:
    """Show what a feature store holds: features, states, sizes, failures.

    Exit code 2 where --verify finds the store damaged.
    """
    from pipeline.store.reader import open_store
    from pipeline.verify import summarise_store, verify_store

    opened = open_store(store)
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
