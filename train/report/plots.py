"""The report's pictures as inline SVG: accuracy per scenario, and training curves. It computes no figure.

Colours are those of Okabe and Ito, told apart by readers with colour blindness and in grey print.
"""

import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from train.report.tables import FLOORS, Block, Line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#B0A000", "#5B5B5B")
REFERENCE_COLOUR = "#B4B8BE"
FLOOR_STYLES = {FLOORS[0]: ("#333333", (0, (5, 2))), FLOORS[1]: ("#333333", (0, (1, 1.5)))}
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "svg.fonttype": "none",
    "svg.hashsalt": "mavqa",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8A8F98",
    "axes.labelcolor": "#3A3F47",
    "xtick.color": "#3A3F47",
    "ytick.color": "#3A3F47",
    "axes.grid.axis": "y",
    "grid.color": "#E6E8EB",
    "axes.axisbelow": True,
}

Curve = Sequence[tuple[int, float]]


def colours_of(blocks: Sequence[Block]) -> dict[str, str]:
    """Return the colour of every line but floors: one per method, grey for what never sees a modality."""
    roles = {line.label: line.role for block in blocks for line in block.lines if line.role != "floor"}
    methods = [label for label, role in roles.items() if role == "method"]
    chosen = {label: COLOURS[number % len(COLOURS)] for number, label in enumerate(methods)}
    return {label: chosen.get(label, REFERENCE_COLOUR) for label in roles}


def scenario_bars(blocks: Sequence[Block]) -> str:
    """Return an SVG of overall accuracy in percent: a group per scenario, a bar per line, dashed floors."""
    colours = colours_of(blocks)
    labels = list(colours)
    figure, axes = _canvas(9.4, 3.5)
    width = 0.8 / max(1, len(labels))
    for position, block in enumerate(blocks):
        for line in block.lines:
            if line.role == "floor":
                _draw_floor(axes, position, line)
            else:
                offset = position - 0.4 + width * (labels.index(line.label) + 0.5)
                _draw_bar(axes, offset, width * 0.88, line, colours[line.label])
    axes.set_xticks(range(len(blocks)), [block.scenario for block in blocks])
    axes.tick_params(axis="x", length=0)
    axes.set_ylabel("overall accuracy, %")
    axes.set_ylim(0, _top(blocks))
    axes.grid(True, axis="y")
    _unique_legend(axes)
    return _svg(figure, "bars")


def training_curves(curves: Mapping[str, Mapping[str, Sequence[Curve]]], colours: Mapping[str, str]) -> str:
    """Return an SVG of small multiples: `curves` is {quantity: {label: (epoch, value) curves, per seed}}."""
    from matplotlib.ticker import MaxNLocator

    figure, panels = _panels(len(curves))
    for axes, (quantity, lines) in zip(panels, curves.items(), strict=True):
        for label, seeds in lines.items():
            for number, curve in enumerate(seeds):
                epochs, values = zip(*curve, strict=True)
                axes.plot(epochs, values, color=colours[label], lw=1.4, label=None if number else label)
                axes.plot(epochs[-1:], values[-1:], "o", color=colours[label], ms=3)
        axes.set_title(quantity, fontsize=9, loc="left", color="#3A3F47")
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(True, axis="y")
    _unique_legend(panels[0], figure)
    return _svg(figure, "curves")


def _draw_bar(axes: "Axes", x: float, width: float, line: Line, colour: str) -> None:
    cell = line.cells["All"]
    if cell is None:
        return
    axes.bar(x, cell.mean, width, color=colour, label=line.label)
    below, above = cell.mean - cell.low, cell.high - cell.mean
    axes.errorbar(x, cell.mean, yerr=[[below], [above]], color="#22262B", lw=0.9, capsize=2.2, capthick=0.9)
    ink = "#22262B" if colour == REFERENCE_COLOUR else "white"
    where: Any = {"textcoords": "offset points", "ha": "center", "fontsize": 7, "color": ink}
    axes.annotate(f"{cell.mean:.1f}", (x, 0), (0, 3), **where)


def _draw_floor(axes: "Axes", position: int, line: Line) -> None:
    cell = line.cells["All"]
    if cell is not None:
        colour, dashes = FLOOR_STYLES.get(line.method, ("#333333", (0, (3, 1))))
        edges = (position - 0.43, position + 0.43)
        axes.hlines(cell.mean, *edges, color=colour, ls=dashes, lw=1.1, label=f"{line.label} floor", zorder=3)


def _top(blocks: Sequence[Block]) -> float:
    highs = [cell.high for block in blocks for line in block.lines if (cell := line.cells["All"])]
    return min(108.0, max(highs, default=100.0) * 1.1)


def _canvas(width: float, height: float) -> "tuple[Figure, Axes]":
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, figure.subplots()


def _panels(number: int) -> "tuple[Figure, list[Axes]]":
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.4, 2.9), layout="constrained")
        return figure, list(figure.subplots(1, number, squeeze=False)[0])


def _unique_legend(axes: "Axes", figure: "Figure | None" = None) -> None:
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    where: Any = figure or axes.figure
    where.legend(unique.values(), unique.keys(), loc="outside upper left", ncols=6, frameon=False, fontsize=8)


def _svg(figure: "Figure", prefix: str) -> str:
    import matplotlib

    sink = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(sink, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = sink.getvalue()
    text = text[text.index("<svg") :]
    # Several pictures share one page: their ids must not meet, and the page gives the size.
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}-", text)
    return re.sub(r' (?:width|height)="[\d.]+pt"', "", text, count=2)
