"""Confusion matrices: which answers a method gives for which true answers, per question type."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipeline.manifests.templates import TYPES
from train.report.predictions import Folders, predictions_by_seed
from train.report.tables import Block
from train.runs.results import Prediction

MOST_ANSWERS = 8
OTHERS = "others"
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


@dataclass(frozen=True)
class Confusion:
    """The confusion matrix of one question type.

    `answers`: the labels of both axes, the most frequent true answers (words, then numbers in ascending order), then
    `OTHERS` for the rest. `questions` [true answer]: number of questions over all seeds. `shares` [true answer,
    predicted answer]: percent of the questions with that true answer, 0 without questions.
    """

    type: str
    answers: tuple[str, ...]
    questions: tuple[int, ...]
    shares: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class LineConfusions:
    """The confusion matrices of one line in one scenario, pooled over its seeds."""

    scenario: str
    label: str
    types: tuple[Confusion, ...]


def find_confusions(blocks: Iterable[Block], folders: Folders) -> list[LineConfusions]:
    """Return the confusion matrices of each method in each scenario with stored predictions."""
    found = []
    for block in blocks:
        for line in block.lines:
            if line.role == "method":
                seeds = predictions_by_seed(line.rows, folders).values()
                matrices = confusions_by_type(prediction for predictions in seeds for prediction in predictions)
                if matrices:
                    found.append(LineConfusions(block.scenario, line.label, matrices))
    return found


def confusions_by_type(predictions: Iterable[Prediction]) -> tuple[Confusion, ...]:
    """Return a confusion matrix per question type: MUSIC-AVQA's types in their order, then others by name.

    Predictions without a question type are ignored.
    """
    by_type: dict[str, list[Prediction]] = {}
    for prediction in predictions:
        if prediction.type:
            by_type.setdefault(prediction.type, []).append(prediction)
    order = {name: position for position, name in enumerate(TYPES)}
    names = sorted(by_type, key=lambda name: (order.get(name, len(order)), name))
    return tuple(_confusion(name, by_type[name]) for name in names)


def _confusion(question_type: str, predictions: Sequence[Prediction]) -> Confusion:
    true = Counter(prediction.answer for prediction in predictions)
    predicted = Counter(prediction.prediction for prediction in predictions)
    ranked = sorted({*true, *predicted}, key=lambda answer: (-true[answer], -predicted[answer], answer))
    kept = ranked if len(ranked) <= MOST_ANSWERS + 1 else ranked[:MOST_ANSWERS]
    kept.sort(key=lambda answer: NUMBERS.index(answer) if answer in NUMBERS else -1)
    axis = (*kept, OTHERS) if len(kept) < len(ranked) else tuple(kept)
    position = {answer: kept.index(answer) if answer in kept else len(kept) for answer in ranked}
    pairs = Counter((position[prediction.answer], position[prediction.prediction]) for prediction in predictions)
    questions = tuple(sum(pairs[row, column] for column in range(len(axis))) for row in range(len(axis)))
    shares = tuple(
        tuple(100 * pairs[row, column] / max(count, 1) for column in range(len(axis)))
        for row, count in enumerate(questions)
    )
    return Confusion(question_type, axis, questions, shares)
