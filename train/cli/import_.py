"""`mavqa-import`: an official checkpoint becomes a run. It only parses options and shows results."""

from dataclasses import asdict
from pathlib import Path

import click

from pipeline.cli.command import Command, folder_option, json_option, show_json
from train.checkpoints.release_names import RELEASES
from train.cli.options import store_option


@click.command(cls=Command, name="import")
@click.argument("kind", type=click.Choice(list(RELEASES)))
@click.argument("checkpoint", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--annotations",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder of the official annotations, or the training file itself.",
)
@folder_option("--out", "Folder of the run.", required=True)
@click.option("--dataset", default="music-avqa", show_default=True, help="Name that the defaults below take.")
@folder_option("--manifest", "Manifest that the run will be evaluated with.  [default: data_manifests/DATASET]")
@store_option("stores/DATASET.zarr")
@json_option
def import_(
    kind: str,
    checkpoint: Path,
    annotations: Path,
    out: Path,
    dataset: str,
    manifest: Path | None,
    store: str | None,
    as_json: bool,
) -> None:
    """Make a run of an official CHECKPOINT, so that 'mavqa-evaluate' takes it.

    AVST, its grounding pre-training (which 'mavqa-train --start-from' takes), the missing-modality method on AVST, or
    PSTP-Net as it was released. Words and answers are numbered as the
    release numbers them, by the official training file in --annotations, and then brought into the order of the
    manifest, if that is there. Only tensors are read from the file.

    \b
    Examples:
      mavqa-import avst avst.pt --annotations MUSIC-AVQA/data --out runs/official-avst
      mavqa-import grounding main_grounding_gen_best.pt --annotations MUSIC-AVQA/data --out runs/grounding
      mavqa-import missing-avqa weight_epoch_50.pt --annotations MUSIC-AVQA/data --out runs/official-missing-avqa
      mavqa-import pstp PSTP_Net.pt --annotations MUSIC-AVQA/data --out runs/official-pstp
    """
    manifest = manifest or Path("data_manifests") / dataset
    store = store or f"stores/{dataset}.zarr"

    from pipeline.manifests.manifest import load_manifest
    from train.checkpoints.import_official import import_checkpoint

    vocabulary = load_manifest(manifest).vocabulary if (manifest / "vocabulary.json").is_file() else None
    imported = import_checkpoint(kind, checkpoint, annotations, out, str(manifest), store, vocabulary)
    if as_json:
        show_json(asdict(imported))
        return
    click.echo(f"{imported.mapped} tensors of {checkpoint.name} -> {out}", err=True)
    if vocabulary is None:
        click.echo(f"manifest {manifest} is not there: words and answers keep the official order", err=True)
    for what, names in (
        ("unused", imported.unused),
        ("unknown", imported.unknown),
        ("not in the file", imported.fresh),
    ):
        if names:
            click.echo(f"  {what}: {len(names)}, such as {', '.join(names[:3])}", err=True)
