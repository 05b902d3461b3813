"""`mavqa-sweep`: train and evaluate a grid of runs."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.cli.command import (
    FAILURES_RECORDED,
    complete_names,
    file_option,
    folder_option,
    json_option,
    show_json,
)
from pipeline.errors import UserError
from pipeline.files import locked, replace_text
from train.cli.options import (
    RecordingCommand,
    device_option,
    loading_options,
    require_manifest,
    require_store,
    runs_progress,
    show_scenarios,
    store_option,
    tracker_option,
)
from train.data.loading import LoadingSettings

if TYPE_CHECKING:
    from pipeline.manifests.manifest import Manifest
    from train.data.feature_bank import FeatureBank
    from train.training.dry_run import Tried
    from train.training.sweep import Cell, Outcome

GRIDS = Path(__file__).parent.parent / "grids"
BUNDLED = sorted(path.stem for path in GRIDS.glob("*.toml"))


@click.command(
    cls=RecordingCommand,
    short_help="Train and evaluate a grid of runs.",
    on_interrupt="finished runs and epochs are kept, run the same command again to go on",
)
@click.argument("grid", shell_complete=complete_names(BUNDLED))
@folder_option("--manifest", "Manifest folder.  [default: data_manifests/GRID]")
@store_option("stores/GRID.zarr")
@folder_option("--out", "Folder to write the runs to.  [default: build/GRID/runs]")
@file_option("--evaluation", "JSON file for the results of all runs.  [default: evaluation.json in --out]")
@click.option(
    "--seeds", type=click.IntRange(min=1), help="Number of seeds to train, from 0.  [default: the grid's seeds]"
)
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Number of runs to train in parallel, each on its share of the cores and one of the GPUs in turn; "
    "faster for small models.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Train nothing: let every model take one step and answer one batch in each scenario, and print the runs.",
)
@device_option
@loading_options
@tracker_option
@json_option
def sweep(
    grid: str,
    manifest: Path | None,
    store: str | None,
    out: Path | None,
    evaluation: Path | None,
    seeds: int | None,
    jobs: int,
    dry_run: bool,
    device: str,
    trackers: tuple[str, ...],
    as_json: bool,
    loading: LoadingSettings,
) -> None:
    """Train and evaluate every run of GRID (backbones x methods x seeds) on one store.

    GRID is a TOML file, or the name of one that is installed with mavqa: such as demo, methods or table1. Finished runs
    are kept, stopped ones are resumed. A run that fails, such as one that diverges, does not stop the others: it is
    named at the end, and the exit code is 3.

    \b
    Examples:
      mavqa-sweep demo --manifest build/demo/data --store build/demo/store.zarr
      mavqa-sweep my.toml --seeds 3 --jobs 2 --out runs/mine
      mavqa-sweep table1 --manifest data_manifests/music-avqa --store stores/music-avqa.zarr --dry-run
    """
    from train import processes
    from train.training.sweep import list_cells, read_grid

    processes.check_alone("mavqa-sweep")
    if dry_run:
        _check_unused({"--out": out, "--evaluation": evaluation, "--jobs": jobs > 1, "--tracker": trackers})
    file = GRIDS / f"{grid}.toml" if grid in BUNDLED and not Path(grid).is_file() else Path(grid)
    parsed = read_grid(file)
    manifest = require_manifest(manifest or Path("data_manifests") / file.stem)
    store = require_store(store or f"stores/{file.stem}.zarr", manifest)
    out = out or Path("build") / file.stem / "runs"
    cells = list_cells(parsed, range(seeds) if seeds else None, str(manifest.absolute()), store, device)

    from pipeline.manifests.manifest import load_manifest
    from pipeline.store.reader import open_store
    from train.data.feature_bank import FeatureBank
    from train.runs.device import choose_device
    from train.training.stopping import StopSignal
    from train.training.sweep import run_cells

    bank = FeatureBank(open_store(store), loading, str(choose_device(device)))
    if dry_run:
        _try(cells, load_manifest(manifest), bank, as_json)
        return
    evaluation = evaluation or out / "evaluation.json"
    with StopSignal(), locked(out, "another sweep"):
        with runs_progress(bank, len(cells)) as progress:
            outcome = run_cells(cells, load_manifest(manifest), bank, out, progress, jobs, trackers)
        replace_text(evaluation, json.dumps(outcome.documents, ensure_ascii=False, indent=1) + "\n")
    _show(outcome, evaluation, as_json)


def _check_unused(options: dict[str, object]) -> None:
    """Raise `UserError` if one of `options`, which a dry run does not use, was given."""
    if given := [name for name, value in options.items() if value]:
        raise UserError(f"--dry-run trains and writes nothing: remove {', '.join(given)}")


def _show(outcome: "Outcome", evaluation: Path, as_json: bool) -> None:
    """Print the results and the failed runs; the exit code is 3 if there are any."""
    if as_json:
        show_json(outcome.documents)
    else:
        if outcome.documents:
            show_scenarios(outcome.documents)
        click.echo(f"evaluation: {evaluation}", err=True)
    for name, cause in outcome.failures.items():
        click.echo(f"failed: {name}: {cause}", err=True)
    if outcome.failures:
        sys.exit(FAILURES_RECORDED)


def _try(cells: "list[Cell]", manifest: "Manifest", bank: "FeatureBank", as_json: bool) -> None:
    """Try the runs of the first seed and print them; the exit code is 3 if one fails."""
    from train.training.dry_run import try_cells

    def show(tried: "Tried") -> None:
        if tried.failure:
            click.echo(f"failed: {tried.run}: {tried.failure}", err=True)
        elif not as_json:
            click.echo(
                f"{tried.run:<32}{tried.parameters:>12,} parameters  {tried.questions:>7} questions  "
                f"{tried.steps_per_epoch:>6} steps x {tried.epochs} epochs  sees {tried.sees}"
            )

    results = try_cells(cells, manifest, bank, show)
    if as_json:
        show_json([asdict(tried) for tried in results])
    else:
        seeds = len({cell.config.seed for cell in cells})
        click.echo(f"{len(results)} runs for each of {seeds} seeds", err=True)
    if any(tried.failure for tried in results):
        sys.exit(FAILURES_RECORDED)
