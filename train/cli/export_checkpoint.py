"""`mavqa-export-checkpoint`: write a run as a checkpoint of its official release."""

from dataclasses import asdict
from pathlib import Path

import click

from pipeline.cli.command import Command, file_option, json_option, show_json

EXAMPLES = """\b
Examples:
  mavqa-export-checkpoint runs/avst-zero-fill-1 --annotations MUSIC-AVQA/data --out avst.pt
  mavqa-export-checkpoint runs/pstp-released-1 --annotations MUSIC-AVQA/data --out PSTP_Net.pt
"""


@click.command(
    cls=Command, name="export-checkpoint", short_help="Write a run as an official checkpoint.", epilog=EXAMPLES
)
@click.argument("run", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--annotations",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder of the official annotations, or the release's training file itself.",
)
@file_option("--out", "File to write.", required=True, metavar="FILE")
@json_option
def export_checkpoint(run: Path, annotations: Path, out: Path, as_json: bool) -> None:
    """Write RUN as a checkpoint of its official release, with its tensor names and its order of words and answers.

    A run of zero-fill on avst, baseline or pstp (variant released), of rmm-avr on avst (variant released), or of the
    preset grounding can be exported, if its sizes are those of the release. The file is a state dict of tensors. It has
    no tensors that the release never reads: load it with strict=False.
    """
    from train.checkpoints.export_official import export_checkpoint as run_export

    exported = run_export(run, annotations, out)
    if as_json:
        show_json({"format": 1, **asdict(exported)})
        return
    click.echo(f"{exported.mapped} tensors of {run} -> {out}, a checkpoint of the kind {exported.kind}", err=True)
    unchecked = "" if exported.is_official else " (not recognised as a file of the release: check that it is)"
    click.echo(f"words and answers are numbered by {exported.training_file}{unchecked}", err=True)
    for label, names in (("copied or computed, never read", exported.unused), ("left out", exported.left_out)):
        if names:
            click.echo(f"  {label}: {len(names)}, such as {', '.join(names[:3])}", err=True)
