"""Means and accuracies with intervals that say what they are over, p-values and Holm's correction."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.evaluation.statistics import (
    correct_holm,
    estimate_accuracy,
    estimate_mean,
    interval_over_videos,
    wilson_interval,
)
from train.evaluation.two_way import FEWEST_VIDEOS
from train.runs.results import Count

VIDEOS = [str(number // 2) for number in range(400)]


def sampled(seeds: int, share: float = 0.6) -> np.ndarray:
    """Return bool [seed, question]: each answer is correct with probability `share`, independently."""
    return np.random.default_rng(0).random((seeds, len(VIDEOS))) < share


def counts_of(hits: np.ndarray) -> list[Count]:
    return [Count(correct=int(of_seed.sum()), questions=len(of_seed)) for of_seed in hits]


@pytest.mark.parametrize(("seeds", "over"), [(1, "videos"), (2, "videos"), (3, "seeds and videos")])
def test_three_seeds_have_an_interval_over_seeds_and_videos_and_fewer_over_videos(seeds: int, over: str) -> None:
    hits = sampled(seeds)
    estimate = estimate_accuracy(counts_of(hits), hits, VIDEOS)
    assert estimate.mean == pytest.approx(100 * hits.mean())
    assert (estimate.interval.over, estimate.seeds, estimate.questions) == (over, seeds, len(VIDEOS))


def test_independent_answers_of_one_run_have_the_wilson_interval() -> None:
    hits = sampled(1)
    estimate = estimate_accuracy(counts_of(hits), hits, [str(number) for number in range(400)])
    wilson = wilson_interval(*counts_of(hits))
    assert (estimate.interval.low, estimate.interval.high) == pytest.approx((wilson.low, wilson.high), abs=0.2)
    assert wilson_interval(Count(correct=40, questions=100)).low == pytest.approx(30.94, abs=0.01)


def test_questions_that_share_videos_and_seeds_that_differ_widen_the_interval() -> None:
    generator, videos = np.random.default_rng(0), np.repeat(np.arange(80), 5)

    def width(between_videos: float, between_seeds: float) -> float:
        shares = 0.5 + np.clip(generator.normal(0, between_videos, (1, 80)), -0.5, 0.5)
        hits = generator.random((5, 400)) < (shares + generator.normal(0, between_seeds, (5, 1)))[:, videos]
        interval = estimate_mean(hits, videos).interval
        return interval.high - interval.low

    assert width(0.4, 0.0) > 1.5 * width(0.0, 0.0)
    assert width(0.0, 0.2) > 2 * width(0.0, 0.0)


def test_p_is_below_5_percent_where_the_interval_is_without_0() -> None:
    generator = np.random.default_rng(0)
    ps = []
    for shift in np.linspace(-0.2, 0.2, 60):
        mean = estimate_mean(generator.normal(shift, 1.0, (3, 400)), VIDEOS)
        assert (mean.p < 0.05) == (not mean.interval.low <= 0 <= mean.interval.high)
        ps.append(mean.p)
    assert min(ps) < 0.05 < max(ps)


def test_intervals_of_accuracies_stay_between_0_and_100_percent() -> None:
    assert wilson_interval(Count(correct=0, questions=5)).low == 0
    assert wilson_interval(Count(correct=5, questions=5)).high == 100
    hits = np.arange(40)[None] < np.array([[1], [1], [9]])
    low = estimate_accuracy(counts_of(hits), hits, [str(number) for number in range(40)])
    high = estimate_accuracy(counts_of(~hits), ~hits, [str(number) for number in range(40)])
    assert low.interval.low == 0 < low.mean
    assert high.interval.high == 100 > high.mean


NOTHING_TELLS = {
    "nine videos": ([n < 30 for n in range(90)], [str(n // 10 % (FEWEST_VIDEOS - 1)) for n in range(90)]),
    "all right": ([True] * 40, [str(n) for n in range(40)]),
    "a third each": ([True, False, False] * 40, [str(n // 3) for n in range(120)]),
}


@pytest.mark.parametrize("name", NOTHING_TELLS)
@pytest.mark.parametrize("seeds", [1, 3])
def test_where_videos_do_not_tell_a_run_has_wilsons_interval_and_several_seeds_have_none(name: str, seeds: int) -> None:
    answers, videos = NOTHING_TELLS[name]
    hits = np.array([answers] * seeds)
    mean = estimate_mean(hits, videos)
    assert (mean.mean, mean.interval, mean.p) == (pytest.approx(100 * np.mean(answers)), None, None)
    assert interval_over_videos(answers, videos) is None
    counts = counts_of(hits)
    interval = estimate_accuracy(counts, hits, videos).interval
    if seeds > 1:
        assert interval is None
    else:
        wilson = wilson_interval(counts[0])
        assert interval.over == "questions"
        assert (interval.low, interval.high) == pytest.approx((wilson.low, wilson.high))


def test_without_predictions_a_run_has_its_stored_interval_and_several_seeds_have_none() -> None:
    count = Count(correct=6, questions=18)
    estimate = estimate_accuracy([count], over_videos=(34.0, 50.0))
    assert (estimate.interval.over, estimate.interval.low) == ("videos", count.accuracy)
    assert estimate_accuracy([count]).interval.over == "questions"
    # Of rows of early versions.
    collapsed = estimate_accuracy([count], over_videos=(33.33333333333333, 33.33333333333334))
    assert collapsed.interval.over == "questions"
    assert estimate_accuracy([count, count], over_videos=(34.0, 50.0)).interval is None
    with pytest.raises(ValueError, match="no counts"):
        estimate_accuracy([])


def test_an_interval_over_the_videos_of_one_run_is_that_of_its_accuracy() -> None:
    (hits,) = sampled(1)
    low, high = interval_over_videos(hits.tolist(), VIDEOS)
    interval = estimate_accuracy(counts_of(hits[None]), hits[None], VIDEOS).interval
    assert (low, high) == (interval.low, interval.high)
    assert interval_over_videos([], []) is None
    ends = interval_over_videos([number == 0 for number in range(40)], [str(number) for number in range(40)])
    assert ends[0] == 0


def test_holm_multiplies_the_smallest_p_by_the_number_of_tests_and_keeps_their_order() -> None:
    # Source: computed by hand from Holm (1979).
    assert correct_holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert correct_holm([0.9, 0.6]) == [1.0, 1.0]
    assert correct_holm([0.2]) == [0.2]
    assert correct_holm([]) == []


@given(
    st.lists(st.tuples(st.integers(0, 14), st.lists(st.booleans(), min_size=3, max_size=3)), min_size=1, max_size=60)
)
def test_an_interval_contains_its_accuracy_and_is_wider_than_0(questions: list[tuple[int, list[bool]]]) -> None:
    hits = np.array([answers for _, answers in questions]).T
    videos = [str(video) for video, _ in questions]
    for seeds in (1, 2, 3):
        estimate = estimate_accuracy(counts_of(hits[:seeds]), hits[:seeds], videos)
        if estimate.interval is not None:
            assert estimate.interval.low <= estimate.mean <= estimate.interval.high
            assert estimate.interval.low < estimate.interval.high
