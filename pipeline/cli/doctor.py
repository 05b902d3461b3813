"""`mavqa-doctor`: which decoders, libraries, GPU and weights are there, and how to get what is not."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from pipeline.cli.command import Command, folder_option, json_option, plain_console, show_json

EXAMPLES = """\b
Examples:
  mavqa-doctor
  mavqa-doctor --weights ~/checkpoints
  mavqa-doctor --json | jq .decoders.torchcodec
"""


@click.command(cls=Command, epilog=EXAMPLES)
@folder_option("--weights", "Folder of checkpoints, as for mavqa-extract.  [default: torch's own cache]")
@json_option
def doctor(weights: Path | None, as_json: bool) -> None:
    """Say what extraction can use on this machine and, for what is not there, the one line that gets it.

    Nothing is downloaded or changed. The exit code is 0 whatever is missing: PyAV, which comes with mavqa, is enough
    for every file.
    """
    from pipeline.extractors.weights import WeightsSource, hub_cache
    from pipeline.inspection.doctor import examine

    click.echo("looking ...", err=True)
    document = examine(WeightsSource("folder", weights) if weights else WeightsSource("pretrained", hub_cache()))
    if as_json:
        show_json(document)
    else:
        _show(document)


def _show(document: dict[str, Any]) -> None:
    from rich.table import Table

    rows = list(_rows(document))
    table = Table("what", "there", "which, or why not")
    for what, entry, found in rows:
        table.add_row(what, *(("yes", found) if entry["is_there"] else ("no", entry["why"])))
    console = plain_console()
    console.print(table)
    for what, entry, _ in rows:
        if not entry["is_there"]:
            console.print(f"to get {what}: {entry['remedy']}", soft_wrap=True)
    auto = document["auto"]
    console.print(f"--decoder auto takes {auto['name']} for a new store: {auto['why']}", soft_wrap=True)
    for name, entry in document["decoders"].items():
        if entry["exceptions"] and entry["is_there"]:
            console.print(f"what {name} leaves to pyav, or does otherwise:")
            for case, words in entry["exceptions"].items():
                console.print(f"  {case}: {words}", soft_wrap=True)


def _rows(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yield (what, its entry, which one is there) of everything that was looked for."""
    for name, entry in document["decoders"].items():
        yield f"decoder {name}", entry, entry.get("version", "")
    for name, entry in document["ffmpeg"].items():
        yield f"FFmpeg's lib{name}", entry, entry.get("file", "")
    for name, entry in document["gpu"].items():
        found = ", ".join(entry.get("devices", ["its library loads"]))
        yield f"GPU: {name}", entry, f"{found}: {entry['enables']}"
    for name, entry in document["weights"].items():
        yield f"weights {name}", entry, entry.get("file", "")
