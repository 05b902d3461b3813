"""Plots of the training of each run: losses and learning rate over its steps, validation accuracy over its epochs.

Losses and rates are those of `steps.csv` if it has the whole training, else those of `metrics.jsonl`, one per epoch.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from train.report.plots import panels, to_svg, unique_legend
from train.report.predictions import Folders
from train.report.tables import Block
from train.runs.log import read_metrics
from train.runs.steps import Row, mean_row, read_steps

# A longer curve has the means of neighbouring points: a page of sixty runs stays within a few MB.
MOST_POINTS = 100
# {quantity: heading of its panel} of the first plot; the second one has the other losses.
FIRST = {
    "loss/total": "training loss",
    "loss/answer": "training loss of the answers",
    "validation": "validation accuracy, %",
    "learning_rate": "learning rate",
}

# (epoch, value) of the points of a curve
Curve = Sequence[tuple[float, float]]
# {quantity: {label of a line: one curve per seed}}
Curves = Mapping[str, Mapping[str, Sequence[Curve]]]


def read_curves(blocks: Sequence[Block], folders: Folders) -> Curves:
    """Return the curves of every run; `folders`: {key of a row: its folder}."""
    lines = [(line.label, row) for block in blocks for line in block.lines if line.seeds for row in line.rows]
    runs = {row.subject.run_id: (label, folders[row.key]) for label, row in lines if row.key in folders}
    curves: dict[str, dict[str, list[Curve]]] = {}
    for label, folder in runs.values():
        for quantity, curve in _curves(folder).items():
            curves.setdefault(quantity, {}).setdefault(label, []).append(curve)
    return curves


def draw_curves(curves: Curves, colours: Mapping[str, str]) -> list[str]:
    """Return the SVGs of both plots, with a panel per quantity; fewer if there is nothing to draw."""
    first = {heading: curves[quantity] for quantity, heading in FIRST.items() if quantity in curves}
    others = {f"{name.partition('/')[2]} loss": curves[name] for name in curves if name not in FIRST}
    plots = {"curves": first, "losses": others}
    return [_draw(prefix, quantities, colours) for prefix, quantities in plots.items() if quantities]


def _curves(run: Path) -> dict[str, Curve]:
    """Return {quantity: its curve} of a run; a loss that it does not have is missing."""
    epochs, steps = read_metrics(run), read_steps(run)
    has_all_steps = bool(steps) and steps[-1]["epoch"] >= len(epochs)
    rows = _thinned(steps) if has_all_steps else [_row_of_epoch(record) for record in epochs]
    quantities = dict.fromkeys(name for row in rows for name in row if name == "learning_rate" or "/" in name)
    curves: dict[str, Curve] = {q: [(row["epoch"], row[q]) for row in rows if q in row] for q in quantities}
    validations = [(record["epoch"], list(record["validation"].values())) for record in epochs]
    scored = [(epoch, fmean(scores)) for epoch, scores in validations if scores]
    return curves | ({"validation": scored} if scored else {})


def _row_of_epoch(record: dict) -> Row:
    """Return the metrics of an epoch in the form of a row of `steps.csv`."""
    rate = {"learning_rate": record["learning_rate"]} if "learning_rate" in record else {}
    return {"epoch": record["epoch"], **rate, **{f"loss/{name}": loss for name, loss in record["losses"].items()}}


def _thinned(rows: Sequence[Row]) -> list[Row]:
    """Return at most `MOST_POINTS` rows, means of equally many neighbours."""
    size = -(-len(rows) // MOST_POINTS)
    return [mean_row(rows[start : start + size]) for start in range(0, len(rows), size)]


def _draw(prefix: str, quantities: Mapping[str, Mapping[str, Sequence[Curve]]], colours: Mapping[str, str]) -> str:
    from matplotlib.ticker import MaxNLocator

    figure, axes_of = panels(len(quantities), height=2.4)
    for axes, (heading, lines) in zip(axes_of, quantities.items(), strict=True):
        for label, seeds in lines.items():
            for curve in seeds:
                epochs, values = zip(*curve, strict=True)
                axes.plot(epochs, values, color=colours[label], lw=1.1, label=label)
                axes.plot(epochs[-1:], values[-1:], "o", color=colours[label], ms=3)
        axes.set_title(heading, fontsize=9, loc="left", color="#3A3F47")
        axes.set_xlabel("epoch")
        # From the start of the training: the only point of a run of one epoch has a place, too.
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(True, axis="y")
    unique_legend(axes_of[0], figure)
    return to_svg(figure, prefix)
