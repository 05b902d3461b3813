"""Intervals: over seeds, over videos and over questions."""

import pytest

from train.evaluation.statistics import bootstrap_interval, estimate_accuracy, t_half_width, wilson_interval
from train.runs.results import Count


def test_two_seeds_have_a_t_interval_and_one_a_wilson_interval() -> None:
    one, two = Count(correct=40, questions=100), Count(correct=50, questions=100)
    pooled = estimate_accuracy([one, two])
    assert (pooled.mean, pooled.interval) == (45, "seeds")
    assert pooled.high == 100.0
    assert estimate_accuracy([one]).interval == "questions"
    assert wilson_interval(one) == pytest.approx((30.94, 49.80), abs=0.01)
    assert t_half_width([40.0, 44.0, 48.0]) == pytest.approx(9.937, abs=0.001)


def test_the_bootstrap_resamples_videos_with_all_their_questions() -> None:
    correct = [number % 10 < 6 for number in range(400)]
    low, high = bootstrap_interval(correct, [str(number) for number in range(400)])
    assert (low, high) == pytest.approx(wilson_interval(Count(correct=240, questions=400)), abs=0.7)
    by_video = [number // 20 % 10 < 6 for number in range(400)]
    clustered = bootstrap_interval(by_video, [str(number // 20) for number in range(400)])
    assert clustered[1] - clustered[0] > 3 * (high - low)
    assert bootstrap_interval(correct, [str(number) for number in range(400)]) == (low, high)


def test_intervals_stay_between_0_and_100_percent() -> None:
    assert wilson_interval(Count(correct=0, questions=5))[0] == 0
    assert wilson_interval(Count(correct=5, questions=5))[1] == 100
