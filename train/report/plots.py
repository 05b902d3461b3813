"""The report's plots as inline SVG: accuracy per scenario, and what all plots share.

Colours are those of Okabe and Ito, distinguishable with colour blindness and in greyscale print.
"""

import io
import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from train.evaluation.statistics import Interval
from train.report.tables import FLOORS, Block, Line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#B0A000", "#5B5B5B")
REFERENCE_COLOUR = "#B4B8BE"
MOST_COLUMNS = 6
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


def colours_of(blocks: Sequence[Block]) -> dict[str, str]:
    """Return {label: colour} of every line except floors: one colour per method, grey for references."""
    roles = {line.label: line.role for block in blocks for line in block.lines if line.role != "floor"}
    methods = [label for label, role in roles.items() if role == "method"]
    method_colours = {label: COLOURS[number % len(COLOURS)] for number, label in enumerate(methods)}
    return {label: method_colours.get(label, REFERENCE_COLOUR) for label in roles}


def draw_scenario_bars(blocks: Sequence[Block]) -> str:
    """Return an SVG of overall accuracy in percent: a group per scenario, a bar per line, dashed floors."""
    colours = colours_of(blocks)
    labels = list(colours)
    figure, (axes,) = panels(1, height=3.5)
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
    cells = [cell for block in blocks for line in block.lines if (cell := line.cells["All"])]
    highs = [cell.interval.high if cell.interval else cell.mean for cell in cells]
    axes.set_ylim(0, min(108.0, (max(highs, default=0.0) or 100.0) * 1.1))
    axes.grid(True, axis="y")
    unique_legend(axes)
    return to_svg(figure, "bars")


def interval_style(interval: Interval) -> Any:
    """Return the line style of an interval: solid over seeds and videos, dashed over videos or questions alone."""
    return "-" if interval.over == "seeds and videos" else (0, (2, 1.5))


def _draw_bar(axes: "Axes", x: float, width: float, line: Line, colour: str) -> None:
    cell = line.cells["All"]
    if cell is None:
        return
    axes.bar(x, cell.mean, width, color=colour, label=line.label)
    if cell.interval is not None:
        style = interval_style(cell.interval)
        axes.vlines(x, cell.interval.low, cell.interval.high, color="#22262B", lw=0.9, ls=style, zorder=3)
    text_style: Any = {"fontsize": 7, "color": "#22262B" if colour == REFERENCE_COLOUR else "white"}
    axes.annotate(f"{cell.mean:.1f}", (x, 0), (0, 3), textcoords="offset points", ha="center", **text_style)


def _draw_floor(axes: "Axes", position: int, line: Line) -> None:
    cell = line.cells["All"]
    if cell is not None:
        colour, dashes = FLOOR_STYLES.get(line.method, ("#333333", (0, (3, 1))))
        edges = (position - 0.43, position + 0.43)
        axes.hlines(cell.mean, *edges, color=colour, ls=dashes, lw=1.1, label=f"{line.label} floor", zorder=3)


def panels(number: int, per_row: int = 2, height: float = 2.9) -> "tuple[Figure, list[Axes]]":
    """Return a figure of `number` panels in rows of `height` inches, in the style of the page."""
    import matplotlib
    from matplotlib.figure import Figure

    columns = min(number, per_row)
    rows = math.ceil(number / columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.4, height * rows), layout="constrained")
        axes_of = list(figure.subplots(rows, columns, squeeze=False).flat)
    for unused in axes_of[number:]:
        unused.set_axis_off()
    return figure, axes_of[:number]


def unique_legend(axes: "Axes", figure: "Figure | None" = None) -> None:
    """Add a legend above the figure (by default that of `axes`) with each label once, in columns that fit its width."""
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    owner: Any = figure or axes.figure
    style: Any = {"loc": "outside upper left", "frameon": False, "fontsize": 8}
    for columns in range(MOST_COLUMNS, 0, -1):
        legend = owner.legend(unique.values(), unique.keys(), ncols=columns, **style)
        for text in legend.get_texts():
            text.set_parse_math(False)
        if columns == 1 or legend.get_window_extent().width <= owner.bbox.width:
            return
        legend.remove()


def to_svg(figure: "Figure", prefix: str) -> str:
    """Return the figure as an SVG element whose ids start with `prefix`; equal figures give equal bytes.

    Dollar signs in labels are no mathematics.
    """
    import matplotlib
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        # The numbers on a logarithmic axis are mathematics; they have no text before they are drawn.
        if isinstance(text, Text) and text.get_text():
            text.set_parse_math(False)
    sink = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(sink, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = sink.getvalue()
    svg = svg[svg.index("<svg") :]
    # Several plots share one page: their ids must differ, and the page sets their size.
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    return re.sub(r' (?:width|height)="[\d.]+pt"', "", svg, count=2)
