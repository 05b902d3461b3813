"""The questions that a method trains on."""

import numpy as np

from pipeline.errors import UserError
from train.data.dataset import QuestionDataset


def training_rows(dataset: QuestionDataset, is_masked: np.ndarray, trains_on: str, method: str) -> np.ndarray:
    """Return the rows of the questions that `method` trains on (`MissingModalityMethod.trains_on`).

    `is_masked` bool [question]: a mask hides a modality. Raises `UserError`, with the cause, if there are none.
    """
    is_extracted = dataset.naturally_complete | dataset.naturally_incomplete
    conditions = [("no video of the train split was extracted", is_extracted)]
    if trains_on != "all":
        conditions.append(("no video of the train split has both audio and video", dataset.naturally_complete))
        conditions.append(("every question loses a modality, lower --missing-rate", ~is_masked))
    if trains_on != "videos":
        no_answer = "no answer of the train split is in the vocabulary, build the manifest again"
        conditions.append((no_answer, dataset.answers.numpy() >= 0))
    is_used = np.ones(len(dataset), dtype=bool)
    for cause, is_met in conditions:
        is_used &= is_met
        if not is_used.any():
            raise UserError(f"method {method!r} has no questions to train on: {cause}")
    if trains_on != "videos":
        return np.flatnonzero(is_used)
    videos = one_per_video(dataset, is_used)
    if len(videos) < 2:
        raise UserError(
            "pre-training needs two training videos with audio and visual, the split has one: lower "
            "--missing-rate, or extract more videos"
        )
    return videos


def one_per_video(dataset: QuestionDataset, is_allowed: np.ndarray | bool = True) -> np.ndarray:
    """Return the row of the first allowed question (`is_allowed` [question]) of each naturally complete video."""
    rows = np.flatnonzero(dataset.naturally_complete & is_allowed)
    _, first = np.unique([dataset.questions[row].video_id for row in rows], return_index=True)
    return rows[np.sort(first)]
