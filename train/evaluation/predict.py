"""The predictions of a trained method in each scenario.

A scenario removes modalities from questions on complete videos. Questions on videos recorded without audio or without
video form the scenario `natural`. Questions on videos that could not be extracted are in no scenario; they are counted.
Source: the test scenarios of the ECCV 2024 missing-modality paper (nothing of the missing modality is read).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import UserError
from pipeline.manifests.manifest import Question
from pipeline.store.schema import MODALITIES
from train import processes
from train.data.batch import Batch
from train.data.dataset import QuestionDataset
from train.data.scenarios import NATURAL, SCENARIO_OF, hidden_in
from train.interfaces import MissingModalityMethod
from train.runs.precision import gpu_products
from train.runs.results import Accuracies, Prediction, tally

BATCH_SIZE = 64
UNANSWERED = -1

Value = TypeVar("Value")


@dataclass(frozen=True)
class EvaluationProgress:
    """How far an evaluation is: `done` of `total` answers, one per question and scenario."""

    done: int
    total: int


@dataclass(frozen=True)
class Evaluation:
    """The answers of one method in one scenario; `predictions` are in the order of `questions`.

    A prediction is "" if the vocabulary contains none of the question's choices. `confidences`: their probabilities,
    0 for "". `calibrated`: the same at the temperatures of a calibration, if there is one.
    """

    scenario: str
    questions: tuple[Question, ...]
    predictions: tuple[str, ...]
    confidences: tuple[float, ...]
    calibrated: tuple[float, ...] | None = None

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
    temperatures: Mapping[str, float] | None = None,
) -> Evaluation | None:
    """Answer the questions of one scenario; None if the split has none of them.

    `answers`: the vocabulary that logits index. `masks`: {question id: hidden modalities}, used instead of the
    scenario's, whose name is then arbitrary. `on_batch` is called with the number of questions of each batch. The
    result does not depend on `batch_size`. `temperatures`: {scenario: temperature}, of a calibration; a question has
    that of its missing modalities.
    Raises `UserError` if the scenario is unknown or logits are not finite.
    """
    rows = questions_of(dataset, scenario)
    if not len(rows):
        return None
    questions = tuple(dataset.questions[row] for row in rows)
    if masks is None:
        masks = dict.fromkeys((q.question_id for q in questions), hidden_in(scenario))

    def read(batch: Batch, logits: Tensor) -> list[tuple[int, float, float]]:
        plain = probabilities(logits, batch.choices).amax(1).tolist()
        calibrated = plain
        if temperatures is not None:
            at = logits.new_tensor([temperatures.get(name, 1.0) for name in scenarios_of(batch)])
            calibrated = probabilities(logits, batch.choices, at).amax(1).tolist()
        return list(zip(choose_answers(logits, batch.choices), plain, calibrated, strict=True))

    indices, plain, calibrated = zip(
        *predict_each(method, dataset, rows, masks, batch_size, device, read, on_batch), strict=True
    )
    return Evaluation(
        scenario,
        questions,
        tuple("" if index == UNANSWERED else answers[index] for index in indices),
        plain,
        None if temperatures is None else calibrated,
    )


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
    return predict_each(
        method,
        dataset,
        rows,
        masks,
        batch_size,
        device,
        lambda batch, logits: choose_answers(logits, batch.choices),
        on_batch,
    )


def predict_each(
    method: MissingModalityMethod,
    dataset: QuestionDataset,
    rows: np.ndarray,
    masks: Mapping[str, Sequence[str]],
    batch_size: int,
    device: torch.device | str,
    read: Callable[[Batch, Tensor], list[Value]],
    on_batch: Callable[[int], None] | None = None,
) -> list[Value]:
    """Return what `read` makes of each row, from its batch and the logits [batch, answer]: one value per row.

    All else is as in `predict`.
    """
    module: Any = method
    was_training = module.training
    module.eval()
    values: list[Value] = []
    try:
        with torch.inference_mode(), gpu_products("float32"):
            for batch in dataset.batches(batch_size, masks=masks, rows=rows[processes.rank() :: processes.count()]):
                logits = batch.to(device).predict_by_presence(method.predict)
                if not bool(torch.isfinite(logits).all()):
                    raise UserError(
                        f"the model's logits near question {batch.question_id[0]!r} are not finite: it diverged, train "
                        "it with a lower learning rate"
                    )
                values += read(batch, logits)
                if on_batch is not None:
                    on_batch(len(logits) * processes.count())
    finally:
        module.train(was_training)
    return processes.interleave(values)


def probabilities(logits: Tensor, choices: Tensor | None, temperature: Tensor | float = 1.0) -> Tensor:
    """Return softmax(logits / temperature), [row, answer], over `choices` (bool [row, answer]; None: all answers).

    `temperature`: one number, or [row]. A row whose choices are all unknown is 0.
    """
    divisor = temperature[:, None] if isinstance(temperature, Tensor) else temperature
    scaled = logits / divisor
    if choices is None:
        return scaled.softmax(1)
    allowed = choices.to(logits.device)
    return scaled.masked_fill(~allowed, -torch.inf).softmax(1).nan_to_num(0.0)


def scenarios_of(batch: Batch) -> list[str]:
    """Return, for each row, the scenario of its missing modalities, whatever the reason why they are missing."""
    is_missing = [(~batch.mask(modality).any(1)).tolist() for modality in MODALITIES]
    hidden = [
        tuple(m for m, missing in zip(MODALITIES, row, strict=True) if missing) for row in zip(*is_missing, strict=True)
    ]
    return [SCENARIO_OF[modalities] for modalities in hidden]


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
