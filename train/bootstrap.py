"""How sure an accuracy of one run is: its answers about videos that are drawn again. It draws from a fixed seed.

Source: the percentile bootstrap over clusters; the questions on one video share its features.
"""

from collections.abc import Sequence

import numpy as np

DRAWS = 2000


def bootstrap(correct: Sequence[bool], videos: Sequence[str]) -> tuple[float, float]:
    """Return the 95 % interval, in percent, of the accuracy of answers `correct` [question] about `videos` [question].

    Videos are drawn again, with all their questions, from a fixed seed.
    """
    _, video = np.unique(np.array(videos), return_inverse=True)
    right, asked = np.bincount(video, np.array(correct, dtype=float)), np.bincount(video)
    drawn = np.random.default_rng(0).integers(len(asked), size=(DRAWS, len(asked)))
    low, high = np.percentile(right[drawn].sum(1) / asked[drawn].sum(1), (2.5, 97.5))
    return 100 * float(low), 100 * float(high)
