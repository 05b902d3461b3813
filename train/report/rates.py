"""Accuracy against missing rates: what the blocks of masked scenarios say, as curves, as a grid and as a picture.

It computes no accuracy (`train.evaluation.rate_curves` does).
Source: Fig. 5 of the ECCV 2024 missing-modality paper, (a) one modality's rate, (b) both.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.store.schema import MODALITIES
from train.report.plots import panels, to_svg, unique_legend
from train.report.statistics import Estimate
from train.report.tables import Block

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GRIDS_IN_A_ROW = 4

Rates = tuple[float, float]
Surface = dict[Rates, Estimate]


def by_split(blocks: Sequence[Block]) -> list[list[Block]]:
    """Return the blocks of each dataset, release and split together."""
    parts: dict[tuple[str, str, str], list[Block]] = {}
    for block in blocks:
        parts.setdefault((block.dataset, block.release, block.split), []).append(block)
    return list(parts.values())


def curve_blocks(blocks: Sequence[Block]) -> list[Block]:
    """Return the blocks that make curves: those of the draw (unit and seed) with the most rates, two at least.

    A mask file alone makes none: it is a scenario like others.
    """
    by_draw: dict[tuple[str, int], list[Block]] = {}
    for block in blocks:
        if block.masking:
            by_draw.setdefault((block.masking.unit, block.masking.seed), []).append(block)
    longest = max(by_draw.values(), key=len, default=[])
    return longest if len(longest) > 1 else []


def table_blocks(blocks: Sequence[Block]) -> list[Block]:
    """Return the blocks that are printed as tables: all that make no curve."""
    drawn = {id(block) for members in by_split(blocks) for block in curve_blocks(members)}
    return [block for block in blocks if id(block) not in drawn]


def surfaces(blocks: Sequence[Block]) -> dict[str, Surface]:
    """Return {label: {(audio rate, visual rate): overall accuracy}} of the lines that answered masked questions.

    `blocks` are of one dataset and split.
    """
    found: dict[str, Surface] = {}
    complete = [block for block in blocks if block.scenario == "complete"]
    for block in (*complete, *curve_blocks(blocks)):
        rates = {} if block.masking is None else block.masking.rates
        for line in block.lines:
            cell = line.cells["All"]
            if line.role != "floor" and cell is not None:
                found.setdefault(line.label, {})[rates.get("audio", 0.0), rates.get("visual", 0.0)] = cell
    return {label: surface for label, surface in found.items() if len(surface) > 1}


def rate_curves(found: Mapping[str, Surface], colours: Mapping[str, str]) -> str:
    """Return an SVG of two panels: accuracy in percent against the rate of missing sound, and of missing pictures."""
    figure, axes_of = panels(len(MODALITIES))
    for index, (axes, modality) in enumerate(zip(axes_of, MODALITIES, strict=True)):
        for label, surface in found.items():
            curve = sorted((rates[index], cell) for rates, cell in surface.items() if rates[1 - index] == 0)
            x = [100 * rate for rate, _ in curve]
            axes.plot(x, [cell.mean for _, cell in curve], color=colours[label], lw=1.5, label=label)
            low, high = [cell.low for _, cell in curve], [cell.high for _, cell in curve]
            axes.fill_between(x, low, high, color=colours[label], alpha=0.12, lw=0)
        axes.set_title(f"{modality} missing", fontsize=9, loc="left", color="#3A3F47")
        axes.set_xlabel("questions without it, %")
        axes.grid(True, axis="y")
    axes_of[0].set_ylabel("overall accuracy, %")
    unique_legend(axes_of[0], figure)
    return to_svg(figure, "rates")


def rate_grids(found: Mapping[str, Surface]) -> str:
    """Return an SVG of a grid per line of `found`: accuracy in percent over both rates; "" where none has both."""
    full = {label: surface for label, surface in found.items() if any(a and v for a, v in surface)}
    if not full:
        return ""
    values = [cell.mean for surface in full.values() for cell in surface.values()]
    figure, axes_of = panels(len(full), GRIDS_IN_A_ROW)
    for number, (axes, (label, surface)) in enumerate(zip(axes_of, full.items(), strict=True)):
        image = _draw_grid(axes, surface, min(values), max(values))
        axes.set_title(label, fontsize=9, loc="left", color="#3A3F47")
        axes.set_xlabel("visual missing, %")
        if number % GRIDS_IN_A_ROW == 0:
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
