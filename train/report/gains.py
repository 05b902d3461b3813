"""What a method gains over simpler ones on the same questions, and how sure that is. It predicts nothing.

Source: a bootstrap over questions and a sign-flip test, both of paired differences; the share of the gap is this
project's measure: 1 is what a model reaches that was trained without the modality.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from train.report.tables import Block, Line
from train.results import predictions_path, read_predictions

BASELINES = ("zero-fill", "modality-dropout", "constant-fill")
TRAINED_WITHOUT = {"audio-missing": "visual,question", "visual-missing": "audio,question"}
DRAWS = 2000


@dataclass(frozen=True)
class Gain:
    """A gain in percent points with its 95 % interval [low, high] and the p-value of there being none.

    `share`: of the gap between the baseline and the model trained without the missing modality; None where that model
    is not there or not above the baseline.
    """

    points: float
    low: float
    high: float
    p: float
    share: float | None


def paired_gain(differences: np.ndarray, share: float | None = None) -> Gain:
    """Return the gain of float `differences` [question], each the mean over seeds of method minus baseline, in [-1, 1].

    The interval resamples questions, the test flips the signs of their differences; both draw with a fixed seed.
    """
    generator = np.random.default_rng(0)
    drawn = generator.integers(len(differences), size=(DRAWS, len(differences)))
    low, high = np.percentile(differences[drawn].mean(1), (2.5, 97.5))
    signs = generator.integers(2, size=drawn.shape, dtype=np.int8) * 2 - 1
    mean = float(differences.mean())
    as_far = int((np.abs((signs * differences).mean(1)) >= abs(mean) - 1e-12).sum())
    return Gain(100 * mean, 100 * float(low), 100 * float(high), (1 + as_far) / (1 + DRAWS), share)


def find_gains(block: Block, folders: Mapping[str, Path]) -> dict[str, dict[str, Gain]]:
    """Return {baseline: {method's label: its gain}} of the seeds that both have in a block.

    `folders` {run: its folder} are where single predictions stand. Lines of another backbone are not compared.
    """
    methods = [line for line in block.lines if line.role == "method"]
    answered = {line.label: _right_by_seed(line, block, folders) for line in methods}
    found: dict[str, dict[str, Gain]] = {}
    for baseline in (line for line in methods if line.method in BASELINES):
        for line in methods:
            seeds = answered[line.label].keys() & answered[baseline.label].keys()
            if line is baseline or not seeds or line.rows[0].backbone != baseline.rows[0].backbone:
                continue
            pairs = [answered[line.label][seed] - answered[baseline.label][seed] for seed in sorted(seeds)]
            gain = paired_gain(np.mean(pairs, axis=0), _share(block, line, baseline))
            found.setdefault(baseline.label, {})[line.label] = gain
    return found


def _right_by_seed(line: Line, block: Block, folders: Mapping[str, Path]) -> dict[int, np.ndarray]:
    """Return {seed: float [question], 1 where the answer is right}, questions sorted by id."""
    found = {}
    for row in line.rows:
        path = predictions_path(folders[row.run], block.split, block.scenario)
        if path.exists():
            told = sorted((p.question_id, p.correct) for p in read_predictions(path))
            found[row.seed] = np.array([correct for _, correct in told], dtype=float)
    return found


def _share(block: Block, line: Line, baseline: Line) -> float | None:
    inputs = TRAINED_WITHOUT.get(block.scenario)
    same = [other for other in block.lines if other.rows[0].backbone == line.rows[0].backbone]
    means = [_mean(same_line) for same_line in same if same_line.role == "reference" and same_line.inputs == inputs]
    if not means or means[0] <= _mean(baseline):
        return None
    return (_mean(line) - _mean(baseline)) / (means[0] - _mean(baseline))


def _mean(line: Line) -> float:
    cell = line.cells["All"]
    assert cell is not None
    return cell.mean


def gain_rows(gains: Mapping[str, Mapping[str, Mapping[str, Gain]]]) -> list[tuple[str, str, list[Gain | None]]]:
    """Return (baseline, method, a gain per scenario) of {scenario: what `find_gains` returns}, in the order found."""
    pairs = dict.fromkeys((b, m) for by_baseline in gains.values() for b, of in by_baseline.items() for m in of)
    return [(b, m, [of.get(b, {}).get(m) for of in gains.values()]) for b, m in pairs]


def scenario_gains(blocks: Sequence[Block], folders: Mapping[str, Path]) -> dict[str, dict[str, dict[str, Gain]]]:
    """Return {scenario: gains} of the scenarios in which methods can be compared."""
    found = {block.scenario: find_gains(block, folders) for block in blocks}
    return {scenario: gains for scenario, gains in found.items() if gains}
