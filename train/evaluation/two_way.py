"""The two-way variance model: how an accuracy, or a paired difference, varies over training seeds and videos.

Every seed answers the questions on every video once, so both effects are crossed and random, without replication. An
accuracy is a ratio of sums over videos, which is linearised: the value of a seed and a video is
(correct answers - estimate * questions) / (mean questions per video).
Source: Searle, Casella and McCulloch, "Variance Components" (1992), chapter 4; Satterthwaite (1946) for the degrees of
freedom; Cochran, "Sampling Techniques" (1977), section 6.3, for the linearised ratio. That a variance part is never
taken as negative is ours (`standard_error`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# With fewer seeds the variance between them is hardly known: at two, the t quantile of one degree of freedom is 12.7.
FEWEST_SEEDS = 3
# With fewer videos the interval of an accuracy near 100 % is too narrow: with ten it covered 89 % in a simulation.
FEWEST_VIDEOS = 20
# The mean square of seeds that agree exactly, as a share of the residual's: it differs from 0 by rounding.
EQUAL = 1e-9


@dataclass(frozen=True)
class MeanSquares:
    """The mean squares of `seeds` x `videos` values; arrays have the leading axes of the values, such as simulations.

    `estimate`: the mean over questions. `of_seeds`, `of_videos`, `of_residual`: mean squares, in the unit of the
    estimate squared; those of seeds and of the residual are NaN for a single seed.
    """

    estimate: np.ndarray
    of_seeds: np.ndarray
    of_videos: np.ndarray
    of_residual: np.ndarray
    seeds: int
    videos: int


@dataclass(frozen=True)
class VarianceParts:
    """The variances of the effects of a seed, of a video, and of both together, in squared percentage points."""

    of_seeds: float
    of_videos: float
    of_residual: float

    def expect(self, estimate: float, seeds: int, videos: int) -> MeanSquares:
        """Return the expected mean squares of an experiment with these numbers of seeds and of videos."""
        return MeanSquares(
            np.array(estimate),
            np.array(self.of_residual + videos * self.of_seeds),
            np.array(self.of_residual + seeds * self.of_videos),
            np.array(self.of_residual),
            seeds,
            videos,
        )


def sum_by_video(
    values: np.ndarray | Sequence[Sequence[float]], videos: Sequence[str] | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return float [seed, video], the sums of `values` [seed, question], and int [video], the questions per video.

    `videos` [question]: what identifies each question's video; a video has at least one question.
    """
    names, video = np.unique(np.asarray(videos), return_inverse=True)
    sums = [np.bincount(video, np.asarray(of_seed, dtype=float), len(names)) for of_seed in values]
    return np.array(sums), np.bincount(video, minlength=len(names))


def mean_squares(sums: np.ndarray, sizes: np.ndarray) -> MeanSquares:
    """Return the mean squares of `sums` [..., seed, video] over the questions of each video, `sizes` [video].

    Source: the analysis of variance of two crossed factors, of the linearised values.
    """
    seeds, videos = sums.shape[-2:]
    estimate = sums.sum((-2, -1)) / (seeds * sizes.sum())
    values = (sums - estimate[..., None, None] * sizes) / sizes.mean()
    # Their mean over both is 0 because they are linearised at the estimate.
    of_seed, of_video = values.mean(-1, keepdims=True), values.mean(-2, keepdims=True)
    residual = values - of_seed - of_video
    of_videos = seeds * (of_video**2).sum((-2, -1)) / (videos - 1)
    if seeds == 1:
        unknown = np.full_like(estimate, np.nan)
        return MeanSquares(estimate, unknown, of_videos, unknown, seeds, videos)
    of_seeds = videos * (of_seed**2).sum((-2, -1)) / (seeds - 1)
    of_residual = (residual**2).sum((-2, -1)) / ((seeds - 1) * (videos - 1))
    return MeanSquares(estimate, of_seeds, of_videos, of_residual, seeds, videos)


def covers_seeds(seeds: int) -> bool:
    """Return whether the standard error of so many seeds covers training again."""
    return seeds >= FEWEST_SEEDS


def standard_error(squares: MeanSquares) -> tuple[np.ndarray, np.ndarray]:
    """Return the standard error of the estimate and its degrees of freedom; NaN degrees if the error is 0.

    From `FEWEST_SEEDS` seeds on it covers seeds and videos, with fewer only videos: the mean over these seeds on
    others. The variance of the estimate is (seeds + videos - residual) / (seeds * videos) of the mean squares. Where
    the mean square of seeds, or of videos, is below that of the residual, its variance is estimated as 0, not as
    negative, and the other mean square stands alone. If both are below, that of the seeds does: without variation of
    videos it gives the exact interval, Student's t over the seeds.
    Source: Satterthwaite (1946).
    """
    if not covers_seeds(squares.seeds):
        variance, degrees = squares.of_videos, np.array(squares.videos - 1.0)
    else:
        variance, degrees = _variance_of_both(squares)
    return np.sqrt(variance / (squares.seeds * squares.videos)), np.where(variance > 0, degrees, np.nan)


def _variance_of_both(squares: MeanSquares) -> tuple[np.ndarray, np.ndarray]:
    """Return the variance over seeds and videos, times the number of both, and its degrees of freedom."""
    a, b, e = squares.of_seeds, squares.of_videos, squares.of_residual
    degrees_a, degrees_b = squares.seeds - 1.0, squares.videos - 1.0
    total = a + b - e
    with np.errstate(invalid="ignore", divide="ignore"):
        of_total = total**2 / (a**2 / degrees_a + b**2 / degrees_b + e**2 / (degrees_a * degrees_b))
    # Seeds that agree exactly, as on few questions by chance, are no sign that nothing varies.
    cases = [(b < e) & (a <= EQUAL * e), b < e, a < e]
    variance = np.select(cases, [e, a, b], total)
    degrees = np.select(cases, [degrees_a * degrees_b, degrees_a, degrees_b], of_total)
    return variance, degrees


def variance_parts(squares: MeanSquares) -> VarianceParts:
    """Return the estimated parts, none below 0. Raises ValueError for fewer than `FEWEST_SEEDS` seeds.

    The unit is that of the squared estimate: pass mean squares of percentage points.
    """
    if not covers_seeds(squares.seeds):
        raise ValueError(f"{squares.seeds} seeds are too few to estimate the variance between seeds")
    residual = float(squares.of_residual)
    return VarianceParts(
        max(0.0, (float(squares.of_seeds) - residual) / squares.videos),
        max(0.0, (float(squares.of_videos) - residual) / squares.seeds),
        residual,
    )
