"""The gains of a method over simpler baselines on the same questions, with intervals and p-values.

Source: a cluster bootstrap and a sign-flip test over videos, both of paired differences. The share of the gap is this
project's measure: 1 is the accuracy of a reference model trained without the missing modality.
"""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.errors import UserError
from train.evaluation.statistics import RESAMPLES, bootstrap_interval, sum_by_video
from train.report.predictions import Folders, predictions_by_seed
from train.report.tables import Block, Line
from train.runs.results import Prediction

BASELINES = ("zero-fill", "modality-dropout", "constant-fill")
# The inputs of the reference model that is trained without the modality that a scenario removes.
REFERENCE_INPUTS = {"audio-missing": "visual,question", "visual-missing": "audio,question"}
# {seed: predictions of the run with it}
_OfSeeds = Mapping[int, Sequence[Prediction]]
CSV_FIELDS = (
    *("dataset", "release", "split", "scenario", "over", "method"),
    *("points", "low", "high", "interval", "p", "share", "seeds"),
)


@dataclass(frozen=True)
class Gain:
    """A gain in percentage points with its 95 % interval (low, high) over videos and the p-value of no gain.

    `seeds`: those that both methods have. `interval`: None if resampling cannot tell (`bootstrap_interval`), as when no
    question differs. `share`: the gain as a share of the gap between the baseline and the reference model trained
    without the missing modality; None if there is no such model of these seeds or the gap has no interval above 0.
    """

    points: float
    interval: tuple[float, float] | None
    p: float
    share: float | None
    seeds: tuple[int, ...]


def paired_gain(
    differences: np.ndarray, videos: Sequence[str], share: float | None = None, seeds: Iterable[int] = ()
) -> Gain:
    """Return the gain from `differences` (float [question] in [-1, 1]): method minus baseline, averaged over `seeds`.

    Questions on one video share its features. The interval therefore resamples `videos` [question] and the test flips
    the signs of videos, both with a fixed seed.
    """
    generator = np.random.default_rng(0)
    interval = bootstrap_interval(differences, videos, generator)
    sums, _ = sum_by_video(differences, videos)
    signs = generator.integers(2, size=(RESAMPLES, len(sums)), dtype=np.int8) * 2 - 1
    mean = float(differences.mean())
    as_extreme = int((np.abs((signs * sums).sum(1)) >= abs(sums.sum()) - 1e-9).sum())
    return Gain(100 * mean, interval, (1 + as_extreme) / (1 + RESAMPLES), share, tuple(seeds))


def find_gains(block: Block, folders: Folders) -> dict[str, dict[str, Gain]]:
    """Return {baseline: {method: its gain}} by label, over the seeds that both have in a block.

    Only methods with the same backbone are compared.
    """
    trained = [line for line in block.lines if line.role != "floor"]
    predictions = {line.label: predictions_by_seed(line, folders) for line in trained}
    gains: dict[str, dict[str, Gain]] = {}
    methods = [line for line in trained if line.role == "method"]
    for baseline in (line for line in methods if line.method in BASELINES):
        for line in methods:
            of_line, of_baseline = predictions[line.label], predictions[baseline.label]
            seeds = sorted(of_line.keys() & of_baseline.keys())
            if line is baseline or not seeds or line.rows[0].backbone != baseline.rows[0].backbone:
                continue
            _check_same_questions([of[seed] for of in (of_line, of_baseline) for seed in seeds])
            differences = [_hits(of_line[seed]) - _hits(of_baseline[seed]) for seed in seeds]
            videos = [prediction.video_id for prediction in of_line[seeds[0]]]
            reference = predictions.get(_find_reference(block, line) or "", {})
            share = _share_of_gap(of_line, of_baseline, reference, seeds)
            gain = paired_gain(np.mean(differences, axis=0), videos, share, seeds)
            gains.setdefault(baseline.label, {})[line.label] = gain
    return gains


def _check_same_questions(runs: Sequence[Sequence[Prediction]]) -> None:
    """Raise `UserError` unless the predictions of all runs are of the same questions in the same order."""
    if len({tuple(prediction.question_id for prediction in predictions) for predictions in runs}) > 1:
        raise UserError("the stored predictions of two runs are of different questions: evaluate the runs again")


def _hits(predictions: Sequence[Prediction]) -> np.ndarray:
    return np.array([prediction.correct for prediction in predictions], dtype=float)


def _find_reference(block: Block, line: Line) -> str | None:
    """Return the label of the reference with the line's backbone, trained without the missing modality, or None."""
    inputs = REFERENCE_INPUTS.get(block.scenario)
    references = (o for o in block.lines if o.role == "reference" and o.rows[0].backbone == line.rows[0].backbone)
    return next((reference.label for reference in references if reference.inputs == inputs), None)


def _share_of_gap(method: _OfSeeds, baseline: _OfSeeds, reference: _OfSeeds, seeds: Sequence[int]) -> float | None:
    """Return the share of the gap over `seeds`; None as in `Gain`."""
    if not reference.keys() >= set(seeds):
        return None
    _check_same_questions([of[seeds[0]] for of in (method, reference)])
    method_hits, baseline_hits, reference_hits = (
        np.mean([_hits(of[seed]) for seed in seeds], axis=0) for of in (method, baseline, reference)
    )
    videos = [prediction.video_id for prediction in method[seeds[0]]]
    gap = reference_hits - baseline_hits
    interval = bootstrap_interval(gap, videos)
    if interval is None or interval[0] <= 0:
        return None
    return float((method_hits - baseline_hits).mean() / gap.mean())


def gain_rows(gains: Mapping[str, Mapping[str, Mapping[str, Gain]]]) -> list[tuple[str, str, list[Gain | None]]]:
    """Return (baseline, method, a gain per scenario) from the result of `scenario_gains`, in its order."""
    pairs = dict.fromkeys((b, m) for by_baseline in gains.values() for b, of in by_baseline.items() for m in of)
    return [(b, m, [of.get(b, {}).get(m) for of in gains.values()]) for b, m in pairs]


def scenario_gains(blocks: Sequence[Block], folders: Folders) -> dict[str, dict[str, dict[str, Gain]]]:
    """Return {scenario: result of `find_gains`} of the scenarios with at least one gain."""
    by_scenario = {block.scenario: find_gains(block, folders) for block in blocks}
    return {scenario: gains for scenario, gains in by_scenario.items() if gains}


def gains_csv(splits: Iterable[tuple[Block, Mapping[str, Mapping[str, Mapping[str, Gain]]]]]) -> str:
    """Return one CSV line per gain; `splits` are pairs (a block of a split, the result of `scenario_gains`).

    `points`, `low` and `high` are percentage points; `interval` is "videos", or "none" without bounds. `share` is a
    fraction, empty if it is None. `seeds` are those that both methods have.
    """
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(CSV_FIELDS)
    for block, gains in splits:
        for scenario, by_baseline in gains.items():
            for baseline, by_method in by_baseline.items():
                for method, gain in by_method.items():
                    bounds = [f"{bound:.4f}" for bound in gain.interval] if gain.interval else ["", ""]
                    share = "" if gain.share is None else f"{gain.share:.4f}"
                    seeds = " ".join(map(str, gain.seeds))
                    names = [block.dataset, block.release, block.split, scenario, baseline, method]
                    over = "videos" if gain.interval else "none"
                    writer.writerow([*names, f"{gain.points:.4f}", *bounds, over, f"{gain.p:.4f}", share, seeds])
    return sink.getvalue()
