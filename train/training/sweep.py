"""Sweeps: train and evaluate a grid of backbones, methods and seeds on one store.

Finished runs are skipped, stopped ones are resumed.
"""

import tomllib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, StrictBool, StrictInt, ValidationError

from pipeline.errors import UserError, describe_invalid, unknown_name
from pipeline.files import check_file_name
from pipeline.machine import available_cores
from pipeline.manifests.manifest import Manifest, load_manifest
from train.backbones.registry import needs_of
from train.data.loading import LoadingSettings
from train.runs.config import SETTINGS, TrainConfig, check_names, make_config
from train.training.parallel import run_in_turn, run_jobs
from train.training.tracking import make_tracker, tracked

if TYPE_CHECKING:
    from train.data.feature_bank import FeatureBank
    from train.evaluation.predict import EvaluationProgress
    from train.training.loop import Progress

    # The progress of a run in training or in its evaluation; None at its end, also if it failed or was skipped.
    RunProgress = Progress | EvaluationProgress | None

# What to use instead of these settings in a grid.
_SET_ELSEWHERE = {
    "preset": "the grid's preset",
    "backbone": "the grid's backbones",
    "seed": "the grid's seeds",
    "manifest": "--manifest",
    "store": "--store",
    "device": "--device",
}
_SETTABLE = [name for name in SETTINGS if name not in _SET_ELSEWHERE]


class Entry(BaseModel):
    """One method of a grid: its name in run names, and settings that override the grid's.

    The name is also the method, unless the entry has a `method`, other `inputs` than "all" or the `objective`
    "grounding". `evaluate`: false for a run that others only start from; it has no results and is in no report.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str
    evaluate: StrictBool = True

    @property
    def settings(self) -> dict[str, Any]:
        """The entry's settings of `train.runs.config.TrainConfig`."""
        extra = self.model_extra or {}
        is_reference, is_pretraining = extra.get("inputs", "all") != "all", extra.get("objective") == "grounding"
        return extra if "method" in extra or is_reference or is_pretraining else {"method": self.name, **extra}


class Grid(BaseModel):
    """The content of a grid file; `settings` of `train.runs.config.TrainConfig` apply to every cell.

    `backbones`: None for the preset's. `curves`: also compute each run's accuracy at every pair of missing rates
    (`train.evaluation.rate_curves`).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    preset: str = "paper"
    backbones: tuple[str, ...] | None = Field(None, min_length=1)
    seeds: tuple[StrictInt, ...] = Field((0,), min_length=1)
    settings: dict[str, Any] = Field(default_factory=dict)
    curves: StrictBool = False
    methods: tuple[Entry, ...] = Field(min_length=1)
    _file: str = PrivateAttr("")

    @property
    def label(self) -> str:
        """The grid in error messages: "grid" and its file, if it was read from one."""
        return f"grid {self._file}" if self._file else "grid"


@dataclass(frozen=True)
class Cell:
    """One run of a grid: its folder's name, its configuration, whether to evaluate it and at every missing rate.

    `place`: the entry of the grid, for error messages.
    """

    name: str
    config: TrainConfig
    evaluate: bool = True
    curves: bool = False
    place: str = "grid"

    @property
    def is_evaluated(self) -> bool:
        """Whether the run is evaluated; a pre-training never is."""
        return self.evaluate and self.config.objective == "answer"


@dataclass(frozen=True)
class Outcome:
    """The result of a sweep: {run: its evaluation document} of finished runs, {run: cause} of failed and skipped ones.

    Both are in the order of the cells.
    """

    documents: dict[str, dict[str, Any]]
    failures: dict[str, str]


def read_grid(path: Path) -> Grid:
    """Read a grid file. Raises `UserError` with the file and the entry if it is missing, unknown or invalid."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
        for name in document:
            if name not in Grid.model_fields:
                raise unknown_name(f"grid {path}: entry", name, Grid.model_fields)
        grid = Grid.model_validate(document)
    except FileNotFoundError:
        raise UserError(
            f"grid {path} is missing: pass a TOML file, or the name of a bundled grid such as demo"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"grid {path} is not valid TOML: {error}") from None
    except ValidationError as error:
        raise UserError(f"grid {path}: {describe_invalid(error)}") from None
    grid._file = str(path)
    return grid


