"""Answers to many questions: of a table about files in a folder, or of a split about the videos of a store."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from torch import Tensor

from pipeline.errors import UserError
from pipeline.manifests.csv_table import Row, read_choices, read_table
from pipeline.manifests.manifest import Manifest, Question
from pipeline.manifests.media_files import MediaIndex
from train.asking.answerer import Answerer
from train.asking.questions import AskedQuestion
from train.data.batch import Batch
from train.data.feature_bank import FeatureBank
from train.data.scenarios import SCENARIOS
from train.evaluation.calibration import find_calibration
from train.evaluation.evaluate_run import OpenedRun, open_run
from train.evaluation.predict import (
    BATCH_SIZE,
    UNANSWERED,
    choose_answers,
    predict_each,
    probabilities,
    scenarios_of,
)

REQUIRED = ("video", "question")
OPTIONAL = ("choices", "question_id")
# Questions of a split that are answered before their rows are yielded.
BLOCK = 16 * BATCH_SIZE

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class PredictedRow:
    """One row of the table of answers; the fields are its columns.

    `probability`: of the answer, calibrated if `calibrated`. `missing`: the modalities that were not used, separated by
    `+`. `reason`: why there is no answer, which is "" then, as is the probability.
    """

    question_id: str
    video: str
    question: str
    answer: str = ""
    probability: float | str = ""
    calibrated: bool | str = ""
    missing: str = ""
    reason: str = ""


COLUMNS = tuple(field.name for field in fields(PredictedRow))


def read_questions(table: Path) -> dict[str, list[Row]]:
    """Return {video: its rows} of a CSV table with the columns `video` and `question`, in order of first appearance.

    A row without a `question_id` has its number, from 1. Raises `UserError` with the line if the table is invalid.
    """
    by_video: dict[str, list[Row]] = {}
    lines: dict[str, int] = {}
    for number, (line, row) in enumerate(read_table(table, REQUIRED, OPTIONAL), start=1):
        row["question_id"] = row.get("question_id") or str(number)
        first = lines.setdefault(row["question_id"], line)
        if first != line:
            raise UserError(f"{table}:{line}: question_id {row['question_id']!r} is already used in line {first}")
        by_video.setdefault(row["video"], []).append(row)
    return by_video


def predict_videos(
    answerer: Answerer,
    questions: dict[str, list[Row]],
    folder: Path,
    drop: Collection[str] = (),
    on_progress: OnProgress = lambda done, total: None,
) -> Iterator[PredictedRow]:
    """Yield the answer to each of {video: rows of `read_questions`}; `video` is a path in `folder`, or a name in it.

    Each file is decoded once. `on_progress` receives (videos done, videos in total). Raises `UserError` if the folder
    has no media files.
    """
    index = MediaIndex(folder)
    for done, (video, rows) in enumerate(questions.items()):
        on_progress(done, len(questions))
        yield from _predict_video(answerer, index, video, rows, drop)
    on_progress(len(questions), len(questions))


def _predict_video(
    answerer: Answerer, index: MediaIndex, video: str, rows: Sequence[Row], drop: Collection[str]
) -> Iterator[PredictedRow]:
    """Yield the rows about one video, those that cannot be read first."""
    asked: list[AskedQuestion] = []
    for row in rows:
        try:
            asked.append(answerer.read(row["question"], read_choices(row), row["question_id"]))
        except UserError as error:
            yield PredictedRow(row["question_id"], video, row["question"], reason=str(error))
    if not asked:
        return
    try:
        found = index.find(video)
        if found is None:
            near = index.describe_near([video])
            raise UserError(f"no video {video!r} in {str(index.folder)!r}" + (f": {near}" if near else ""))
        reply = answerer.answer(index.folder / found, asked, drop)
    except UserError as error:
        for one in asked:
            yield PredictedRow(one.question.question_id, video, one.question.text, reason=str(error))
        return
    for one, answered in zip(asked, reply.questions, strict=True):
        yield PredictedRow(
            question_id=one.question.question_id,
            video=video,
            question=answered.question,
            answer=answered.best.answer,
            probability=answered.best.probability,
            calibrated=reply.temperature is not None,
            missing="+".join(reply.missing),
        )


def predict_split(
    run: Path,
    manifest: Manifest,
    bank: FeatureBank,
    split: str,
    device: str = "cpu",
    drop: Sequence[str] = (),
    on_progress: OnProgress = lambda done, total: None,
) -> Iterator[PredictedRow]:
    """Yield the answer to each question of `split`, from the features of a store: the predictions of an evaluation.

    A question on a video whose extraction failed has none. `on_progress` receives (questions done, in total). Raises
    `UserError` for what `train.evaluation.evaluate_run` refuses.
    """
    opened = open_run(run, manifest, bank, split, device)
    found = find_calibration(run)
    temperatures = None if found is None else found.temperatures
    dataset = opened.dataset
    is_extracted = dataset.naturally_complete | dataset.naturally_incomplete
    total = len(dataset)
    for first in range(0, total, BLOCK):
        on_progress(first, total)
        rows = np.arange(first, min(first + BLOCK, total))
        answered = iter(_predict_rows(opened, rows[is_extracted[rows]], device, drop, temperatures))
        for row in rows:
            question = dataset.questions[row]
            yield next(answered) if is_extracted[row] else _without(question, "its video could not be extracted")
    on_progress(total, total)


def _predict_rows(
    opened: OpenedRun, rows: np.ndarray, device: str, drop: Sequence[str], temperatures: dict[str, float] | None
) -> list[PredictedRow]:
    """Return the answers to the questions `rows` of the opened split."""
    questions = [opened.dataset.questions[row] for row in rows]
    hidden = dict.fromkeys((question.question_id for question in questions), tuple(drop))

    def read(batch: Batch, logits: Tensor) -> list[tuple[int, float, str]]:
        scenarios = scenarios_of(batch)
        at = logits.new_tensor([(temperatures or {}).get(name, 1.0) for name in scenarios])
        chances = probabilities(logits, batch.choices, at).amax(1).tolist()
        return list(zip(choose_answers(logits, batch.choices), chances, scenarios, strict=True))

    found = predict_each(opened.method, opened.dataset, rows, hidden, BATCH_SIZE, device, read)
    return [
        _without(question, "the run knows none of its choices")
        if index == UNANSWERED
        else PredictedRow(
            question_id=question.question_id,
            video=question.video_id,
            question=question.text,
            answer=opened.vocabulary.answers[index],
            probability=chance,
            calibrated=temperatures is not None,
            missing="+".join(SCENARIOS[scenario]),
        )
        for question, (index, chance, scenario) in zip(questions, found, strict=True)
    ]


def _without(question: Question, reason: str) -> PredictedRow:
    return PredictedRow(question.question_id, question.video_id, question.text, reason=reason)
