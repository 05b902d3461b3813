"""Measure how often 95 % intervals contain the truth, in simulated experiments whose variances are known.

An experiment has S seeds that answer Q questions on V videos. The variance parts are standard deviations of effects on
the latent score of an answer, which is right where the score is above 0 (a probit model): the accuracy of all seeds and
videos is then Phi(mean / sqrt(1 + sum of variances)). Two methods share the effects of videos and questions and have
their own seeds; both kinds of effects also interact. Gaussian values have the same parts, on the scale of the values.
Compared are the two-way interval of the reports and what came before: Student's t over the seeds, and percentile
bootstraps over the videos, with all seeds kept, and over both (crossed).
Ends with 1 if the two-way interval covers less than 93 or more than 97 % from five seeds on.
Source: McCullagh, "Resampling and exchangeable arrays" (2000), for the crossed bootstrap.

    python benchmarks/interval_coverage.py --simulations 5000
"""

import argparse
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import stats

from train.evaluation.two_way import mean_squares, standard_error

LEVEL = 0.95
# Percent, from five seeds on.
LEAST, MOST = 93.0, 97.0
SEEDS = (3, 5, 10)
RESAMPLES = 1000
# Simulations at a time: a few hundred MB.
CHUNK = 250
# Questions and videos of a small column and of the demo's test split, and one with single questions.
DESIGNS = ((60, 50), (768, 85), (150, 150))


@dataclass(frozen=True)
class Parts:
    """Standard deviations of the effects on the latent score, besides the noise of an answer, which is 1.

    `seed`: of a method's seed. `video`, `question`: shared by the methods. `method_video`: of a method on a video.
    `seed_video`: of one seed on one video.
    """

    seed: float
    video: float
    question: float
    method_video: float
    seed_video: float

    @property
    def variance(self) -> float:
        """The variance of the latent score."""
        effects = (self.seed, self.video, self.question, self.method_video, self.seed_video)
        return 1 + sum(effect**2 for effect in effects)


PARTS = {
    "no seeds": Parts(0.0, 0.6, 0.8, 0.3, 0.3),
    "few seeds": Parts(0.06, 0.6, 0.8, 0.3, 0.3),
    "seeds as videos": Parts(0.15, 0.6, 0.8, 0.3, 0.3),
    "mostly seeds": Parts(0.5, 0.6, 0.8, 0.3, 0.3),
    "only seeds": Parts(0.5, 0.0, 0.0, 0.0, 0.0),
    "only residual": Parts(0.0, 0.0, 0.0, 0.0, 0.5),
}
# Latent means of the method and of its baseline.
MEANS = (0.5, 0.3)


@dataclass(frozen=True)
class Experiment:
    """Simulated sums, float [simulation, seed, video], over the questions of each video, `sizes` [video]; the truth."""

    sums: np.ndarray
    sizes: np.ndarray
    truth: float


def main() -> int:
    """Print the table; return 1 if the two-way interval covers too little or too much from five seeds on."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0, help="seed of the simulation")
    options = parser.parse_args()
    error = 100 * math.sqrt(LEVEL * (1 - LEVEL) / options.simulations)
    print(f"coverage of 95 % intervals, %, in {options.simulations} simulations each (standard error {error:.1f})\n")
    heads = ("two-way", "t, seeds", "bootstrap, videos", "bootstrap, crossed")
    print("shares: of seeds, videos and residual in the variance of the estimate, %; ! outside the bounds\n")
    names = f"{'estimate':<20}{'questions/videos':<18}{'parts':<17}{'shares':<13}{'seeds':>5}"
    print(names + "".join(f"{head:>20}" for head in heads))
    outside = []
    started = time.perf_counter()
    for name, shares, cells in find_coverages(options.simulations, options.seed):
        is_outside = name.seeds >= 5 and not LEAST <= cells[0] <= MOST
        outside += [name] if is_outside else []
        shown = " ".join(f"{share:.0f}" for share in shares)
        line = f"{name.estimate:<20}{name.design:<18}{name.parts:<17}{shown:<13}{name.seeds:>5}"
        print(line + "".join(f"{cell:>20.1f}" for cell in cells) + ("  !" if is_outside else ""), flush=True)
    print(f"\n{time.perf_counter() - started:.0f} seconds")
    print(f"outside {LEAST:.0f} to {MOST:.0f} % from five seeds on: {len(outside)} two-way cells")
    return 1 if outside else 0


@dataclass(frozen=True)
class Name:
    """What a line of the table is of."""

    estimate: str
    design: str
    parts: str
    seeds: int


def find_coverages(simulations: int, seed: int) -> Iterator[tuple[Name, list[float], list[float]]]:
    """Yield each experiment's name, shares of its variance and coverages of the four intervals, all in percent."""
    for questions, videos in DESIGNS:
        for label, parts in PARTS.items():
            for seeds in SEEDS:
                generator = np.random.default_rng([seed, questions, videos, seeds, *label.encode()])
                sizes = sample_sizes(generator, questions, videos)
                binary = simulate_answers(generator, parts, seeds, sizes, simulations)
                gaussian = simulate_values(generator, parts, seeds, sizes, simulations)
                for estimate, experiment in {**binary, "Gaussian values": gaussian}.items():
                    name = Name(estimate, f"{questions}/{videos}", label, seeds)
                    yield name, variance_shares(experiment), measure(generator, experiment)


def sample_sizes(generator: np.random.Generator, questions: int, videos: int) -> np.ndarray:
    """Return the questions per video, int [video]: at least one each, the others on random videos."""
    return 1 + generator.multinomial(questions - videos, np.full(videos, 1 / videos))


