"""The predictions of a trained method in each scenario.

A scenario removes modalities from questions on complete videos. Questions on videos recorded without audio or without
video form the scenario `natural`. Questions on videos that could not be extracted are in no scenario; they are counted.
Source: the test scenarios of the ECCV 2024 missing-modality paper (nothing of the missing modality is read).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import UserError
from pipeline.manifests.manifest import Question
from train import processes
from train.data.dataset import QuestionDataset
from train.data.scenarios import NATURAL, hidden_in
from train.interfaces import MissingModalityMethod
from train.runs.precision import gpu_products
from train.runs.results import Accuracies, Prediction, tally

BATCH_SIZE = 64
UNANSWERED = -1


@dataclass(frozen=True)
class EvaluationProgress:
    """How far an evaluation is: `done` of `total` answers, one per question and scenario."""

    done: int
    total: int


@dataclass(frozen=True)
class Evaluation:
    """The answers of one method in one scenario; `predictions` are in the order of `questions`.

    A prediction is "" if the vocabulary contains none of the question's choices.
    """

    scenario: str
    questions: tuple[Question, ...]
    predictions: tuple[str, ...]

    @property
    def accuracies(self) -> Accuracies:
        """The counts of correct answers; a true answer outside the vocabulary is never predicted."""
        return tally(self.questions, self.predictions)

    def records(self) -> list[Prediction]:
        """Return one prediction per question, for paired tests."""
        return [
            Prediction(
                question_id=q.question_id,
                video_id=q.video_id,
                type=q.type,
                prediction=prediction,
                answer=q.answer,
                correct=prediction == q.answer,
            )
            for q, prediction in zip(self.questions, self.predictions, strict=True)
        ]


def questions_of(dataset: QuestionDataset, scenario: str) -> np.ndarray:
    """Return the rows of the scenario's questions: on naturally incomplete videos for `natural`, else complete ones."""
    return np.flatnonzero(dataset.naturally_incomplete if scenario == NATURAL else dataset.naturally_complete)


def evaluate(
    method: MissingModalityMethod,
    dataset: QuestionDataset,
    scenario: str,
    answers: Sequence[str],
    batch_size: int = BATCH_SIZE,
    device: torch.device | str = "cpu",
    masks: Mapping[str, Sequence[str]] | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> Evaluation | None:
    """Answer the questions of one scenario; None if the split has none of them.

    `answers`: the vocabulary that logits index. `masks`: {question id: hidden modalities}, used instead of the
    scenario's, whose name is then arbitrary. `on_batch` is called with the number of questions of each batch. The
    result does not depend on `batch_size`.
    Raises `UserError` if the scenario is unknown or logits are not finite.
    """
    rows = questions_of(dataset, scenario)
    if not len(rows):
        return None
    questions = tuple(dataset.questions[row] for row in rows)
    if masks is None:
        masks = dict.fromkeys((q.question_id for q in questions), hidden_in(scenario))
    indices = predict(method, dataset, rows, masks, batch_size, device, on_batch)
    return Evaluation(scenario, questions, tuple("" if index == UNANSWERED else answers[index] for index in indices))


def predict(
    method: MissingModalityMethod,
    dataset: QuestionDataset,
    rows: np.ndarray,
    masks: Mapping[str, Sequence[str]],
    batch_size: int,
    device: torch.device | str,
    on_batch: Callable[[int], None] | None = None,
) -> list[int]:
    """Return the answer index of each row: the highest logit among the question's choices, the first one of equals.

    It is `UNANSWERED` if the vocabulary contains none of the choices; a question without choices may have any answer.
    Of several processes each answers a part of the questions, and all return all answers.
    The method is evaluated in float32 and in evaluation mode, and returned to its previous mode. Raises `UserError` if
    logits are not finite.
    """
    module: Any = method
    was_training = module.training
    module.eval()
    indices: list[int] = []
    try:
        with torch.inference_mode(), gpu_products("float32"):
            for batch in dataset.batches(batch_size, masks=masks, rows=rows[processes.rank() :: processes.count()]):
                logits = batch.to(device).predict_by_presence(method.predict)
                if not bool(torch.isfinite(logits).all()):
                    raise UserError(
                        f"the model's logits near question {batch.question_id[0]!r} are not finite: it diverged, train "
                        "it with a lower learning rate"
                    )
                indices += choose_answers(logits, batch.choices)
                if on_batch is not None:
                    on_batch(len(logits) * processes.count())
    finally:
        module.train(was_training)
    return processes.interleave(indices)


def percent_correct(dataset: QuestionDataset, rows: np.ndarray, predictions: Sequence[int]) -> float:
    """Return the percentage of `rows` with correct `predictions` (answer indices).

    A row whose true answer is outside the vocabulary is never correct.
    """
    true = dataset.answers.numpy()[rows]
    return 100 * float(((np.array(predictions, dtype=np.int64) == true) & (true >= 0)).mean())


def choose_answers(logits: Tensor, choices: Tensor | None) -> list[int]:
    """Return the index of the highest of `logits` [row, answer] among `choices` (bool [row, answer]; None: all).

    Of equal logits the first is chosen. The index of a row without choices is `UNANSWERED`.
    """
    if choices is None:
        return logits.argmax(1).tolist()
    allowed = choices.to(logits.device)
    chosen = logits.masked_fill(~allowed, -torch.inf).argmax(1)
    return torch.where(allowed.any(1), chosen, UNANSWERED).tolist()
