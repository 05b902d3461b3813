"""Many runs on one store: a grid of backbones, methods and seeds, each cell trained, evaluated and kept.

It has no training loop of its own. What is finished is skipped and what was stopped goes on.
"""

import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.errors import UserError
from pipeline.manifests.manifest import Manifest, load_manifest
from train.data.scenarios import NATURAL, SCENARIOS
from train.runs.config import TrainConfig, make_config
from train.runs.results import RESULTS_FILE, read_results
from train.training.parallel import run_jobs

if TYPE_CHECKING:
    from train.data.feature_bank import FeatureBank
    from train.training.fit import Progress


class Entry(BaseModel):
    """One method of a grid: its name in run names, and settings that win over the grid's.

    Without `method` or `inputs` among them it is the method of its name. `evaluate`: false for a run that others only
    start from; it has no results and stands in no report.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str
    evaluate: bool = True

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of `train.runs.config.TrainConfig` that the entry gives."""
        given = self.model_extra or {}
        return given if {"method", "inputs"} & set(given) else {"method": self.name, **given}


class Grid(BaseModel):
    """What a grid file says. `settings` are those of `train.runs.config.TrainConfig`, for every cell.

    `curves`: every run also gets its accuracy at every pair of missing rates (`train.evaluation.rate_curves`).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    preset: str = "paper"
    backbones: tuple[str, ...] = Field(("avst",), min_length=1)
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    settings: dict[str, Any] = Field(default_factory=dict)
    curves: bool = False
    methods: tuple[Entry, ...] = Field(min_length=1)


@dataclass(frozen=True)
class Cell:
    """One run of a grid: its folder's name, its configuration, whether it is evaluated, and whether at all rates."""

    name: str
    config: TrainConfig
    evaluate: bool = True
    curves: bool = False

    @property
    def answers(self) -> bool:
        """Whether its answers are asked for; a pre-training has none."""
        return self.evaluate and self.config.objective == "answer"


def read_grid(path: Path) -> Grid:
    """Read a grid file. Raises `UserError` naming the file and the entry that is missing or unknown."""
    try:
        return Grid.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(f"grid {path} is missing: name a TOML file such as train/grids/demo.toml") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"grid {path} is not valid TOML: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"grid {path}: {where}: {first['msg']} (got {first['input']!r})") from None


def list_cells(grid: Grid, seeds: Iterable[int] | None, manifest: str, store: str, device: str = "auto") -> list[Cell]:
    """Return the product of seeds, backbones and methods; `seeds` replace the grid's.

    A cell is named `<method>-seed<k>`, with the backbone before it where the grid has several; `start_from` names an
    entry before it, whose run with the same backbone and seed is meant. Raises
    `UserError` for an unknown setting or a name that stands twice.
    """
    where = {"manifest": manifest, "store": store, "device": device}
    cells = []
    for seed in grid.seeds if seeds is None else seeds:
        for backbone in grid.backbones:
            for entry in grid.methods:
                settings = {**grid.settings, **entry.settings, **where}
                config = make_config(grid.preset, **settings, backbone=backbone, seed=seed)
                prefix = f"{backbone}-" if len(grid.backbones) > 1 else ""
                if config.start_from:
                    beside = f"{prefix}{config.start_from}-seed{seed}"
                    config = config.model_copy(update={"start_from": beside})
                cells.append(Cell(f"{prefix}{entry.name}-seed{seed}", config, entry.evaluate, grid.curves))
    names = [cell.name for cell in cells]
    for number, cell in enumerate(cells):
        if cell.config.start_from and cell.config.start_from not in names[:number]:
            raise UserError(f"run {cell.name!r} starts from {cell.config.start_from!r}: name an entry before it")
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated:
        raise UserError(f"the grid names run {repeated!r} twice: give each method and seed a name of its own")
    return cells


def run_cells(
    cells: Iterable[Cell],
    manifest: Manifest,
    bank: "FeatureBank",
    out: Path,
    progress: "Callable[[str, Progress], None] | None" = None,
    jobs: int = 1,
) -> dict[str, dict[str, Any]]:
    """Train and evaluate each cell in `out`, skipping what is done; return {run: its evaluation document}.

    With `jobs` above 1 so many cells run at once, in processes that open the manifest and store named in the cells.
    Raises `UserError` where a folder holds a run of other settings or other questions.
    """
    from train.evaluation.evaluate_run import default_split, summarise_run

    cells = list(cells)
    say = progress or (lambda name, said: None)
    _check_buildable(cells, manifest, bank)
    if jobs > 1:
        builds_on = {cell.name: cell.config.start_from for cell in cells}
        run_jobs({cell.name: cell for cell in cells}, builds_on, partial(_run_elsewhere, out), jobs, say)
    else:
        for cell in cells:
            _run_cell(cell, manifest, bank, out, partial(say, cell.name))
    split = default_split(manifest)
    answering = (cell.name for cell in cells if cell.answers)
    return {name: summarise_run(out / name, split) for name in answering}


def _run_cell(
    cell: Cell, manifest: Manifest, bank: "FeatureBank", out: Path, report: "Callable[[Progress], None]"
) -> None:
    from train.evaluation.evaluate_run import claim_data, default_split, evaluate_run
    from train.evaluation.rate_curves import add_curves
    from train.training.fit import choose_device, fit

    run, split = out / cell.name, default_split(manifest)
    claim_data(run, cell.config, manifest, bank)
    fit(cell.config, manifest, bank, run, resume=True, report=report)
    if cell.answers and not _is_evaluated(run, split):
        evaluate_run(run, manifest, bank, split, device=str(choose_device(cell.config.device)))
    if cell.answers and cell.curves and not _has_curves(run, split):
        add_curves(run, manifest, split)


def _run_elsewhere(out: Path, cell: Cell, report: "Callable[[Progress], None]") -> None:
    """Run a cell in a process that was given only its name and configuration."""
    _run_cell(cell, *_open_data(cell.config.manifest, cell.config.store), out, report)


@lru_cache(maxsize=1)
def _open_data(manifest: str, store: str) -> "tuple[Manifest, FeatureBank]":
    from pipeline.store.reader import open_store
    from train.data.feature_bank import FeatureBank

    return load_manifest(Path(manifest)), FeatureBank(open_store(store))


def _check_buildable(cells: Iterable[Cell], manifest: Manifest, bank: "FeatureBank") -> None:
    """Raise the `UserError` of a wrong name or option now, not after hours of other cells."""
    from train.runs.folder import build_method
    from train.training.fit import choose_device, measure_sizes

    seen: list[TrainConfig] = []
    for cell in cells:
        config = cell.config.model_copy(update={"seed": 0})
        choose_device(config.device)
        if config not in seen:
            build_method(config.model_copy(update={"sizes": measure_sizes(config, manifest, bank)}))
            seen.append(config)


def _has_curves(run: Path, split: str) -> bool:
    """Whether there is a row of every pair of rates; single ones may have been asked for by hand."""
    from train.evaluation.rate_curves import rate_grid

    drawn = [row.masking for row in read_results(run / RESULTS_FILE) if row.split == split and row.masking]
    found = [masking.rates for masking in drawn if (masking.unit, masking.seed) == ("question", 0)]
    return all(rates in found for rates in rate_grid())


def _is_evaluated(run: Path, split: str) -> bool:
    """Whether every scenario was asked, or the natural one where no video of the split is complete."""
    path = run / RESULTS_FILE
    rows = read_results(path) if path.exists() else []
    asked = {row.scenario for row in rows if row.split == split and row.kind == "model" and not row.masking}
    return asked >= SCENARIOS.keys() or asked == {NATURAL}
