"""Intervals of an accuracy: over videos (bootstrap), over training seeds (t) or over questions (Wilson).

Source: the percentile bootstrap over clusters, because the questions on one video share its features; Student's t
interval for a mean; Wilson's score interval for a proportion.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from train.runs.results import Count

RESAMPLES = 2000

NORMAL_95 = 1.959964
T_95 = (
    *(12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281),
    *(2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860),
    *(2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423),
)


@dataclass(frozen=True)
class Estimate:
    """An accuracy in percent with its 95 % interval [low, high].

    `interval`: the variation that it covers. "seeds": training again (t interval over seeds); "videos": other videos
    (bootstrap, one run); "questions": other questions (Wilson, one run), treating the questions on one video as
    independent. `questions`: number of questions per run.
    """

    mean: float
    low: float
    high: float
    interval: Literal["seeds", "videos", "questions"]
    seeds: int
    questions: int


def estimate_accuracy(counts: Sequence[Count]) -> Estimate:
    """Return the mean accuracy over a method's seeds: a t interval for several counts, Wilson's for one.

    Raises ValueError if `counts` is empty.
    """
    if not counts:
        raise ValueError("no counts to estimate an accuracy from")
    if len(counts) == 1:
        return Estimate(counts[0].accuracy, *wilson_interval(counts[0]), "questions", 1, counts[0].questions)
    accuracies = [count.accuracy for count in counts]
    mean = math.fsum(accuracies) / len(accuracies)
    half_width = t_half_width(accuracies)
    low, high = max(0.0, mean - half_width), min(100.0, mean + half_width)
    return Estimate(mean, low, high, "seeds", len(accuracies), counts[0].questions)


def bootstrap_interval(
    values: Sequence[float] | np.ndarray, videos: Sequence[str], generator: np.random.Generator | None = None
) -> tuple[float, float]:
    """Return the 95 % interval (low, high), in percent, of the mean of `values`.

    `values`: float [question], such as 1 for a correct answer and 0 for a wrong one, or differences in [-1, 1].
    `videos` [question]: the id of each question's video. `RESAMPLES` samples of the videos, with all their questions,
    are drawn with replacement from `generator` (default: a new one with seed 0).
    Raises ValueError if the two have different lengths.
    Source: the percentile bootstrap, over clusters of questions.
    """
    sums, sizes = sum_by_video(values, videos)
    resamples = (generator or np.random.default_rng(0)).integers(len(sums), size=(RESAMPLES, len(sums)))
    low, high = np.percentile(sums[resamples].sum(1) / sizes[resamples].sum(1), (2.5, 97.5))
    return 100 * float(low), 100 * float(high)


def sum_by_video(values: Sequence[float] | np.ndarray, videos: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return float [video], the sums of `values` [question], and int [video], the number of questions per video."""
    _, video = np.unique(np.array(videos), return_inverse=True)
    return np.bincount(video, np.array(values, dtype=float)), np.bincount(video)


def wilson_interval(count: Count) -> tuple[float, float]:
    """Return the 95 % Wilson interval of a proportion, in percent."""
    n, share, z = count.questions, count.correct / count.questions, NORMAL_95
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half_width = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return 100 * max(0.0, centre - half_width), 100 * min(1.0, centre + half_width)


def t_half_width(values: Sequence[float]) -> float:
    """Return half the width of the 95 % t interval of the mean of at least two `values`, in their unit."""
    degrees = len(values) - 1
    quantile = T_95[degrees - 1] if degrees <= len(T_95) else NORMAL_95
    mean = math.fsum(values) / len(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / degrees
    return quantile * math.sqrt(variance / len(values))
