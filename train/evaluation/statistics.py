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
# Resamples of fewer videos take too few different values to tell how much other videos would change.
FEWEST_VIDEOS = 10
# In percentage points; the means of equal values differ by rounding.
NARROWEST = 1e-9

NORMAL_95 = 1.959964
T_95 = (
    *(12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281),
    *(2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860),
    *(2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423),
)


@dataclass(frozen=True)
class Estimate:
    """An accuracy in percent with its 95 % interval [low, high], which contains it and is wider than 0.

    `interval`: the variation that it covers. "seeds": training again (t interval over seeds); "videos": other videos
    (bootstrap, one run); "questions": other questions (Wilson, of one run or of seeds with equal accuracies), treating
    the questions on one video as independent. `questions`: number of questions per run.
    """

    mean: float
    low: float
    high: float
    interval: Literal["seeds", "videos", "questions"]
    seeds: int
    questions: int


def estimate_accuracy(counts: Sequence[Count], over_videos: tuple[float, float] | None = None) -> Estimate:
    """Return the mean accuracy over a method's seeds, one of `counts` each, and its interval.

    It is a t interval if the accuracies of the seeds differ, `over_videos` (a `bootstrap_interval`) for a single seed
    if it is given and wider than 0, else Wilson's interval of one seed. Raises ValueError if `counts` is empty.
    """
    if not counts:
        raise ValueError("no counts to estimate an accuracy from")
    accuracies = [count.accuracy for count in counts]
    mean = math.fsum(accuracies) / len(accuracies)
    interval: Literal["seeds", "videos", "questions"] = "questions"
    low, high = wilson_interval(counts[0])
    if len(set(accuracies)) > 1:
        half_width = t_half_width(accuracies)
        interval, low, high = "seeds", max(0.0, mean - half_width), min(100.0, mean + half_width)
    elif len(counts) == 1 and over_videos is not None and _has_width(*over_videos):
        interval, (low, high) = "videos", over_videos
    # Rounding may put a bound on the wrong side of the mean, such as 100 of 4 correct answers out of 4.
    return Estimate(mean, min(low, mean), max(high, mean), interval, len(counts), counts[0].questions)


def bootstrap_interval(
    values: Sequence[float] | np.ndarray, videos: Sequence[str], generator: np.random.Generator | None = None
) -> tuple[float, float] | None:
    """Return the 95 % interval (low, high), in percent, of the mean of `values`, which it contains.

    None if resampling cannot tell: there are fewer than `FEWEST_VIDEOS` videos, or all resamples have the same mean.
    `values`: float [question], such as 1 for a correct answer and 0 for a wrong one, or differences in [-1, 1].
    `videos` [question]: the id of each question's video. `RESAMPLES` samples of the videos, with all their questions,
    are drawn with replacement from `generator` (default: a new one with seed 0).
    Raises ValueError if the two have different lengths.
    Source: the percentile bootstrap, over clusters of questions.
    """
    sums, sizes = sum_by_video(values, videos)
    if len(sums) < FEWEST_VIDEOS:
        return None
    resamples = (generator or np.random.default_rng(0)).integers(len(sums), size=(RESAMPLES, len(sums)))
    low, high = 100 * np.percentile(sums[resamples].sum(1) / sizes[resamples].sum(1), (2.5, 97.5))
    mean = 100 * float(np.mean(values))
    return (min(float(low), mean), max(float(high), mean)) if _has_width(low, high) else None


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


def _has_width(low: float, high: float) -> bool:
    return high - low > NARROWEST
