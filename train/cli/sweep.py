"""`mavqa-sweep`: train and evaluate a grid of runs. It only parses options and shows results."""

import json
from pathlib import Path

import click

from pipeline.cli.command import Command, file_option, folder_option
from pipeline.files import replace_text
from train.cli.options import (
    device_option,
    require_manifest,
    require_store,
    show_scenarios,
    store_option,
    training_progress,
)


@click.command(cls=Command)
@click.argument("grid", type=click.Path(dir_okay=False, path_type=Path))
@folder_option("--manifest", "Folder of the manifest.  [default: data_manifests/GRID]")
@store_option("stores/GRID.zarr")
@folder_option("--out", "Folder of the runs.  [default: build/GRID/runs]")
@file_option("--evaluation", "Where all documents go.  [default: evaluation.json beside --out]")
@click.option("--seeds", type=click.IntRange(min=1), help="Seeds 0 to N-1 in place of the grid's.")
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Runs at once, each with its share of the cores: more are done in the same time on small models.",
)
@device_option
def sweep(
    grid: Path,
    manifest: Path | None,
    store: str | None,
    out: Path | None,
    evaluation: Path | None,
    seeds: int | None,
    jobs: int,
    device: str,
) -> None:
    """Train and evaluate every cell of GRID.toml: backbones x methods x seeds, on one store.

    Finished runs are kept, unfinished ones go on where they were stopped.

    \b
    Examples:
      mavqa-sweep train/grids/demo.toml --manifest build/demo/data --store build/demo/store.zarr
      mavqa-sweep my.toml --seeds 3 --jobs 2 --out runs/mine
    """
    from train.training.sweep import list_cells, read_grid

    read = read_grid(grid)
    manifest = require_manifest(manifest or Path("data_manifests") / grid.stem, grid.stem)
    store = require_store(store or f"stores/{grid.stem}.zarr", grid.stem)
    out = out or Path("build") / grid.stem / "runs"
    cells = list_cells(read, range(seeds) if seeds else None, str(manifest), store, device)

    from pipeline.manifests.manifest import load_manifest
    from pipeline.store.reader import open_store
    from train.data.feature_bank import FeatureBank
    from train.training.sweep import run_cells

    bank = FeatureBank(open_store(store))
    with training_progress() as progress:
        documents = run_cells(cells, load_manifest(manifest), bank, out, progress, jobs)
    evaluation = evaluation or out.resolve().parent / "evaluation.json"
    replace_text(evaluation, json.dumps(documents, ensure_ascii=False, indent=1) + "\n")
    show_scenarios(documents)
    click.echo(f"evaluation: {evaluation}", err=True)
