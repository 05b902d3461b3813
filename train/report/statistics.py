"""How sure an accuracy is: an interval over seeds, or over videos or questions where one seed is. It reads no file.

Source: Student's t interval for a mean; Wilson's score interval for a proportion. Over videos:
`train.evaluation.statistics`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from train.runs.results import Count

NORMAL_95 = 1.959964
T_95 = (
    *(12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281),
    *(2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860),
    *(2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423),
)


@dataclass(frozen=True)
class Estimate:
    """An accuracy in percent with its 95 % interval [low, high].

    `interval`: "seeds" is a t interval over the seeds' accuracies (training again); of one run, "videos" is a
    bootstrap interval (asking about other videos), "questions" a Wilson interval of its count, which takes the
    questions on one video for independent. `questions` counts what one run was asked.
    """

    mean: float
    low: float
    high: float
    interval: Literal["seeds", "videos", "questions"]
    seeds: int
    questions: int


def estimate(counts: Sequence[Count]) -> Estimate:
    """Return the mean accuracy over a method's seeds and its interval. Raises ValueError without a count."""
    if not counts:
        raise ValueError("no count to estimate an accuracy from")
    if len(counts) == 1:
        return Estimate(counts[0].accuracy, *wilson(counts[0]), "questions", 1, counts[0].questions)
    values = [count.accuracy for count in counts]
    mean = math.fsum(values) / len(values)
    half = t_half_width(values)
    low, high = max(0.0, mean - half), min(100.0, mean + half)
    return Estimate(mean, low, high, "seeds", len(values), counts[0].questions)


def wilson(count: Count) -> tuple[float, float]:
    """Return the 95 % Wilson interval of a proportion, in percent."""
    n, share, z = count.questions, count.correct / count.questions, NORMAL_95
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return 100 * max(0.0, centre - half), 100 * min(1.0, centre + half)


def t_half_width(values: Sequence[float]) -> float:
    """Return half the width of the 95 % t interval of the mean of at least two values, in their unit."""
    degrees = len(values) - 1
    quantile = T_95[degrees - 1] if degrees <= len(T_95) else NORMAL_95
    mean = math.fsum(values) / len(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / degrees
    return quantile * math.sqrt(variance / len(values))
