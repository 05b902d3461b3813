"""How sure a mean over questions is: videos are drawn again, with all their questions. It draws from a fixed seed.

Source: the percentile bootstrap over clusters; the questions on one video share its features.
"""

from collections.abc import Sequence

import numpy as np

DRAWS = 2000


def bootstrap(
    values: Sequence[float] | np.ndarray, videos: Sequence[str], generator: np.random.Generator | None = None
) -> tuple[float, float]:
    """Return the 95 % interval, in percent, of the mean of `values` [question] about `videos` [question].

    Without a `generator` the draws are those of a fixed seed.
    """
    sums, sizes = sum_by_video(values, videos)
    drawn = (generator or np.random.default_rng(0)).integers(len(sums), size=(DRAWS, len(sums)))
    low, high = np.percentile(sums[drawn].sum(1) / sizes[drawn].sum(1), (2.5, 97.5))
    return 100 * float(low), 100 * float(high)


def sum_by_video(values: Sequence[float] | np.ndarray, videos: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return float [video], the sums of `values` [question], and int [video], how many there are of each video."""
    _, video = np.unique(np.array(videos), return_inverse=True)
    return np.bincount(video, np.array(values, dtype=float)), np.bincount(video)
