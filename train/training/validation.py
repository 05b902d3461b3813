"""The scores on the val split by which an epoch is selected."""

import torch

from pipeline.errors import UserError
from train.data.dataset import QuestionDataset
from train.data.scenarios import NATURAL, hidden_in
from train.evaluation.predict import percent_correct, predict, questions_of
from train.interfaces import MissingModalityMethod, SupportsScoring
from train.runs.precision import gpu_products
from train.training.rows import one_per_video

BATCH_SIZE = 128


class Validation:
    """Accuracies on a val split in the selection scenarios of a method, or the scores that the method computes itself.

    On the questions with naturally complete videos; if there are none, on those with naturally incomplete ones.
    `dataset`: None if there is no val split, and then there are no scores. `seed`: of the negatives of such scores.
    Raises `UserError` if the split has no usable question.
    """

    def __init__(
        self, method: MissingModalityMethod, dataset: QuestionDataset | None, seed: int, device: torch.device
    ) -> None:
        self._dataset, self._seed, self._device = dataset, seed, device
        self._scenarios = () if dataset is None else _selection_scenarios(method, dataset)

    def score(self, method: MissingModalityMethod) -> dict[str, float]:
        """Return {scenario or name of a score: percent}; the epoch with the highest mean is selected."""
        if self._dataset is None:
            return {}
        if isinstance(method, SupportsScoring):
            order = torch.Generator().manual_seed(self._seed)
            batches = self._dataset.batches(BATCH_SIZE, order, rows=one_per_video(self._dataset))
            with gpu_products("float32"):
                return method.score(batch.to(self._device) for batch in batches)
        return {s: measure_accuracy(method, self._dataset, s, self._device) for s in self._scenarios}


def measure_accuracy(
    method: MissingModalityMethod, dataset: QuestionDataset, scenario: str, device: torch.device
) -> float:
    """Return the accuracy, in percent, over the questions of `scenario`. Raises ValueError if there are none."""
    rows = questions_of(dataset, scenario)
    if not len(rows):
        raise ValueError(f"the dataset has no questions in scenario {scenario!r}")
    masks = dict.fromkeys((question.question_id for question in dataset.questions), hidden_in(scenario))
    return percent_correct(dataset, rows, predict(method, dataset, rows, masks, BATCH_SIZE, device))


def _selection_scenarios(method: MissingModalityMethod, dataset: QuestionDataset) -> tuple[str, ...]:
    if isinstance(method, SupportsScoring):
        return ()
    if dataset.naturally_complete.any():
        return method.selection_scenarios
    if dataset.naturally_incomplete.any():
        return (NATURAL,)
    if not len(dataset):
        raise UserError(
            "the val split has no questions, so no epoch can be selected: add some, or remove the split from the "
            "manifest to keep the last epoch"
        )
    raise UserError("no video of the val split was extracted, so no epoch can be selected: extract its videos")