def list_cells(grid: Grid, seeds: Iterable[int] | None, manifest: str, store: str, device: str = "auto") -> list[Cell]:
    """Return a cell for every combination of seed, backbone and method; `seeds` replace the grid's unless None.

    Every entry chooses its own method or inputs, which replace a `method` of the grid's settings.
    A cell is named `<method>-seed<k>`, after `<backbone>-` if the grid has several. An entry's `start_from` is the name
    of an earlier entry; it means that entry's run with the same backbone and seed.
    Raises `UserError`, with the grid and the entry, if a setting is unknown, a name is repeated or not a plain name, or
    `start_from` is not an earlier entry.
    """
    with _naming(f"{grid.label}, settings"):
        _check_settable(grid.settings, _SETTABLE)
    location = {"manifest": manifest, "store": store, "device": device}
    cells = []
    backbones = grid.backbones or (None,)
    for seed in grid.seeds if seeds is None else seeds:
        for backbone in backbones:
            for entry in grid.methods:
                of_all = {name: value for name, value in grid.settings.items() if name != "method"}
                settings, place = {**of_all, **entry.settings}, f"{grid.label}, method {entry.name!r}"
                with _naming(place):
                    check_file_name("name", entry.name, "choose another")
                    _check_settable(entry.settings, [*Entry.model_fields, *_SETTABLE])
                    config = make_config(grid.preset, **settings, **location, backbone=backbone, seed=seed)
                prefix = f"{backbone}-" if len(backbones) > 1 else ""
                if config.start_from:
                    start_run = f"{prefix}{config.start_from}-seed{seed}"
                    config = config.model_copy(update={"start_from": start_run})
                cells.append(Cell(f"{prefix}{entry.name}-seed{seed}", config, entry.evaluate, grid.curves, place))
    names = [cell.name for cell in cells]
    folders = [name.casefold() for name in names]  # some file systems do not distinguish cases
    for number, cell in enumerate(cells):
        if cell.config.start_from and cell.config.start_from not in names[:number]:
            raise UserError(f"{cell.place} starts from {cell.config.start_from!r}: name an earlier entry")
    repeated = next((name for name in names if folders.count(name.casefold()) > 1), None)
    if repeated:
        raise UserError(f"{grid.label} has two runs named {repeated!r}: use unique method names and seeds")
    return cells


