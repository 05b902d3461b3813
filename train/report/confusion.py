"""Which answers a model gives in the place of which, by question type. It draws nothing."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipeline.manifests.templates import TYPES
from train.report.answers import Folders, predictions_by_seed
from train.report.tables import Block, Line
from train.runs.results import Prediction

MOST_ANSWERS = 8
OTHERS = "others"
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


@dataclass(frozen=True)
class Confusion:
    """One question type: `shares` [true answer, given answer] in percent of the questions with that true answer.

    `answers` names both axes: the most frequent true answers, words first and then numbers as they are counted; what
    is rarer is pooled as `OTHERS`.
    `questions` [true answer] counts the questions, over all seeds; a row without any has shares of 0.
    """

    type: str
    answers: tuple[str, ...]
    questions: tuple[int, ...]
    shares: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Answered:
    """The confusions of one line in one scenario, its seeds pooled."""

    scenario: str
    label: str
    types: tuple[Confusion, ...]


def find_confusions(blocks: Iterable[Block], folders: Folders) -> list[Answered]:
    """Return the confusions of each method in each scenario of which single predictions are there."""
    methods = [(block, line) for block in blocks for line in block.lines if line.role == "method"]
    found = (_answered(block, line, folders) for block, line in methods)
    return [answered for answered in found if answered.types]


def confuse(told: Iterable[Prediction]) -> tuple[Confusion, ...]:
    """Return a confusion per question type, MUSIC-AVQA's in its own order, others by name; typeless answers in none."""
    by_type: dict[str, list[Prediction]] = {}
    for prediction in told:
        if prediction.type:
            by_type.setdefault(prediction.type, []).append(prediction)
    order = {name: place for place, name in enumerate(TYPES)}
    names = sorted(by_type, key=lambda name: (order.get(name, len(order)), name))
    return tuple(_confusion(name, by_type[name]) for name in names)


def _answered(block: Block, line: Line, folders: Folders) -> Answered:
    seeds = predictions_by_seed(line, block, folders).values()
    return Answered(block.scenario, line.label, confuse(prediction for told in seeds for prediction in told))


def _confusion(name: str, told: Sequence[Prediction]) -> Confusion:
    true = Counter(prediction.answer for prediction in told)
    given = Counter(prediction.prediction for prediction in told)
    ranked = sorted({*true, *given}, key=lambda answer: (-true[answer], -given[answer], answer))
    kept = ranked if len(ranked) <= MOST_ANSWERS + 1 else ranked[:MOST_ANSWERS]
    kept.sort(key=lambda answer: NUMBERS.index(answer) if answer in NUMBERS else -1)
    axis = (*kept, OTHERS) if len(kept) < len(ranked) else tuple(kept)
    place = {answer: kept.index(answer) if answer in kept else len(kept) for answer in ranked}
    pairs = Counter((place[prediction.answer], place[prediction.prediction]) for prediction in told)
    questions = tuple(sum(pairs[row, column] for column in range(len(axis))) for row in range(len(axis)))
    shares = tuple(
        tuple(100 * pairs[row, column] / max(count, 1) for column in range(len(axis)))
        for row, count in enumerate(questions)
    )
    return Confusion(name, axis, questions, shares)
