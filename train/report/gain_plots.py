"""Plots of the gains over one baseline: the difference of each seed, their mean and its interval."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from train.report.gains import Gain, Gains
from train.report.plots import interval_style, panels, to_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK = "#22262B"
# Inches: of a method, and of the heading and the axis of a panel.
METHOD_HEIGHT, PANEL_HEIGHT = 0.24, 0.95
SCENARIOS_PER_ROW = 2
# How far the dots of the seeds are above the interval, in lines.
ABOVE = 0.24


def draw_gains(gains: Gains, colours: Mapping[str, str]) -> dict[str, str]:
    """Return {baseline: SVG} with a panel per scenario and a line per method, in percentage points.

    Dots are seeds, the stroke is the mean and the bar its 95 % interval, dashed if it is over videos alone.
    """
    of_baselines: dict[str, dict[str, Mapping[str, Gain]]] = {}
    for scenario, by_baseline in gains.items():
        for baseline, by_method in by_baseline.items():
            of_baselines.setdefault(baseline, {})[scenario] = by_method
    return {
        baseline: _draw(f"gains{number}", of_scenarios, colours)
        for number, (baseline, of_scenarios) in enumerate(of_baselines.items())
    }


def _draw(prefix: str, of_scenarios: Mapping[str, Mapping[str, Gain]], colours: Mapping[str, str]) -> str:
    methods = list(dict.fromkeys(method for by_method in of_scenarios.values() for method in by_method))
    height = PANEL_HEIGHT + METHOD_HEIGHT * len(methods)
    figure, axes_of = panels(len(of_scenarios), SCENARIOS_PER_ROW, height)
    for axes, (scenario, by_method) in zip(axes_of, of_scenarios.items(), strict=True):
        for method, gain in by_method.items():
            _draw_gain(axes, methods.index(method), gain, colours[method])
        axes.axvline(0, color="#8A8F98", lw=0.9, zorder=1)
        axes.set_yticks(range(len(methods)), methods)
        axes.set_ylim(len(methods) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.set_title(scenario, fontsize=9, loc="left", color="#3A3F47")
        axes.set_xlabel("gain, points")
        axes.grid(True, axis="x")
    limits = [limit for axes in axes_of for limit in axes.get_xlim()]
    for axes in axes_of:
        axes.set_xlim(min(limits), max(limits))
    return to_svg(figure, prefix)


def _draw_gain(axes: "Axes", y: int, gain: Gain, colour: str) -> None:
    points = list(gain.by_seed.values())
    axes.plot(points, [y - ABOVE] * len(points), "o", color=colour, ms=4, alpha=0.7, mew=0, zorder=2)
    if gain.interval is not None:
        style = interval_style(gain.interval)
        axes.hlines(y, gain.interval.low, gain.interval.high, color=INK, lw=1.0, ls=style, zorder=3)
    axes.plot([gain.points], [y], "|", color=INK, ms=9, mew=1.6, zorder=4)
