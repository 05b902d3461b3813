"""The gains of a method over simpler baselines on the same questions, with intervals and corrected p-values.

Source: the two-way variance model of paired differences (`train.evaluation.two_way`); Holm's correction within each
family, the methods that are compared with one baseline in one scenario. The share of the gap is this project's measure:
1 is the accuracy of a reference model trained without the missing modality.
"""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from train.evaluation.statistics import Interval, correct_holm, estimate_mean
from train.report.hits import Hits, Questions, check_same_questions
from train.report.tables import Block, Line

BASELINES = ("zero-fill", "modality-dropout", "constant-fill", "retrieval-fill")
# The inputs of the reference model that is trained without the modality that a scenario removes.
REFERENCE_INPUTS = {"audio-missing": "visual,question", "visual-missing": "audio,question"}
CSV_FIELDS = (
    *("dataset", "release", "split", "scenario", "over", "method"),
    *("points", "low", "high", "interval", "p", "p_holm", "family", "share", "seeds", "points_by_seed"),
)

# {scenario: {label of a baseline: {label of a method: its gain}}}
Gains = Mapping[str, Mapping[str, Mapping[str, "Gain"]]]


@dataclass(frozen=True)
class Gain:
    """A gain in percentage points, its 95 % interval, and the p-value of no gain; None if they cannot be estimated.

    `by_seed`: {seed that both methods have: the gain of its two runs}. `p_holm`: corrected for the `family` of
    comparisons with the same baseline in the same scenario (their number). `share`: the gain as a share of the gap
    between the baseline and the reference model trained without the missing modality; None if there is no such model of
    these seeds or the gap has no interval above 0.
    """

    points: float
    interval: Interval | None
    p: float | None
    by_seed: Mapping[int, float]
    share: float | None = None
    p_holm: float | None = None
    family: int = 1

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds that both methods have."""
        return tuple(self.by_seed)


@dataclass(frozen=True)
class Pair:
    """Two lines of one backbone on the same questions, and the seeds that both have predictions of."""

    baseline: Line
    method: Line
    seeds: tuple[int, ...]

    @property
    def differences(self) -> np.ndarray:
        """The differences in correct answers, float [seed, question]: method minus baseline."""
        return _differences(self.method.hits, self.baseline.hits, self.seeds)

    @property
    def questions(self) -> Questions:
        """The questions that both answer."""
        return self.method.hits[self.seeds[0]].questions

    @property
    def videos(self) -> np.ndarray:
        """The number of each question's video, int [question]."""
        return self.questions.videos


def find_pairs(block: Block) -> Iterator[Pair]:
    """Yield the comparisons of a block: each method with each baseline of its backbone, over the seeds of both.

    If a baseline was trained at several exposures, a method is compared with those of its own exposure if there are
    any, and the baseline with its other exposures. Raises `UserError` if two runs of a pair have predictions of
    different questions.
    """
    methods = [line for line in block.lines if line.role == "method"]
    baselines = {line.label: {of.label for of in _baselines_of(line, methods)} for line in methods}
    for baseline in methods:
        for line in methods:
            if baseline.label in baselines[line.label]:
                seeds = _common_seeds(baseline, line)
                check_same_questions([of[seed] for of in (line.hits, baseline.hits) for seed in seeds])
                yield Pair(baseline, line, seeds)


def find_gains(block: Block) -> dict[str, dict[str, Gain]]:
    """Return {baseline: {method: its gain}} by label, over the seeds that both have in a block.

    Only methods with the same backbone are compared. The methods of one baseline are a family.
    """
    gains: dict[str, dict[str, Gain]] = {}
    for pair in find_pairs(block):
        gain = paired_gain(pair.differences, pair.videos, pair.seeds)
        share = _share_of_gap(pair, gain.points, _find_reference(block, pair.method))
        gains.setdefault(pair.baseline.label, {})[pair.method.label] = replace(gain, share=share)
    return {baseline: _correct(by_method) for baseline, by_method in gains.items()}


def paired_gain(differences: np.ndarray, videos: Sequence[str] | np.ndarray, seeds: Sequence[int]) -> Gain:
    """Return the gain from `differences` (float [seed, question] in [-1, 1]): method minus baseline.

    `videos` [question]: what identifies each question's video. `seeds` [seed]: their names.
    """
    mean = estimate_mean(differences, videos)
    by_seed = dict(zip(seeds, (100 * differences.mean(1)).tolist(), strict=True))
    return Gain(mean.mean, mean.interval, mean.p, by_seed)


def _correct(by_method: Mapping[str, Gain]) -> dict[str, Gain]:
    """Return the gains of a family with their corrected p-values; the family is of those that have one."""
    tested = {label: gain.p for label, gain in by_method.items() if gain.p is not None}
    corrected = dict(zip(tested, correct_holm([*tested.values()]), strict=True))
    return {label: replace(gain, p_holm=corrected.get(label), family=len(tested)) for label, gain in by_method.items()}


