"""What a method gains over simpler ones on the same questions, and how sure that is. It predicts nothing.

Source: a bootstrap over videos and a sign-flip test, both of paired differences; the share of the gap is this
project's measure: 1 is what a model reaches that was trained without the modality.
"""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from train.evaluation.statistics import DRAWS, bootstrap, sum_by_video
from train.report.answers import Folders, predictions_by_seed
from train.report.tables import Block, Line
from train.runs.results import Prediction

BASELINES = ("zero-fill", "modality-dropout", "constant-fill")
TRAINED_WITHOUT = {"audio-missing": "visual,question", "visual-missing": "audio,question"}
CSV_FIELDS = ("dataset", "release", "split", "scenario", "over", "method", "points", "low", "high", "p", "share")


@dataclass(frozen=True)
class Gain:
    """A gain in percent points with its 95 % interval [low, high] and the p-value of there being none.

    `share`: of the gap between the baseline and the model trained without the missing modality; None where that model
    is not there or where the gap's own interval reaches down to nothing.
    """

    points: float
    low: float
    high: float
    p: float
    share: float | None


def paired_gain(differences: np.ndarray, videos: Sequence[str], share: float | None = None) -> Gain:
    """Return the gain of float `differences` [question], each the mean over seeds of method minus baseline, in [-1, 1].

    `videos` [question] names the video of each: questions on one share its features, so that the interval resamples
    videos and the test flips the signs of videos. Both draw with a fixed seed.
    """
    generator = np.random.default_rng(0)
    low, high = bootstrap(differences, videos, generator)
    sums, _ = sum_by_video(differences, videos)
    signs = generator.integers(2, size=(DRAWS, len(sums)), dtype=np.int8) * 2 - 1
    mean = float(differences.mean())
    as_far = int((np.abs((signs * sums).sum(1)) >= abs(sums.sum()) - 1e-9).sum())
    return Gain(100 * mean, low, high, (1 + as_far) / (1 + DRAWS), share)


def find_gains(block: Block, folders: Folders) -> dict[str, dict[str, Gain]]:
    """Return {baseline: {method's label: its gain}} of the seeds that both have in a block.

    Backbones are not compared with others.
    """
    trained = [line for line in block.lines if line.role != "floor"]
    told = {line.label: predictions_by_seed(line, block, folders) for line in trained}
    found: dict[str, dict[str, Gain]] = {}
    methods = [line for line in trained if line.role == "method"]
    for baseline in (line for line in methods if line.method in BASELINES):
        for line in methods:
            seeds = sorted(told[line.label].keys() & told[baseline.label].keys())
            if line is baseline or not seeds or line.rows[0].backbone != baseline.rows[0].backbone:
                continue
            pairs = [_right(told[line.label][s]) - _right(told[baseline.label][s]) for s in seeds]
            videos = [prediction.video_id for prediction in told[line.label][seeds[0]]]
            share = _share(told, line.label, baseline.label, _trained_without(block, line))
            gain = paired_gain(np.mean(pairs, axis=0), videos, share)
            found.setdefault(baseline.label, {})[line.label] = gain
    return found


def _right(told: Sequence[Prediction]) -> np.ndarray:
    return np.array([prediction.correct for prediction in told], dtype=float)


def _trained_without(block: Block, line: Line) -> str | None:
    """Return the label of the reference of the same backbone that never saw what the scenario hides, if it is there."""
    inputs = TRAINED_WITHOUT.get(block.scenario)
    same = (o for o in block.lines if o.role == "reference" and o.rows[0].backbone == line.rows[0].backbone)
    return next((other.label for other in same if other.inputs == inputs), None)


def _share(
    told: Mapping[str, Mapping[int, Sequence[Prediction]]], method: str, baseline: str, reference: str | None
) -> float | None:
    """Return the share of the gap, over the seeds that all three have."""
    if reference is None:
        return None
    seeds = told[method].keys() & told[baseline].keys() & told[reference].keys()
    if not seeds:
        return None
    found, before, trained = (
        np.mean([_right(told[label][seed]) for seed in seeds], axis=0) for label in (method, baseline, reference)
    )
    videos = [prediction.video_id for prediction in told[method][min(seeds)]]
    gap = paired_gain(trained - before, videos)
    return float((found - before).mean() / (trained - before).mean()) if gap.low > 0 else None


def gain_rows(gains: Mapping[str, Mapping[str, Mapping[str, Gain]]]) -> list[tuple[str, str, list[Gain | None]]]:
    """Return (baseline, method, a gain per scenario) of {scenario: what `find_gains` returns}, in the order found."""
    pairs = dict.fromkeys((b, m) for by_baseline in gains.values() for b, of in by_baseline.items() for m in of)
    return [(b, m, [of.get(b, {}).get(m) for of in gains.values()]) for b, m in pairs]


def scenario_gains(blocks: Sequence[Block], folders: Folders) -> dict[str, dict[str, dict[str, Gain]]]:
    """Return {scenario: gains} of the scenarios in which methods can be compared."""
    found = {block.scenario: find_gains(block, folders) for block in blocks}
    return {scenario: gains for scenario, gains in found.items() if gains}


def gains_csv(tested: Iterable[tuple[Block, Mapping[str, Mapping[str, Mapping[str, Gain]]]]]) -> str:
    """Return one CSV line per gain of (a block of a dataset's split, what `scenario_gains` found in that split).

    `points`, `low` and `high` are percent points, `share` is a fraction, empty where there is none.
    """
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(CSV_FIELDS)
    for block, gains in tested:
        for scenario, by_baseline in gains.items():
            for baseline, of in by_baseline.items():
                for method, gain in of.items():
                    figures = (f"{value:.4f}" for value in (gain.points, gain.low, gain.high, gain.p))
                    share = "" if gain.share is None else f"{gain.share:.4f}"
                    writer.writerow(
                        [block.dataset, block.release, block.split, scenario, baseline, method, *figures, share]
                    )
    return sink.getvalue()
