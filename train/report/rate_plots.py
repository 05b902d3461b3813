"""Plots of the accuracy over missing rates, as curves of one rate and as a grid of both.

The accuracies are computed by `train.evaluation.rate_curves`.
Source: Fig. 5 of the ECCV 2024 missing-modality paper, (a) one modality's rate, (b) both.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.store.schema import MODALITIES
from train.evaluation.statistics import Estimate, Interval
from train.report.plots import panels, to_svg, unique_legend
from train.report.tables import Block, rate_blocks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GRIDS_PER_ROW = 4

Rates = tuple[float, float]
Surface = dict[Rates, Estimate]


def rate_surfaces(blocks: Sequence[Block]) -> dict[str, Surface]:
    """Return {label: {(audio rate, visual rate): overall accuracy}} of the lines evaluated at missing rates.

    `blocks` must be of one dataset and split.
    """
    surfaces: dict[str, Surface] = {}
    complete = [block for block in blocks if block.scenario == "complete"]
    for block in (*complete, *rate_blocks(blocks)):
        rates = {} if block.masking is None else block.masking.rates
        for line in block.lines:
            cell = line.cells["All"]
            if line.role != "floor" and cell is not None:
                surfaces.setdefault(line.label, {})[rates.get("audio", 0.0), rates.get("visual", 0.0)] = cell
    return {label: surface for label, surface in surfaces.items() if len(surface) > 1}


def draw_rate_curves(surfaces: Mapping[str, Surface], colours: Mapping[str, str]) -> str:
    """Return an SVG of two panels: accuracy in percent over the rate of missing audio, and of missing video."""
    figure, axes_of = panels(len(MODALITIES))
    for index, (axes, modality) in enumerate(zip(axes_of, MODALITIES, strict=True)):
        for label, surface in surfaces.items():
            curve = sorted((rates[index], cell) for rates, cell in surface.items() if rates[1 - index] == 0)
            x = [100 * rate for rate, _ in curve]
            axes.plot(x, [cell.mean for _, cell in curve], color=colours[label], lw=1.5, label=label)
            _draw_band(axes, x, [cell.interval for _, cell in curve], colours[label])
        axes.set_title(f"{modality} missing", fontsize=9, loc="left", color="#3A3F47")
        axes.set_xlabel("questions without it, %")
        axes.grid(True, axis="y")
    axes_of[0].set_ylabel("overall accuracy, %")
    unique_legend(axes_of[0], figure)
    return to_svg(figure, "rates")


def _draw_band(axes: "Axes", x: Sequence[float], intervals: Sequence[Interval | None], colour: str) -> None:
    """Draw the band of the intervals: filled over seeds and videos, else only its dashed bounds; none without one."""
    known = [interval for interval in intervals if interval is not None]
    if len(known) < len(intervals):
        return
    low, high = [interval.low for interval in known], [interval.high for interval in known]
    if all(interval.over == "seeds and videos" for interval in known):
        axes.fill_between(x, low, high, color=colour, alpha=0.12, lw=0)
    else:
        axes.plot(x, low, x, high, color=colour, lw=0.7, alpha=0.7, ls=(0, (2, 1.5)))


def draw_rate_grids(surfaces: Mapping[str, Surface]) -> str:
    """Return an SVG with a grid per line: accuracy in percent over both rates; "" if no line has both rates."""
    full = {label: surface for label, surface in surfaces.items() if any(a and v for a, v in surface)}
    if not full:
        return ""
    accuracies = [cell.mean for surface in full.values() for cell in surface.values()]
    figure, axes_of = panels(len(full), GRIDS_PER_ROW)
    for number, (axes, (label, surface)) in enumerate(zip(axes_of, full.items(), strict=True)):
        image = _draw_grid(axes, surface, min(accuracies), max(accuracies))
        axes.set_title(label, fontsize=9, loc="left", color="#3A3F47")
        axes.set_xlabel("visual missing, %")
        if number % GRIDS_PER_ROW == 0:
            axes.set_ylabel("audio missing, %")
    figure.colorbar(image, ax=axes_of, label="overall accuracy, %", shrink=0.9)
    return to_svg(figure, "grids")


def _draw_grid(axes: "Axes", surface: Surface, low: float, high: float) -> Any:
    rates = sorted({rate for pair in surface for rate in pair})
    missing = float("nan")
    cells = [[surface[a, v].mean if (a, v) in surface else missing for v in rates] for a in rates]
    edge = 100 * rates[-1] + 5
    axes.grid(False)
    extent = (-5.0, edge, -5.0, edge)
    return axes.imshow(cells, origin="lower", extent=extent, vmin=low, vmax=high, cmap="cividis", aspect="equal")