def _differences(method: Mapping[int, Hits], baseline: Mapping[int, Hits], seeds: Sequence[int]) -> np.ndarray:
    """Return the differences in correct answers, float [seed, question]: method minus baseline."""
    return np.array([method[seed].correct.astype(float) - baseline[seed].correct for seed in seeds])


def _baselines_of(line: Line, methods: Sequence[Line]) -> list[Line]:
    """Return the baselines among `methods` with which a line is compared."""
    baselines = [
        baseline
        for baseline in methods
        if baseline.method in BASELINES
        and baseline is not line
        and _backbone_of(baseline) == _backbone_of(line)
        and _common_seeds(baseline, line)
    ]
    sees = line.rows[0].sees
    of_same_exposure = {baseline.method for baseline in baselines if baseline.rows[0].sees == sees}
    # With its own other exposures a method is always compared.
    return [
        baseline
        for baseline in baselines
        if baseline.rows[0].sees == sees or baseline.method == line.method or baseline.method not in of_same_exposure
    ]


def _common_seeds(one: Line, other: Line) -> tuple[int, ...]:
    """Return the seeds of which both have predictions."""
    return tuple(sorted(one.hits.keys() & other.hits.keys()))


def _backbone_of(line: Line) -> tuple[str, str]:
    """Return the backbone of a line and its variant, where it was chosen apart from the method's."""
    return line.rows[0].backbone, line.rows[0].training.get("backbone_variant", "")


def _find_reference(block: Block, line: Line) -> Line | None:
    """Return the reference with the line's backbone, trained without the missing modality, or None.

    Of several the one with the line's exposure, else one that answers each question once.
    """
    inputs, preferred = REFERENCE_INPUTS.get(block.scenario), [line.rows[0].sees, "nothing"]
    references = [o for o in block.lines if o.role == "reference" and o.inputs == inputs]
    references = [reference for reference in references if _backbone_of(reference) == _backbone_of(line)]
    references.sort(key=lambda of: preferred.index(of.rows[0].sees) if of.rows[0].sees in preferred else len(preferred))
    return references[0] if references else None


def _share_of_gap(pair: Pair, points: float, reference: Line | None) -> float | None:
    """Return the share that a gain of `points` is of the gap; None as in `Gain`."""
    if reference is None or not reference.hits.keys() >= set(pair.seeds):
        return None
    check_same_questions([pair.method.hits[pair.seeds[0]], *(reference.hits[seed] for seed in pair.seeds)])
    gap = estimate_mean(_differences(reference.hits, pair.baseline.hits, pair.seeds), pair.videos)
    return points / gap.mean if gap.interval is not None and gap.interval.low > 0 else None


def gain_rows(gains: Gains) -> list[tuple[str, str, list[Gain | None]]]:
    """Return (baseline, method, a gain per scenario) from the result of `scenario_gains`, in its order."""
    pairs = dict.fromkeys((b, m) for by_baseline in gains.values() for b, of in by_baseline.items() for m in of)
    return [(b, m, [of.get(b, {}).get(m) for of in gains.values()]) for b, m in pairs]


def scenario_gains(blocks: Sequence[Block]) -> dict[str, dict[str, dict[str, Gain]]]:
    """Return {scenario: result of `find_gains`} of the scenarios with at least one gain."""
    by_scenario = {block.scenario: find_gains(block) for block in blocks}
    return {scenario: gains for scenario, gains in by_scenario.items() if gains}


def gains_csv(splits: Iterable[tuple[Block, Gains]]) -> str:
    """Return one CSV line per gain; `splits` are pairs (a block of a split, the result of `scenario_gains`).

    `points`, `low`, `high` and `points_by_seed` (in the order of `seeds`) are percentage points; `interval` is what it
    is over, or "none". `p` is of this gain alone, `p_holm` corrected for the `family` comparisons with the same
    baseline in the same scenario; both are empty without an interval. `share` is a fraction, empty if it is None.
    `seeds` are those that both methods have.
    """
    sink = io.StringIO()
    writer = csv.DictWriter(sink, CSV_FIELDS, lineterminator="\n")
    writer.writeheader()
    for block, gains in splits:
        for scenario, by_baseline in gains.items():
            for baseline, by_method in by_baseline.items():
                for method, gain in by_method.items():
                    names = {name: getattr(block, name) for name in ("dataset", "release", "split")}
                    names |= {"scenario": scenario, "over": baseline, "method": method}
                    writer.writerow(names | _csv_record(gain))
    return sink.getvalue()


def _csv_record(gain: Gain) -> dict[str, str | int]:
    numbers = {
        "points": gain.points,
        "low": gain.interval and gain.interval.low,
        "high": gain.interval and gain.interval.high,
        "share": gain.share,
    }
    return {
        **{name: "" if number is None else f"{number:.4f}" for name, number in numbers.items()},
        **{name: "" if p is None else f"{p:.4g}" for name, p in (("p", gain.p), ("p_holm", gain.p_holm))},
        "interval": gain.interval.over if gain.interval else "none",
        "family": gain.family,
        "seeds": " ".join(map(str, gain.by_seed)),
        "points_by_seed": " ".join(f"{points:.4f}" for points in gain.by_seed.values()),
    }
