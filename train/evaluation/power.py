"""How many seeds, and how many videos, a paired difference of a given size needs to be found.

Source: the power of Student's t test (its noncentral distribution), with the standard error and degrees of freedom that
the two-way variance model expects (`train.evaluation.two_way`).
"""

from collections.abc import Callable

from scipy import stats

from train.evaluation.two_way import FEWEST_SEEDS, FEWEST_VIDEOS, VarianceParts, standard_error

SIGNIFICANCE = 0.05
POWER = 0.8
# What needs more than these is reported as out of reach.
MOST_SEEDS = 1_000
MOST_VIDEOS = 1_000_000


def power_of(parts: VarianceParts, difference: float, seeds: int, videos: int) -> float:
    """Return the probability that a two-sided test at 5 % finds a `difference` of percentage points, in [0, 1].

    1 if nothing varies.
    """
    error, degrees = map(float, standard_error(parts.expect(difference, seeds, videos)))
    if error == 0:
        return 1.0
    bound = stats.t.ppf(1 - SIGNIFICANCE / 2, degrees)
    found = stats.nct(degrees, difference / error)
    return float(found.sf(bound) + found.cdf(-bound))


def seeds_needed(parts: VarianceParts, difference: float, videos: int) -> int | None:
    """Return the seeds with which `difference` points are found on so many videos with a power of 80 %.

    None if `MOST_SEEDS` are too few: other videos alone hide the difference.
    """
    return _smallest(lambda seeds: power_of(parts, difference, seeds, videos) >= POWER, FEWEST_SEEDS, MOST_SEEDS)


def videos_needed(parts: VarianceParts, difference: float, seeds: int) -> int | None:
    """Return the videos with which `difference` points are found with so many seeds with a power of 80 %.

    None if `MOST_VIDEOS` are too few: the seeds alone hide the difference.
    """
    return _smallest(lambda videos: power_of(parts, difference, seeds, videos) >= POWER, FEWEST_VIDEOS, MOST_VIDEOS)


def _smallest(suffices: Callable[[int], bool], least: int, most: int) -> int | None:
    """Return a number from `least` to `most` that suffices while one less does not, or `least`; None if none does."""
    too_few, enough = least - 1, least
    while not suffices(enough):
        if enough == most:
            return None
        too_few, enough = enough, min(2 * enough, most)
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        too_few, enough = (too_few, middle) if suffices(middle) else (middle, enough)
    return enough
