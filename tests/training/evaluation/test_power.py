"""Power: known sample sizes of the one-sample t test, and how often simulated experiments of that size succeed."""

import numpy as np
import pytest
from scipy import stats

from train.evaluation.power import MOST_SEEDS, power_of, seeds_needed, videos_needed
from train.evaluation.two_way import VarianceParts, mean_squares, standard_error


def test_half_a_standard_deviation_needs_34_samples() -> None:
    # Source: Cohen, "Statistical Power Analysis" (1988), one-sample t test, two-sided at 5 %, power 80 %.
    assert videos_needed(VarianceParts(0.0, 4.0, 0.0), 1.0, 5) == 34
    assert seeds_needed(VarianceParts(4.0, 0.0, 0.0), 1.0, 100) == 34


def test_without_variation_the_least_numbers_are_enough() -> None:
    nothing = VarianceParts(0.0, 0.0, 0.0)
    assert power_of(nothing, 1.0, 3, 10) == 1
    assert (seeds_needed(nothing, 1.0, 10), videos_needed(nothing, 1.0, 3)) == (3, 20)


def test_no_number_of_one_makes_up_for_the_variance_of_the_other() -> None:
    assert videos_needed(VarianceParts(4.0, 1.0, 1.0), 1.0, 3) is None
    assert seeds_needed(VarianceParts(1.0, 400.0, 1.0), 1.0, 100) is None
    assert power_of(VarianceParts(1.0, 400.0, 1.0), 1.0, MOST_SEEDS, 100) < 0.8


def test_the_needed_number_is_the_smallest_that_is_enough() -> None:
    parts = VarianceParts(1.0, 900.0, 1600.0)
    seeds = seeds_needed(parts, 3.0, 1000)
    videos = videos_needed(parts, 3.0, 5)
    assert power_of(parts, 3.0, seeds, 1000) >= 0.8 > power_of(parts, 3.0, seeds - 1, 1000)
    assert power_of(parts, 3.0, 5, videos) >= 0.8 > power_of(parts, 3.0, 5, videos - 1)


@pytest.mark.parametrize("parts", [VarianceParts(0.5, 900.0, 1600.0), VarianceParts(2.0, 100.0, 400.0)])
def test_simulated_experiments_of_the_needed_size_find_the_difference_in_80_percent(parts: VarianceParts) -> None:
    generator, simulations, seeds = np.random.default_rng(0), 1000, 5
    videos = videos_needed(parts, 3.0, seeds)
    effects = [generator.standard_normal((simulations, *shape)) for shape in ((seeds, 1), (1, videos), (seeds, videos))]
    deviations = np.sqrt([parts.of_seeds, parts.of_videos, parts.of_residual])
    values = 3.0 + sum(deviation * effect for deviation, effect in zip(deviations, effects, strict=True))
    squares = mean_squares(values, np.ones(videos, dtype=int))
    error, degrees = standard_error(squares)
    found = stats.t.sf(np.abs(squares.estimate) / error, degrees) < 0.025
    # Four standard errors of 1,000 simulations are 5 %; Satterthwaite's degrees of freedom are an approximation.
    assert 0.74 < found.mean() < 0.87
