"""Which questions each result row answered correctly, from the stored predictions.

The rows of a missing-rate curve have no predictions of their own: theirs are those of the scenarios that they combine
(`train.evaluation.rate_curves`).
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.errors import UserError
from train.data.scenarios import SAMPLED_MISSING, SCENARIO_OF, sample_masks
from train.report.predictions import Folders, stored_predictions
from train.runs.results import Masking, ResultRow


@dataclass(frozen=True)
class AnsweredQuestion:
    """What identifies a question in stored predictions."""

    question_id: str
    video_id: str
    type: str


class Questions:
    """The questions of rows, sorted by their ids; `videos`: int [question], a number per video."""

    def __init__(self, questions: tuple[AnsweredQuestion, ...]) -> None:
        self.questions = questions
        self.videos = np.unique([question.video_id for question in questions], return_inverse=True)[1]
        self._types = np.array([question.type for question in questions])

    def are_of(self, types: Collection[str]) -> np.ndarray:
        """Return bool [question]: whether the question is of one of `types`; True for all without types."""
        return np.isin(self._types, list(types)) if types else np.ones(len(self.questions), dtype=bool)


@dataclass(frozen=True, eq=False)
class Hits:
    """The correct answers of one row: `correct` bool [question]. Rows on the same questions share `questions`."""

    questions: Questions
    correct: np.ndarray


def read_hits(rows: Iterable[ResultRow], folders: Folders) -> dict[str, Hits]:
    """Return {key of a row: its hits} of the rows with stored predictions, their own or those that they combine.

    Raises `UserError` if predictions are malformed or do not have the counts of their row.
    """
    rows = [row for row in rows if row.kind == "model"]
    shared: dict[tuple[AnsweredQuestion, ...], Questions] = {}
    found: dict[str, Hits] = {}
    for row in rows:
        predictions = stored_predictions(row, folders)
        if predictions is not None:
            questions = tuple(AnsweredQuestion(p.question_id, p.video_id, p.type) for p in predictions)
            if questions not in shared:
                shared[questions] = Questions(questions)
            found[row.key] = Hits(shared[questions], np.array([p.correct for p in predictions]))
    return found | _combine(rows, found)


def check_same_questions(of_runs: Sequence[Hits]) -> None:
    """Raise `UserError` unless all hits are of the same questions."""
    if any(hits.questions is not of_runs[0].questions for hits in of_runs):
        raise UserError("the stored predictions of two runs are of different questions: evaluate the runs again")


def _combine(rows: Sequence[ResultRow], found: Mapping[str, Hits]) -> dict[str, Hits]:
    """Return {key: hits} of the rows of missing-rate curves, from those `found` of the scenarios that they combine."""
    scenarios = {_place(row, row.scenario): found[row.key] for row in rows if row.key in found and not row.masking}
    states: dict[tuple[int, str], np.ndarray | None] = {}
    combined: dict[str, Hits] = {}
    for row in rows:
        of_states = [scenarios.get(_place(row, SCENARIO_OF[hidden])) for hidden in SAMPLED_MISSING]
        parts = [hits for hits in of_states if hits is not None]
        if row.masking is None or row.key in found or len(parts) < len(of_states):
            continue
        check_same_questions(parts)
        questions = parts[0].questions
        key = (id(questions), row.masking.sha256)
        if key not in states:
            states[key] = _find_states(questions.questions, row.masking)
        state = states[key]
        if state is not None:
            correct = np.choose(state, [hits.correct for hits in parts])
            _check_count(row, correct)
            combined[row.key] = Hits(questions, correct)
    return combined


def _place(row: ResultRow, scenario: str) -> tuple[str, str]:
    return row.subject.model_dump_json(), scenario


def _find_states(questions: Sequence[AnsweredQuestion], masking: Masking) -> np.ndarray | None:
    """Return int [question], the position in `SAMPLED_MISSING` of what is hidden; None if it was not sampled."""
    masks = sample_masks(questions, masking.rates, masking.seed, masking.unit)
    if masks.sha256 != masking.sha256:
        return None
    return np.array([SAMPLED_MISSING.index(masks.absent.get(question.question_id, ())) for question in questions])


def _check_count(row: ResultRow, correct: np.ndarray) -> None:
    count = row.accuracies.overall
    if (int(correct.sum()), len(correct)) != (count.correct, count.questions):
        raise UserError(
            f"run {row.run} has {count.correct} of {count.questions} correct in {row.scenario}, its predictions "
            f"{int(correct.sum())} of {len(correct)}: evaluate it again with --curves"
        )
