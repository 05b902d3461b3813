"""The recovery error of imputed features, plotted against the accuracy reached with them.

Source: this project's; the ECCV 2024 missing-modality paper shows recovered features in a 2-D embedding (Fig. 6).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from train.report.plots import panels, to_svg, unique_legend
from train.report.tables import Block


@dataclass(frozen=True)
class Recovery:
    """One method in one scenario; `seeds`: {seed: (recovery error, overall accuracy in percent)}."""

    scenario: str
    label: str
    seeds: dict[int, tuple[float, float]]

    @property
    def error(self) -> float:
        """The mean error over the seeds."""
        return sum(error for error, _ in self.seeds.values()) / len(self.seeds)

    @property
    def accuracy(self) -> float:
        """The mean accuracy over the seeds, in percent."""
        return sum(accuracy for _, accuracy in self.seeds.values()) / len(self.seeds)


def find_recoveries(blocks: Sequence[Block]) -> dict[str, list[Recovery]]:
    """Return {scenario: the methods with a recovery error, in ascending order of their error}."""
    recoveries: dict[str, list[Recovery]] = {}
    for block in blocks:
        for line in block.lines:
            measured = ((row.seed, row.recovery, row.accuracies.overall.accuracy) for row in line.rows)
            seeds = {seed: (error, accuracy) for seed, error, accuracy in measured if error is not None}
            if seeds:
                recoveries.setdefault(block.scenario, []).append(Recovery(block.scenario, line.label, seeds))
    return {scenario: sorted(members, key=lambda member: member.error) for scenario, members in recoveries.items()}


def draw_recoveries(recoveries: Mapping[str, Sequence[Recovery]], colours: Mapping[str, str]) -> str:
    """Return an SVG with a panel per scenario and a dot per run: accuracy in percent over the error (log scale)."""
    figure, axes_of = panels(len(recoveries))
    for axes, (scenario, members) in zip(axes_of, recoveries.items(), strict=True):
        for member in members:
            errors, accuracies = zip(*member.seeds.values(), strict=True)
            axes.plot(errors, accuracies, "o", color=colours[member.label], ms=4.5, label=member.label, alpha=0.85)
        axes.axvline(1, color="#8A8F98", lw=0.9, ls=(0, (4, 2)))
        axes.set_xscale("log")
        axes.set_title(scenario, fontsize=9, loc="left", color="#3A3F47")
        axes.set_xlabel("recovery error (1: the mean step)")
        axes.grid(True, axis="y")
    axes_of[0].set_ylabel("overall accuracy, %")
    unique_legend(axes_of[0], figure)
    return to_svg(figure, "recovery")
