"""Means with their 95 % intervals: over seeds and videos, over videos alone, or over questions (Wilson).

Source: the two-way variance model (`train.evaluation.two_way`) with Student's t; Wilson's score interval for the
counts of one run with too few videos; Holm (1979) for several p-values.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from train.evaluation.two_way import FEWEST_VIDEOS, covers_seeds, mean_squares, standard_error, sum_by_video
from train.runs.results import Count

LEVEL = 0.95
# In percentage points; the means of equal values differ by rounding.
SMALLEST_ERROR = 1e-9

Over = Literal["seeds and videos", "videos", "questions"]


@dataclass(frozen=True)
class Interval:
    """A 95 % interval [low, high], and the variation that it covers.

    `over`: "seeds and videos": training again and other videos; "videos": other videos, for the trained seeds;
    "questions": other questions, as if those on one video were independent, of one run.
    """

    low: float
    high: float
    over: Over


@dataclass(frozen=True)
class Estimate:
    """An accuracy in percent, the mean over `seeds` runs, with its interval; None if none can be estimated.

    `questions`: number of questions per run.
    """

    mean: float
    interval: Interval | None
    seeds: int
    questions: int


@dataclass(frozen=True)
class Mean:
    """The mean over questions and seeds in percent, its interval, and the p-value of a mean of 0 (two-sided).

    Interval and p-value are of the same t distribution, and None together.
    """

    mean: float
    interval: Interval | None
    p: float | None


def estimate_mean(values: np.ndarray | Sequence[Sequence[float]], videos: Sequence[str] | np.ndarray) -> Mean:
    """Return the mean of `values`, float [seed, question] in [-1, 1], in percent.

    Its interval is over seeds and videos from `FEWEST_SEEDS` seeds on, else over videos alone. There is none if
    its variance cannot be estimated: fewer than `FEWEST_VIDEOS` videos, or the same mean on each video.
    `videos` [question]: what identifies each question's video.
    """
    sums, sizes = sum_by_video(values, videos)
    mean = 100 * float(np.mean(values))
    if len(sizes) < FEWEST_VIDEOS:
        return Mean(mean, None, None)
    squares = mean_squares(100 * sums, sizes)
    error, degrees = map(float, standard_error(squares))
    if error < SMALLEST_ERROR:
        return Mean(mean, None, None)
    half_width = error * float(stats.t.ppf((1 + LEVEL) / 2, degrees))
    over: Over = "seeds and videos" if covers_seeds(squares.seeds) else "videos"
    p = 2 * float(stats.t.sf(abs(mean) / error, degrees))
    return Mean(mean, Interval(mean - half_width, mean + half_width, over), p)


def estimate_accuracy(
    counts: Sequence[Count],
    hits: np.ndarray | None = None,
    videos: Sequence[str] | np.ndarray = (),
    over_videos: tuple[float, float] | None = None,
) -> Estimate:
    """Return the mean accuracy over a method's seeds, one of `counts` each, and its interval, within 0 to 100.

    `hits`: bool [seed, question], the correct answers on `videos` [question]; None if they are not stored. The interval
    is that of `estimate_mean`. If there is none, a single run, or a floor, has the interval `over_videos` that was
    stored with its counts, else Wilson's over its questions; several seeds have none.
    Raises ValueError if `counts` is empty.
    """
    if not counts:
        raise ValueError("no counts to estimate an accuracy from")
    mean = math.fsum(count.accuracy for count in counts) / len(counts)
    interval = None if hits is None else estimate_mean(hits, videos).interval
    if interval is None and len(counts) == 1:
        interval = _stored_interval(over_videos) if hits is None else None
        interval = interval or wilson_interval(counts[0])
    if interval is not None:
        # Rounding may put a bound on the wrong side of the mean, such as 100 of 4 correct answers out of 4.
        low, high = min(max(0.0, interval.low), mean), max(min(100.0, interval.high), mean)
        interval = Interval(low, high, interval.over)
    return Estimate(mean, interval, len(counts), counts[0].questions)


def interval_over_videos(hits: Sequence[bool], videos: Sequence[str]) -> tuple[float, float] | None:
    """Return the 95 % interval (low, high) of one run's accuracy in percent, over `videos` [question], or None.

    `hits` [question]: the correct answers. None as in `estimate_mean`.
    """
    interval = estimate_mean([hits], videos).interval if len(hits) else None
    return None if interval is None else (max(0.0, interval.low), min(100.0, interval.high))


def wilson_interval(count: Count) -> Interval:
    """Return Wilson's 95 % interval of a proportion, in percent."""
    test = stats.binomtest(count.correct, count.questions)
    low, high = test.proportion_ci(LEVEL, method="wilson")
    return Interval(100 * float(low), 100 * float(high), "questions")


def correct_holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values corrected for their number, in their order; they hold for any dependence between the tests.

    Source: Holm, "A simple sequentially rejective multiple test procedure" (1979).
    """
    order = np.argsort(p_values, kind="stable")
    steps = np.array(p_values)[order] * np.arange(len(order), 0, -1)
    corrected = np.empty(len(order))
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return corrected.tolist()


def _stored_interval(bounds: tuple[float, float] | None) -> Interval | None:
    """Return the interval over videos of a result row; None if it has none, or an early one without width."""
    return None if bounds is None or bounds[1] - bounds[0] < SMALLEST_ERROR else Interval(*bounds, "videos")
