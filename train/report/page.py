"""A self-contained page, tables and CSVs out of run folders. Every accuracy comes from their `results.jsonl`.

Gains and what is answered instead need the predictions that stand beside it, training curves and times the run's log.
The page loads nothing from anywhere.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from pipeline.errors import UserError
from pipeline.files import replace_text
from pipeline.manifests.templates import GROUPS, TYPES, Column
from train.report.answers import Folders
from train.report.confusion import find_confusions
from train.report.gains import gain_rows, gains_csv, scenario_gains
from train.report.plots import Curve, colours_of, scenario_bars, training_curves
from train.report.published import published_beside
from train.report.rates import by_split, rate_curves, rate_grids, surfaces, table_blocks
from train.report.recovery import draw_recoveries, find_recoveries
from train.report.tables import Block, build_blocks, identity
from train.report.text import comma_separated, describe_interval, latex, markdown, percent
from train.runs.log import METRICS, read_times
from train.runs.results import RESULTS_FILE, ResultRow, read_results

PAGE_FILE = "index.html"


def write_report(runs: Sequence[Path], out: Path) -> Path:
    """Write `index.html`, `tables.md`, `tables.tex`, `results.csv` and `gains.csv` into `out`; return the page's path.

    Raises `UserError` where a run has no results or runs cannot stand in one table.
    """
    found = [(run, row) for run in runs for row in read_results(run / RESULTS_FILE)]
    rows = [row for _, row in found]
    if not rows:
        raise UserError(f"{', '.join(map(str, runs))}: no result row: evaluate the runs with 'mavqa-evaluate'")
    blocks = build_blocks(rows)
    out.mkdir(parents=True, exist_ok=True)
    replace_text(out / "tables.md", markdown(blocks))
    replace_text(out / "tables.tex", latex(blocks))
    replace_text(out / "results.csv", comma_separated(blocks))
    folders = {(identity(row), row.seed): run for run, row in found if row.kind == "model"}
    parts = [_part(members, folders) for members in by_split(blocks)]
    replace_text(out / "gains.csv", gains_csv(part["tested"] for part in parts))
    replace_text(out / PAGE_FILE, _render_page(blocks, parts, read_curves(runs, blocks), folders))
    return out / PAGE_FILE


def _render_page(
    blocks: Sequence[Block],
    parts: Sequence[dict[str, Any]],
    curves: dict[str, dict[str, list[Curve]]],
    folders: Folders,
) -> str:
    """Return the HTML of a report; `curves` as for `training_curves`, {} for none; `folders`: `scenario_gains`."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("train.report", "")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters["percent"] = percent
    environment.filters["interval"] = describe_interval
    rows = [row for block in blocks for line in block.lines for row in line.rows]
    return environment.get_template("report.html").render(
        parts=parts,
        curves=training_curves(curves, colours_of(blocks)) if curves else "",
        features=sorted({(n, f.weights, f.fingerprint) for row in rows for n, f in row.features.items()}),
        seeded=sorted({n for row in rows for n, f in row.features.items() if f.weights == "seeded"}),
        runs=_runs(rows, folders),
    )


def read_curves(runs: Iterable[Path], blocks: Sequence[Block]) -> dict[str, dict[str, list[Curve]]]:
    """Read the training loss and the selection score of every run: {quantity: {label: a curve per seed}}."""
    labels = {row.run: line.label for block in blocks for line in block.lines for row in line.rows if line.seeds}
    curves: dict[str, dict[str, list[Curve]]] = {}
    for run in runs:
        path = run / METRICS
        if not path.exists() or run.resolve().name not in labels:
            continue
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for quantity, curve in _curves(records).items():
            if curve:
                curves.setdefault(quantity, {}).setdefault(labels[run.resolve().name], []).append(curve)
    return curves


def _curves(records: Sequence[dict[str, Any]]) -> dict[str, Curve]:
    """Return the total loss by epoch, and the mean over the scenarios that chose the checkpoint."""
    losses = [(r["epoch"], r["losses"]["total"]) for r in records]
    scores = [(r["epoch"], list(r["validation"].values())) for r in records]
    return {
        "training loss": losses,
        "validation accuracy, %": [(epoch, sum(s) / len(s)) for epoch, s in scores if s],
    }


def _part(blocks: Sequence[Block], folders: Folders) -> dict[str, Any]:
    """One section of the page: all scenarios of one dataset and split."""
    masked, colours = surfaces(blocks), colours_of(blocks)
    methods = {line.label for block in blocks for line in block.lines if line.role == "method"}
    blocks = table_blocks(blocks)
    summary = {line.label: line.role for block in blocks for line in block.lines}
    gains, recoveries = scenario_gains(blocks, folders), find_recoveries(blocks)
    return {
        "dataset": blocks[0].dataset,
        "release": blocks[0].release,
        "split": blocks[0].split,
        "blocks": [_item(block) for block in blocks],
        "summary": [(label, role, [_find(block, label) for block in blocks]) for label, role in summary.items()],
        "bars": scenario_bars(blocks),
        "rates": rate_curves(masked, colours) if masked else "",
        "tested": (blocks[0], gains),
        "gains": gain_rows(gains),
        "gain_scenarios": list(gains),
        "recoveries": recoveries,
        "recovery_dots": draw_recoveries(recoveries, colours) if recoveries else "",
        "confusions": find_confusions(blocks, folders),
        "grids": rate_grids({label: masked[label] for label in masked if label in methods}),
    }


def _item(block: Block) -> dict[str, Any]:
    return {"block": block, "bands": _bands(block.columns), "best": _best(block), "published": published_beside(block)}


def _find(block: Block, label: str) -> Any:
    return next((line.cells["All"] for line in block.lines if line.label == label), None)


def _best(block: Block) -> dict[str, str]:
    """Return {column: printed figure of the best method}, to be set in bold; {} for a single method."""
    methods = [line for line in block.lines if line.role == "method"]
    if len(methods) < 2:
        return {}
    best = {}
    for column in block.columns:
        means = [cell.mean for line in methods if (cell := line.cells[column.label])]
        if means:
            best[column.label] = percent(max(means))
    return best


def _bands(columns: Sequence[Column]) -> list[tuple[str, int, list[str]]]:
    """Return (group, number of columns, short headings): the head of a table in two rows."""
    bands: list[tuple[str, int, list[str]]] = []
    for column in columns:
        known = bool(column.types) and set(column.types) <= set(TYPES)
        band = next((g for g in GROUPS if known and column.types[0].rpartition(" ")[0] == g), "")
        short = "Avg" if len(column.types) > 1 else column.label.split("-")[-1] if band else column.label
        if bands and bands[-1][0] == band:
            bands[-1] = (band, bands[-1][1] + 1, [*bands[-1][2], short])
        else:
            bands.append((band, 1, [short]))
    return bands


def _runs(rows: Iterable[ResultRow], folders: Folders) -> list[dict[str, Any]]:
    unique = {row.run: row for row in rows if row.kind == "model"}
    names = ("run", "backbone", "method", "variant", "inputs", "seed", "parameters", "sees", "trains_on")
    return [
        {
            **{name: getattr(row, name) for name in names},
            "seconds": _seconds_per_epoch(folders.get((identity(row), row.seed))),
            "training": _settings(row.training),
        }
        for row in unique.values()
    ]


def _seconds_per_epoch(run: Path | None) -> float | None:
    """Return the median over a run's epochs, None where no times are there."""
    times = read_times(run) if run else {}
    return median(times.values()) if times else None


def _settings(training: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in _flat(training))


def _flat(settings: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
