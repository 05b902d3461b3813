"""The two-way variance model: mean squares by hand, known special cases, variance parts that come out negative."""

import numpy as np
import pytest
from scipy import stats

from train.evaluation.two_way import mean_squares, standard_error, sum_by_video, variance_parts

ONE_EACH = np.ones(4, dtype=int)
# Seed effects -1, 0, 1, video effects -2, -1, 0, 3, and an interaction of 1 in a square of four cells.
BY_HAND = np.array([[2.0, 1.0, 3.0, 6.0], [1.0, 4.0, 4.0, 7.0], [3.0, 4.0, 5.0, 8.0]])


def test_the_mean_squares_of_a_table_are_those_computed_by_hand() -> None:
    squares = mean_squares(BY_HAND, ONE_EACH)
    assert (squares.estimate, squares.seeds, squares.videos) == (4.0, 3, 4)
    assert (squares.of_seeds, squares.of_videos) == (4.0, 14.0)
    assert squares.of_residual == pytest.approx(4 / 6)
    error, degrees = standard_error(squares)
    total = 4 + 14 - 4 / 6
    assert error**2 == pytest.approx(total / 12)
    assert degrees == pytest.approx(total**2 / (16 / 2 + 196 / 3 + (4 / 6) ** 2 / 6))
    parts = variance_parts(squares)
    assert (parts.of_seeds, parts.of_videos) == pytest.approx(((4 - 4 / 6) / 4, (14 - 4 / 6) / 3))
    expected = parts.expect(4.0, 3, 4)
    assert expected.of_seeds == pytest.approx(4.0)
    assert expected.of_videos == pytest.approx(14.0)


def test_leading_axes_are_independent_experiments() -> None:
    squares = mean_squares(np.stack([BY_HAND, 2 * BY_HAND]), ONE_EACH)
    errors, degrees = standard_error(squares)
    single, of_single = standard_error(mean_squares(BY_HAND, ONE_EACH))
    assert errors == pytest.approx(np.array([single, 2 * single]))
    assert degrees == pytest.approx(np.array([of_single, of_single]))


def test_questions_asked_twice_tell_nothing_new() -> None:
    once, twice = (standard_error(mean_squares(n * BY_HAND, n * ONE_EACH)) for n in (1, 2))
    assert [float(number) for number in twice] == pytest.approx([float(number) for number in once])


def test_an_accuracy_of_videos_with_unequal_questions_is_that_over_questions_with_the_error_of_a_ratio() -> None:
    hits, sizes = np.array([[3.0, 0.0, 2.0, 1.0, 5.0]]), np.array([3, 2, 4, 1, 5])
    error, degrees = standard_error(mean_squares(hits, sizes))
    estimate = hits.sum() / sizes.sum()
    assert mean_squares(hits, sizes).estimate == pytest.approx(estimate)
    residuals = hits[0] - estimate * sizes
    assert error == pytest.approx(np.sqrt((residuals**2).sum() * 5 / 4) / sizes.sum())
    assert degrees == 4


def test_seeds_that_alone_differ_have_students_t_over_seeds() -> None:
    of_seeds = np.array([0.2, 0.5, 0.9])
    error, degrees = standard_error(mean_squares(np.repeat(of_seeds[:, None], 4, 1), ONE_EACH))
    assert error == pytest.approx(stats.sem(of_seeds))
    assert degrees == pytest.approx(2)


def test_equal_seeds_have_students_t_over_videos() -> None:
    of_videos = np.array([0.0, 1.0, 0.0, 3.0])
    error, degrees = standard_error(mean_squares(np.tile(of_videos, (3, 1)), ONE_EACH))
    assert error == pytest.approx(stats.sem(of_videos))
    assert degrees == pytest.approx(3)


@pytest.mark.parametrize("seeds", [1, 2])
def test_one_or_two_seeds_have_the_error_of_their_mean_over_videos(seeds: int) -> None:
    error, degrees = standard_error(mean_squares(BY_HAND[:seeds], ONE_EACH))
    assert error == pytest.approx(stats.sem(BY_HAND[:seeds].mean(0)))
    assert degrees == 3
    with pytest.raises(ValueError, match=f"{seeds} seeds are too few"):
        variance_parts(mean_squares(BY_HAND[:seeds], ONE_EACH))


def crossed(seeds: list[float], videos: list[float], residual: float) -> np.ndarray:
    """Return a table with these effects and an interaction of size `residual` that leaves all means as they are."""
    signs = np.outer([1, -1, 0], [1, -1, 1, -1])
    return np.add.outer(seeds, videos) + residual * signs


@pytest.mark.parametrize(
    ("seeds", "videos", "kept", "degrees"),
    [
        ([0.0, 0.1, 0.2], [0.0, 9.0, 3.0, 5.0], "of_videos", 3),
        ([0.0, 5.0, 9.0], [0.0, 0.1, 0.2, 0.1], "of_seeds", 2),
        ([0.0, 0.1, 0.2], [0.0, 0.1, 0.2, 0.1], "of_seeds", 2),
        ([0.1, 0.1, 0.1], [0.0, 0.1, 0.2, 0.1], "of_residual", 6),
    ],
)
def test_a_part_below_the_residual_counts_as_0_and_the_other_mean_square_stands_alone(
    seeds: list[float], videos: list[float], kept: str, degrees: int
) -> None:
    squares = mean_squares(crossed(seeds, videos, 1.0), ONE_EACH)
    error, found = standard_error(squares)
    assert error**2 == pytest.approx(getattr(squares, kept) / 12)
    assert error**2 > (squares.of_seeds + squares.of_videos - squares.of_residual) / 12
    assert found == degrees
    parts = variance_parts(squares)
    assert min(parts.of_seeds, parts.of_videos) == 0


def test_without_variation_there_are_no_degrees_of_freedom() -> None:
    for seeds in (1, 3):
        error, degrees = standard_error(mean_squares(np.ones((seeds, 4)), ONE_EACH))
        assert error == 0
        assert np.isnan(degrees)


def test_values_are_summed_by_video_over_the_videos_that_have_questions() -> None:
    sums, sizes = sum_by_video([[1, 0, 1, 1], [0, 0, 1, 0]], ["b", "a", "b", "c"])
    assert sums.tolist() == [[0, 2, 1], [0, 1, 0]]
    assert sizes.tolist() == [1, 2, 1]
    assert sum_by_video([[1, 0, 1, 1]], np.array([7, 2, 7, 9]))[0].tolist() == [[0, 2, 1]]
