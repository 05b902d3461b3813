"""Intervals: over seeds, over videos and over questions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.evaluation.statistics import (
    FEWEST_VIDEOS,
    bootstrap_interval,
    estimate_accuracy,
    t_half_width,
    wilson_interval,
)
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


def test_an_interval_contains_its_accuracy_and_is_wider_than_0() -> None:
    for questions in range(1, 40):
        for correct in range(questions + 1):
            count, wrong = Count(correct=correct, questions=questions), Count(correct=0, questions=questions)
            for counts in ([count], [count] * 2, [count] * 3, [count, wrong]):
                estimate = estimate_accuracy(counts)
                assert estimate.low <= estimate.mean <= estimate.high
                assert estimate.high - estimate.low > 1


def test_seeds_of_equal_accuracy_have_the_wilson_interval_of_one() -> None:
    count = Count(correct=1, questions=3)
    estimate = estimate_accuracy([count] * 3)
    assert (estimate.interval, estimate.seeds) == ("questions", 3)
    assert (estimate.low, estimate.high) == wilson_interval(count)


def test_a_bootstrap_interval_without_width_is_replaced_by_wilsons() -> None:
    count = Count(correct=6, questions=18)
    for collapsed in ((100 / 3, 100 / 3), (33.33333333333333, 33.33333333333334)):
        estimate = estimate_accuracy([count], over_videos=collapsed)
        assert (estimate.interval, estimate.low, estimate.high) == ("questions", *wilson_interval(count))
    estimate = estimate_accuracy([count], over_videos=(34.0, 50.0))
    assert (estimate.interval, estimate.low, estimate.high) == ("videos", count.accuracy, 50.0)


@pytest.mark.parametrize(
    ("values", "videos"),
    [
        ([], []),
        ([1, 0, 0] * 6, ["a"] * 9 + ["b"] * 9),
        ([n % 2 for n in range(90)], [str(n % (FEWEST_VIDEOS - 1)) for n in range(90)]),
        ([1] * 40, [str(n) for n in range(40)]),
        ([0] * 40, [str(n) for n in range(40)]),
        ([1, 0, 0] * 40, [str(n // 3) for n in range(120)]),
        ([1 / 3, 0.1, -1 / 7] * 40, [str(n // 3) for n in range(120)]),
    ],
    ids=["no questions", "two videos", "nine videos", "all right", "all wrong", "a third each", "equal differences"],
)
def test_there_is_no_bootstrap_interval_where_resampling_cannot_tell(values: list[float], videos: list[str]) -> None:
    assert bootstrap_interval(values, videos) is None


@given(st.lists(st.tuples(st.integers(0, 12), st.sampled_from([-1.0, -0.5, 0.0, 1 / 3, 1.0])), min_size=1, max_size=60))
def test_a_bootstrap_interval_contains_the_mean(questions: list[tuple[int, float]]) -> None:
    values = [value for _, value in questions]
    interval = bootstrap_interval(values, [str(video) for video, _ in questions])
    if interval is not None:
        low, high = interval
        assert low <= 100 * np.mean(values) <= high
        assert low < high
