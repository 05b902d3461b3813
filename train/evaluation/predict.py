"""What a trained method answers when a modality is missing: predictions and their counts.

It trains nothing. A scenario hides modalities from the questions on complete videos; questions on videos that
were recorded without sound or picture are a scenario of their own, `natural`. Videos that could not be extracted are
in neither: their questions are left out, and counted.
Source: the ECCV 2024 missing-modality paper's test scenarios (nothing of the missing modality is read).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.manifests.manifest import Question
from train.data.dataset import QuestionDataset
from train.data.scenarios import ALL_SCENARIOS, NATURAL, hidden_in
from train.interfaces import MissingModalityMethod
from train.runs.results import Accuracies, Prediction, tally

BATCH_SIZE = 64
UNANSWERED = -1


@dataclass(frozen=True)
class Evaluation:
    """The answers of one method in one scenario: `predictions` stand in the order of `questions`.

    A prediction is "" where the frozen list holds none of a question's choices.
    """

    scenario: str
    questions: tuple[Question, ...]
    predictions: tuple[str, ...]

    @property
    def accuracies(self) -> Accuracies:
        """The counts of right answers; an answer outside the frozen list is never right."""
        return tally(self.questions, self.predictions)

    def records(self) -> list[Prediction]:
        """Return one record per question, for paired tests."""
        return [
            Prediction(
                question_id=q.question_id,
                video_id=q.video_id,
                type=q.type,
                prediction=given,
                answer=q.answer,
                correct=given == q.answer,
            )
            for q, given in zip(self.questions, self.predictions, strict=True)
        ]


def questions_of(dataset: QuestionDataset, scenario: str) -> np.ndarray:
    """Return the rows of the questions asked in `scenario`: naturally incomplete in `natural`, else complete."""
    return np.flatnonzero(dataset.naturally_incomplete if scenario == NATURAL else dataset.naturally_complete)


def evaluate(
    method: MissingModalityMethod,
    dataset: QuestionDataset,
    scenario: str,
    answers: Sequence[str],
    batch_size: int = BATCH_SIZE,
    device: torch.device | str = "cpu",
    masks: Mapping[str, Sequence[str]] | None = None,
) -> Evaluation | None:
    """Answer the questions of one scenario, or return None where the split has none of them.

    `answers`: the frozen list that logits index. `masks` {question id: hidden modalities} replaces what the
    scenario hides; then `scenario` is only its name. The result does not depend on `batch_size`.
    Raises `UserError` for an unknown scenario and FloatingPointError for logits that are not finite.
    """
    rows = questions_of(dataset, scenario)
    if not len(rows):
        return None
    questions = tuple(dataset.questions[row] for row in rows)
    if masks is None:
        masks = dict.fromkeys((q.question_id for q in questions), hidden_in(scenario))
    indices = predict(method, dataset, rows, masks, batch_size, device)
    return Evaluation(scenario, questions, tuple("" if index == UNANSWERED else answers[index] for index in indices))


def evaluate_scenarios(
    method: MissingModalityMethod,
    dataset: QuestionDataset,
    answers: Sequence[str],
    scenarios: Sequence[str] = ALL_SCENARIOS,
    batch_size: int = BATCH_SIZE,
    device: torch.device | str = "cpu",
) -> list[Evaluation]:
    """Evaluate several scenarios, leaving out those that have no question."""
    found = (evaluate(method, dataset, scenario, answers, batch_size, device) for scenario in scenarios)
    return [evaluation for evaluation in found if evaluation is not None]


def predict(
    method: MissingModalityMethod,
    dataset: QuestionDataset,
    rows: np.ndarray,
    masks: Mapping[str, Sequence[str]],
    batch_size: int,
    device: torch.device | str,
) -> list[int]:
    """Return the index of each row's answer: the highest logit among its question's choices, the first of equal ones.

    It is `UNANSWERED` where the frozen list holds none of the choices; without choices every answer may be given.
    The method is put into evaluation mode and back. Raises FloatingPointError for logits that are not finite.
    """
    module: Any = method
    was_training = module.training
    module.eval()
    indices: list[int] = []
    try:
        with torch.inference_mode():
            for batch in dataset.batches(batch_size, masks=masks, rows=rows):
                logits = batch.to(device).predict_by_presence(method.predict)
                if not bool(torch.isfinite(logits).all()):
                    raise FloatingPointError(f"logits near question {batch.question_id[0]} are not finite")
                indices += choose_answers(logits, batch.choices)
    finally:
        module.train(was_training)
    return indices


def percent_correct(dataset: QuestionDataset, rows: np.ndarray, given: Sequence[int]) -> float:
    """Return the percentage of `rows` whose answer index is `given`; one outside the frozen list is never right."""
    true = dataset.answers.numpy()[rows]
    return 100 * float(((np.array(given, dtype=np.int64) == true) & (true >= 0)).mean())


def choose_answers(logits: Tensor, choices: Tensor | None) -> list[int]:
    """Return the index of the highest of `logits` [row, answer] among `choices` [row, answer], the first of equal ones.

    It is `UNANSWERED` where a row has no choice.
    """
    if choices is None:
        return logits.argmax(1).tolist()
    offered = choices.to(logits.device)
    chosen = logits.masked_fill(~offered, -torch.inf).argmax(1)
    return torch.where(offered.any(1), chosen, UNANSWERED).tolist()
