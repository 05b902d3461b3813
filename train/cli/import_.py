"""`mavqa-import`: convert an official checkpoint to a run."""

from dataclasses import asdict
from pathlib import Path

import click

from pipeline.cli.command import folder_option, json_option, plain_name, show_json
from train.checkpoints.release_names import RELEASES
from train.cli.options import RecordingCommand, store_option


@click.command(cls=RecordingCommand, name="import", short_help="Convert an official checkpoint to a run.")
@click.argument("kind", type=click.Choice(list(RELEASES)))
@click.argument("checkpoint", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--annotations",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder of the official annotations, or the release's training file itself.",
)
@folder_option("--out", "Run folder to write.", required=True)
@click.option(
    "--dataset",
    default="music-avqa",
    show_default=True,
    callback=plain_name,
    help="Dataset name in the default paths below.",
)
@folder_option("--manifest", "Manifest to evaluate the run with.  [default: data_manifests/DATASET]")
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
    """Convert an official CHECKPOINT to a run.

    avst (AVST), baseline (AVST's without spatial grounding), missing-avqa (the missing-modality method on AVST) and
    pstp (PSTP-Net) become runs to evaluate with 'mavqa-evaluate'; grounding (AVST's grounding pre-training) becomes a
    run for 'mavqa-train --start-from'.

    A checkpoint numbers words and answers by their first appearance in the release's training file, which --annotations
    provides: json_update/avqa-train.json for pstp, json/avqa-train.json for the others. If the manifest exists, they
    are reordered to match its vocabulary. Only tensors are read from the checkpoint.

    \b
    Examples:
      mavqa-import avst avst.pt --annotations MUSIC-AVQA/data --out runs/official-avst
      mavqa-import baseline net_grd_baseline.pt --annotations MUSIC-AVQA/data --out runs/official-baseline
      mavqa-import grounding main_grounding_gen_best.pt --annotations MUSIC-AVQA/data --out runs/grounding
      mavqa-import missing-avqa weight_epoch_50.pt --annotations MUSIC-AVQA/data --out runs/official-missing-avqa
      mavqa-import pstp PSTP_Net.pt --annotations MUSIC-AVQA/data --out runs/official-pstp
    """
    manifest = manifest or Path("data_manifests") / dataset
    store = store or f"stores/{dataset}.zarr"

    from pipeline.manifests.manifest import load_manifest
    from pipeline.store.location import locate
    from train.checkpoints.import_official import import_checkpoint

    vocabulary = load_manifest(manifest).vocabulary if (manifest / "vocabulary.json").is_file() else None
    imported = import_checkpoint(
        kind, checkpoint, annotations, out, str(manifest.absolute()), locate(store).address, vocabulary
    )
    if as_json:
        show_json(asdict(imported))
        return
    click.echo(f"{imported.mapped} tensors of {checkpoint.name} -> {out}", err=True)
    unchecked = "" if imported.is_official else " (not recognised as a file of the release: check that it is)"
    click.echo(f"words and answers are numbered by {imported.training_file}{unchecked}", err=True)
    if vocabulary is None:
        click.echo(f"manifest {manifest} does not exist: words and answers keep the official order", err=True)
    for label, names in (
        ("unused", imported.unused),
        ("unknown", imported.unknown),
        ("not in the file", imported.fresh),
    ):
        if names:
            click.echo(f"  {label}: {len(names)}, such as {', '.join(names[:3])}", err=True)
