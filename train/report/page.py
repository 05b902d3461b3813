"""The report of several run folders: a self-contained HTML page, tables and CSVs.

Accuracies come from each run's `results.jsonl`, gains and confusion matrices from its predictions, training curves and
times from its log. The page loads no external resources.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from pipeline.errors import UserError
from pipeline.files import make_folder, replace_text
from pipeline.manifests.templates import GROUPS, TYPES, Column
from train.evaluation.two_way import FEWEST_SEEDS, FEWEST_VIDEOS
from train.report.budgets import describe_differences
from train.report.confusion import find_confusions
from train.report.gain_plots import draw_gains
from train.report.gains import gain_rows, gains_csv, scenario_gains
from train.report.plots import colours_of, draw_scenario_bars
from train.report.predictions import Folders
from train.report.published import comparable_rows
from train.report.rate_plots import draw_rate_curves, draw_rate_grids, rate_surfaces
from train.report.recovery_plot import draw_recoveries, find_recoveries
from train.report.tables import Block, build_blocks, group_by_split, table_blocks
from train.report.text import comma_separated, describe_interval, latex, mark_interval, markdown, p_value, percent
from train.report.training_plots import draw_curves, read_curves
from train.runs.log import read_times
from train.runs.results import RESULTS_FILE, ResultRow, read_results

PAGE_FILE = "index.html"


def write_report(runs: Sequence[Path], out: Path) -> Path:
    """Write `index.html`, `tables.md`, `tables.tex`, `results.csv` and `gains.csv` to `out`; return the page's path.

    Raises `UserError` if a run has no results or the runs do not fit in one table.
    """
    folders = {row.key: run for run in runs for row in read_results(run / RESULTS_FILE)}
    rows = list({row.key: row for run in runs for row in read_results(run / RESULTS_FILE)}.values())
    if not rows:
        raise UserError(f"{', '.join(map(str, runs))}: no result rows: evaluate the runs with 'mavqa-evaluate'")
    blocks = build_blocks(rows, folders)
    parts = [_section(members, folders) for members in group_by_split(blocks)]
    written = {
        "tables.md": markdown(blocks),
        "tables.tex": latex(blocks),
        "results.csv": comma_separated(blocks),
        "gains.csv": gains_csv(part["tested"] for part in parts),
        PAGE_FILE: _render_page(blocks, parts, draw_curves(read_curves(blocks, folders), colours_of(blocks)), folders),
    }
    make_folder(out)
    for name, text in written.items():
        replace_text(out / name, text)
    return out / PAGE_FILE


def _render_page(
    blocks: Sequence[Block],
    parts: Sequence[dict[str, Any]],
    curves: Sequence[str],
    folders: Folders,
) -> str:
    """Return the HTML of the page; `curves`: SVGs of the trainings, `folders`: {key of a row: its folder}."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("train.report", "")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters["percent"] = percent
    environment.filters["interval"] = describe_interval
    environment.filters["mark"] = mark_interval
    environment.filters["p_value"] = p_value
    rows = [row for block in blocks for line in block.lines for row in line.rows]
    features = [(name, feature) for row in rows for name, feature in row.subject.features.items()]
    return environment.get_template("report.html").render(
        parts=parts,
        curves=curves,
        features=sorted({(name, f.weights, f.fingerprint, f.sha256) for name, f in features}),
        seeded=sorted({name for name, f in features if f.weights == "seeded"}),
        runs=_runs(rows, folders),
        fewest_videos=FEWEST_VIDEOS,
        fewest_seeds=FEWEST_SEEDS,
    )


def _section(blocks: Sequence[Block], folders: Folders) -> dict[str, Any]:
    """Return the variables of a section of the page: all scenarios of one dataset and split."""
    surfaces, colours = rate_surfaces(blocks), colours_of(blocks)
    methods = {line.label for block in blocks for line in block.lines if line.role == "method"}
    blocks = table_blocks(blocks)
    summary = {line.label: line.role for block in blocks for line in block.lines}
    gains, recoveries = scenario_gains(blocks), find_recoveries(blocks)
    return {
        "dataset": blocks[0].dataset,
        "release": blocks[0].release,
        "split": blocks[0].split,
        "distinction": blocks[0].distinction,
        "blocks": [
            {
                "block": block,
                "bands": _bands(block.columns),
                "best": _best(block),
                "published": comparable_rows(block),
            }
            for block in blocks
        ],
        "summary": [
            (label, role, [_overall_cell(block, label) for block in blocks]) for label, role in summary.items()
        ],
        "differences": describe_differences({line.label: line for block in blocks for line in block.lines}.values()),
        "bars": draw_scenario_bars(blocks),
        "rates": draw_rate_curves(surfaces, colours) if surfaces else "",
        "tested": (blocks[0], gains),
        "gains": gain_rows(gains),
        "gain_scenarios": list(gains),
        "gain_plots": draw_gains(gains, colours),
        "recoveries": recoveries,
        "recovery_dots": draw_recoveries(recoveries, colours) if recoveries else "",
        "confusions": find_confusions(blocks, folders),
        "grids": draw_rate_grids({label: surfaces[label] for label in surfaces if label in methods}),
    }


def _overall_cell(block: Block, label: str) -> Any:
    return next((line.cells["All"] for line in block.lines if line.label == label), None)


def _best(block: Block) -> dict[str, str]:
    """Return {column: accuracy of the best method, as printed}, to be set in bold; {} for a single method."""
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
    """Return (group, number of columns, short headings) of each column group: the two header rows of a table."""
    bands: list[tuple[str, int, list[str]]] = []
    for column in columns:
        is_known = bool(column.types) and set(column.types) <= set(TYPES)
        band = next((g for g in GROUPS if is_known and column.types[0].rpartition(" ")[0] == g), "")
        short = "Avg" if len(column.types) > 1 else column.label.split("-")[-1] if band else column.label
        if bands and bands[-1][0] == band:
            bands[-1] = (band, bands[-1][1] + 1, [*bands[-1][2], short])
        else:
            bands.append((band, 1, [short]))
    return bands


def _runs(rows: Iterable[ResultRow], folders: Folders) -> list[dict[str, Any]]:
    """Return the variables of each run in the table of runs; `seconds` is the median over its epochs."""
    names = ("run", "backbone", "method", "variant", "inputs", "seed", "parameters", "sees", "trains_on")
    runs = []
    models = [row for row in rows if row.kind == "model"]
    for row in {(row.subject.run_id, row.subject.checkpoint_sha256): row for row in models}.values():
        run = folders.get(row.key)
        times = read_times(run) if run else {}
        runs.append(
            {
                **{name: getattr(row, name) for name in names},
                "id": row.subject.run_id,
                "checkpoint": row.subject.checkpoint_sha256,
                "seconds": median(times.values()) if times else None,
                "training": ", ".join(f"{key} {value}" for key, value in _flatten(row.training)),
            }
        )
    return runs


def _flatten(settings: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