def run_cells(
    cells: Iterable[Cell],
    manifest: Manifest,
    bank: "FeatureBank",
    out: Path,
    progress: "Callable[[str, RunProgress], None] | None" = None,
    jobs: int = 1,
    trackers: Collection[str] = (),
) -> Outcome:
    """Train and evaluate each cell in `out`, skipping finished ones.

    A cell that fails, such as a training that diverges or a folder with a run on other questions, does not stop the
    others; cells that start from it are skipped. `progress`: a function of (name of a run, its progress or None).
    `jobs`: number of cells to run in parallel, each process with its share of the memory limit of `bank`, the cores and
    the GPUs; if above 1, each opens the manifest and store of the cells' configuration. `trackers`: names of those that
    record the training steps (`train.training.tracking`). Raises `UserError` before anything is trained if a name or an
    option of a cell is invalid, if a tracker is not available, or if there is no split to evaluate on.
    """
    from train.evaluation.evaluate_run import default_split, evaluate_run
    from train.evaluation.summary import summarise_rows
    from train.runs.device import assign_gpus

    for name in trackers:
        make_tracker(name)
    cells, split = list(cells), default_split(manifest)
    report = progress or (lambda run, progress: None)
    _check_trainable(cells, manifest, bank, out)
    by_name, depends_on = {cell.name: cell for cell in cells}, {cell.name: cell.config.start_from for cell in cells}
    if jobs > 1:
        gpus = assign_gpus({cell.config.device for cell in cells}, jobs)
        environments = [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in gpus] or [{}] * jobs
        shared = bank.shared_by(jobs, gpus=max(1, len(set(gpus))))
        for cell in cells:
            shared.prepare_on_disk(needs_of(cell.config.backbone), cell.config.time_steps, cell.config.map_size)
        threads = max(1, available_cores() // jobs)
        work = partial(_run_in_process, out, shared.settings, threads, trackers)
        failures = run_jobs(by_name, depends_on, work, environments, report)
    else:
        failures = run_in_turn(by_name, depends_on, partial(_run_cell, manifest, bank, out, trackers), report)
    documents = {}
    for cell in cells:
        if cell.is_evaluated and cell.name not in failures:
            rows = evaluate_run(out / cell.name, manifest, bank, split, keep=True)
            documents[cell.name] = summarise_rows(rows, near=out / cell.name)
    return Outcome(documents, {name: failures[name] for name in by_name if name in failures})


@contextmanager
def _naming(place: str) -> Iterator[None]:
    """Put `place` before the message of a `UserError` that the block raises."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{place}: {error}") from None


def _check_settable(settings: Mapping[str, Any], known: Collection[str]) -> None:
    """Raise `UserError` if a setting is not `known`, or set by the rest of the grid or an option of the command."""
    for name in settings:
        if name in _SET_ELSEWHERE:
            raise UserError(f"setting {name!r} cannot be set here: use {_SET_ELSEWHERE[name]}")
    check_names(settings, known)


def _run_cell(
    manifest: Manifest,
    bank: "FeatureBank",
    out: Path,
    trackers: Collection[str],
    cell: Cell,
    report: "Callable[[RunProgress], None]",
) -> None:
    from train.training.fit import fit

    with tracked(trackers, cell.config, out / cell.name, report) as record:
        fit(cell.config, manifest, bank, out / cell.name, resume=True, report=record)
    if cell.is_evaluated:
        _evaluate_cell(cell, manifest, bank, out, report)


def _evaluate_cell(
    cell: Cell, manifest: Manifest, bank: "FeatureBank", out: Path, report: "Callable[[RunProgress], None]"
) -> None:
    """Evaluate a trained cell, and at every missing rate if its grid has curves, unless that was done."""
    from train.evaluation.evaluate_run import default_split, evaluate_run
    from train.evaluation.rate_curves import add_curves
    from train.runs.device import choose_device

    run, split, device = out / cell.name, default_split(manifest), str(choose_device(cell.config.device))
    rows = evaluate_run(run, manifest, bank, split, device=device, report=report, keep=True)
    # A split without complete videos has no curves.
    if cell.curves and any(row.scenario == "complete" for row in rows):
        add_curves(run, rows[0], manifest, keep=True)


def _run_in_process(
    out: Path,
    loading: LoadingSettings,
    threads: int,
    trackers: Collection[str],
    cell: Cell,
    report: "Callable[[RunProgress], None]",
) -> None:
    """Run a cell in one of several processes, which opens the data at its first cell and keeps them open."""
    import torch

    torch.set_num_threads(threads)
    config = cell.config
    try:
        _run_cell(*_open_data(config.manifest, config.store, loading, config.device), out, trackers, cell, report)
    finally:
        torch.cuda.empty_cache()  # of a GPU that other processes may share


@lru_cache(maxsize=1)
def _open_data(manifest: str, store: str, loading: LoadingSettings, device: str) -> "tuple[Manifest, FeatureBank]":
    from pipeline.store.reader import open_store
    from train.data.feature_bank import FeatureBank
    from train.runs.device import choose_device

    bank = FeatureBank(open_store(store), loading, str(choose_device(device)))
    return load_manifest(Path(manifest)), bank


def _check_trainable(cells: Iterable[Cell], manifest: Manifest, bank: "FeatureBank", out: Path) -> None:
    """Raise `UserError` for an invalid name or setting now instead of after hours of training other cells."""
    from train.runs.device import choose_device
    from train.training.fit import check_trainable

    checked: list[TrainConfig] = []
    for cell in cells:
        config = cell.config.model_copy(update={"seed": 0})
        choose_device(config.device)
        if config not in checked:
            with _naming(cell.place):
                check_trainable(config, manifest, bank, out / cell.name)
            checked.append(config)
