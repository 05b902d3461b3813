"""`mavqa-doctor`: which decoders, libraries, GPU, plug-ins and weights are available, and how to get missing ones."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from pipeline.cli.command import Command, folder_option, json_option, plain_console, show_json
from pipeline.errors import UserError

EXAMPLES = """\b
Examples:
  mavqa-doctor
  mavqa-doctor --weights ~/checkpoints
  mavqa-doctor --json | jq .decoders.torchcodec
"""


@click.command(cls=Command, short_help="Report which decoders, GPU and weights are available.", epilog=EXAMPLES)
@folder_option("--weights", "Folder of checkpoints, as for mavqa-extract.  [default: torch's cache]")
@json_option
def doctor(weights: Path | None, as_json: bool) -> None:
    """Report the decoders, libraries, GPU, plug-ins and weights that extraction can use on this machine.

    For each missing one, a line says why and how to get it. Nothing is downloaded or changed. The exit code is 0 even
    if something is missing: PyAV, which is installed with mavqa, decodes every file.
    """
    from pipeline.extractors.weights import WeightsSource, hub_cache
    from pipeline.inspection.doctor import examine

    if weights is not None and not weights.is_dir():
        raise UserError(f"--weights {weights} does not exist: pass a folder of checkpoints")

    click.echo("checking ...", err=True)
    document = examine(WeightsSource("folder", weights) if weights else WeightsSource("pretrained", hub_cache()))
    if as_json:
        show_json(document)
    else:
        _show(document)


def _show(document: dict[str, Any]) -> None:
    from rich.table import Table

    rows = list(_rows(document))
    table = Table("component", "version or file")
    for component, entry, details in rows:
        if entry["is_there"]:
            table.add_row(component, details)
    console = plain_console()
    console.print(table)
    for component, entry, _ in rows:
        if not entry["is_there"]:
            console.print(f"missing: {component} ({entry['why']}): {entry['remedy']}", soft_wrap=True)
    for line in _describe_nvdec(document["gpu"]["nvdec"]):
        console.print(line, soft_wrap=True)
    auto = document["auto"]
    console.print(f"--decoder auto uses {auto['name']} for a new store: {auto['why']}", soft_wrap=True)


def _describe_nvdec(nvdec: dict[str, Any]) -> Iterator[str]:
    """Yield a line on what --decoder pyav-cuda decodes on this GPU, and on what PyAV decodes instead."""
    if not nvdec["is_there"]:
        return
    decoded = [
        f"{form} ({f'differs by up to {difference} of 255 levels' if difference else 'equal'})"
        for form, difference in nvdec["decodes"].items()
    ]
    yield f"--decoder pyav-cuda decodes on the GPU, compared with PyAV's frames: {', '.join(decoded) or 'nothing'}"
    refused = [f"{form} ({why})" for form, why in nvdec["refuses"].items()]
    yield f"PyAV decodes instead: {'; '.join([*refused, 'all other codecs and pixel formats, such as AV1'])}"


def _rows(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yield (component, its entry in the document, its version or file) for each component."""
    for name, entry in document["decoders"].items():
        yield f"decoder {name}", entry, entry.get("version", "")
    for name, entry in document["ffmpeg"].items():
        yield f"FFmpeg's lib{name}", entry, entry.get("file", "")
    for name, entry in document["gpu"].items():
        devices = ", ".join(entry.get("devices", ["its library loads"]))
        yield f"GPU: {name}", entry, f"{devices}: {entry['enables']}"
    for name, entry in document["plugins"].items():
        yield f"plug-in: {name}", entry, f"{entry.get('package', '')}: {entry.get('object', '')}"
    for name, entry in document["weights"].items():
        yield f"weights {name}", entry, entry.get("file", "")