def simulate_answers(
    generator: np.random.Generator, parts: Parts, seeds: int, sizes: np.ndarray, simulations: int
) -> dict[str, Experiment]:
    """Return experiments with binary answers: the accuracy of a method, and its difference from another one."""
    scale = math.sqrt(parts.variance)
    truths = [float(stats.norm.cdf(mean / scale)) for mean in MEANS]
    sums = [
        _simulate_hits(generator, parts, seeds, sizes, min(CHUNK, simulations - start))
        for start in range(0, simulations, CHUNK)
    ]
    method, baseline = (np.concatenate([chunk[number] for chunk in sums]) for number in range(2))
    return {
        "accuracy": Experiment(method, sizes, truths[0]),
        "paired difference": Experiment(method - baseline, sizes, truths[0] - truths[1]),
    }


def _simulate_hits(
    generator: np.random.Generator, parts: Parts, seeds: int, sizes: np.ndarray, simulations: int
) -> list[np.ndarray]:
    """Return the correct answers of the two methods, float [simulation, seed, video]."""
    video_of = np.repeat(np.arange(len(sizes)), sizes)

    def sample(deviation: float, *shape: int) -> np.ndarray:
        return deviation * generator.standard_normal((simulations, *shape), dtype=np.float32)

    shared = sample(parts.video, 1, len(sizes))[..., video_of] + sample(parts.question, 1, len(video_of))
    hits = []
    for mean in MEANS:
        effects = sample(parts.seed, seeds, 1) + sample(parts.method_video, 1, len(sizes))
        effects = mean + effects + sample(parts.seed_video, seeds, len(sizes))
        is_right = effects[..., video_of] + shared + sample(1.0, seeds, len(video_of)) > 0
        starts = np.cumsum(sizes) - sizes
        hits.append(np.add.reduceat(is_right.astype(np.float32), starts, -1).astype(float))
    return hits


def simulate_values(
    generator: np.random.Generator, parts: Parts, seeds: int, sizes: np.ndarray, simulations: int
) -> Experiment:
    """Return an experiment with Gaussian values of mean `MEANS[0]`, of one method."""

    def sample(deviation: float, *shape: int) -> np.ndarray:
        return deviation * generator.standard_normal((simulations, *shape))

    of_video = math.hypot(parts.video, parts.method_video)
    effects = MEANS[0] + sample(parts.seed, seeds, 1) + sample(of_video, 1, len(sizes))
    effects = effects + sample(parts.seed_video, seeds, len(sizes))
    of_questions = sample(parts.question, 1, len(sizes)) + sample(1.0, seeds, len(sizes))
    return Experiment(effects * sizes + of_questions * np.sqrt(sizes), sizes, MEANS[0])


def variance_shares(experiment: Experiment) -> list[float]:
    """Return the shares of seeds, videos and residual in the variance of the estimate, in percent.

    They are of the mean squares' means over the simulations.
    """
    squares = mean_squares(experiment.sums, experiment.sizes)
    a, b, e = (float(of.mean()) for of in (squares.of_seeds, squares.of_videos, squares.of_residual))
    return [100 * abs(part) / (a + b - e) for part in (a - e, b - e, e)]


def measure(generator: np.random.Generator, experiment: Experiment) -> list[float]:
    """Return the coverages in percent: two-way, t over seeds, bootstrap over videos, crossed bootstrap."""
    bounds = (
        two_way_bounds(experiment),
        t_bounds(experiment),
        *bootstrap_bounds(generator, experiment),
    )
    return [float(100 * np.mean((low <= experiment.truth) & (experiment.truth <= high))) for low, high in bounds]


def two_way_bounds(experiment: Experiment) -> tuple[np.ndarray, np.ndarray]:
    """Return the bounds of the two-way interval, float [simulation] each; NaN where nothing varies."""
    squares = mean_squares(experiment.sums, experiment.sizes)
    error, degrees = standard_error(squares)
    half_width = error * stats.t.ppf((1 + LEVEL) / 2, degrees)
    return squares.estimate - half_width, squares.estimate + half_width


def t_bounds(experiment: Experiment) -> tuple[np.ndarray, np.ndarray]:
    """Return the bounds of Student's t interval over the seeds, float [simulation] each."""
    of_seeds = experiment.sums.sum(-1) / experiment.sizes.sum()
    seeds = of_seeds.shape[-1]
    half_width = stats.t.ppf((1 + LEVEL) / 2, seeds - 1) * of_seeds.std(-1, ddof=1) / math.sqrt(seeds)
    return of_seeds.mean(-1) - half_width, of_seeds.mean(-1) + half_width


def bootstrap_bounds(
    generator: np.random.Generator, experiment: Experiment
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Return the bounds of the percentile bootstraps over the videos, and over seeds and videos.

    All simulations share the resamples, which do not depend on them.
    """
    seeds, videos = experiment.sums.shape[1:]
    of_videos = generator.multinomial(videos, np.full(videos, 1 / videos), RESAMPLES).astype(np.float32)
    of_seeds = generator.multinomial(seeds, np.full(seeds, 1 / seeds), RESAMPLES).astype(np.float32)
    # Of each simulation, seed and resample.
    means = experiment.sums.astype(np.float32) @ of_videos.T / (of_videos @ experiment.sizes)
    crossed = np.einsum("nsr,rs->nr", means, of_seeds) / seeds
    percentiles = [50 * (1 - LEVEL), 50 * (1 + LEVEL)]
    low, high = np.percentile(means.mean(1), percentiles, axis=-1)
    return (low, high), tuple(np.percentile(crossed, percentiles, axis=-1))


if __name__ == "__main__":
    sys.exit(main())
