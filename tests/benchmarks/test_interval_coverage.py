"""The simulation of coverage in short: its truths, and what the intervals contain at five seeds."""

import interval_coverage as coverage
import numpy as np
import pytest

SIMULATIONS = 1000
# 93 to 97 % is asked; three standard errors of 1,000 simulations are 2 %.
LEAST, MOST = 91.0, 99.0


def simulate(label: str, seeds: int = 5, simulations: int = SIMULATIONS) -> dict[str, coverage.Experiment]:
    generator = np.random.default_rng(0)
    sizes = coverage.sample_sizes(generator, 60, 50)
    assert (sizes.sum(), sizes.min(), len(sizes)) == (60, 1, 50)
    arguments = (generator, coverage.PARTS[label], seeds, sizes, simulations)
    return {**coverage.simulate_answers(*arguments), "values": coverage.simulate_values(*arguments)}


@pytest.mark.parametrize("label", coverage.PARTS)
def test_the_truth_is_the_mean_of_the_simulated_estimates(label: str) -> None:
    for name, experiment in simulate(label, simulations=2 * coverage.CHUNK + 1).items():
        assert len(experiment.sums) == 2 * coverage.CHUNK + 1
        estimates = experiment.sums.sum((1, 2)) / (experiment.sums.shape[1] * experiment.sizes.sum())
        assert abs(estimates.mean() - experiment.truth) < 4 * estimates.std() / np.sqrt(len(estimates)), name


@pytest.mark.parametrize("label", coverage.PARTS)
def test_two_way_intervals_of_five_seeds_cover_the_truth(label: str) -> None:
    for name, experiment in simulate(label).items():
        two_way, *_ = coverage.measure(np.random.default_rng(0), experiment)
        assert LEAST <= two_way <= MOST, name


def test_intervals_that_keep_the_seeds_or_the_videos_miss_the_truth() -> None:
    _, over_seeds, _, _ = coverage.measure(np.random.default_rng(0), simulate("no seeds")["values"])
    _, _, over_videos, crossed = coverage.measure(np.random.default_rng(0), simulate("only seeds")["values"])
    assert over_seeds < 80
    assert over_videos < 60
    assert 60 < crossed < LEAST


def test_a_coverage_outside_the_bounds_is_marked_and_ends_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [coverage.Name("accuracy", "60/50", "no seeds", seeds) for seeds in (3, 5)]
    for cells, code in (([92.0, 95.0], 0), ([92.0, 92.0], 1), ([97.5, 97.5], 1)):
        found = [(name, [0.0, 90.0, 10.0], [cell, 80.0, 80.0, 80.0]) for name, cell in zip(names, cells, strict=True)]
        monkeypatch.setattr(coverage, "find_coverages", lambda simulations, seed, found=found: iter(found))
        monkeypatch.setattr("sys.argv", ["interval_coverage.py", "--simulations", "2000"])
        assert coverage.main() == code
        assert capsys.readouterr().out.count("  !") == code
