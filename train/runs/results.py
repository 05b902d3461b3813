"""The results of an evaluation on disk: result rows and predictions, as JSON lines.

`results.jsonl` has one row per (run, method, split, scenario); a later row replaces an earlier one with the same key.
Rows contain integer counts, not percentages: a report computes every accuracy from them.
`predictions-<split>-<scenario>.jsonl` has the prediction of each question, for paired tests.
Source: the accuracies of the MUSIC-AVQA scripts (types and groups pool questions).
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.errors import UserError, describe_invalid, one_line
from pipeline.files import check_file_name, replace_text
from pipeline.manifests.manifest import Question, parse_json

FORMAT = 1
RESULTS_FILE = "results.jsonl"


class Count(BaseModel):
    """The number of correct answers and of questions (at least one)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    correct: int = Field(ge=0)
    questions: int = Field(ge=1)

    @property
    def accuracy(self) -> float:
        """The percentage of questions answered correctly, unrounded."""
        return 100 * self.correct / self.questions

    def to_document(self) -> dict[str, float | int]:
        """Return the count's entry in the document of `mavqa-evaluate --json`."""
        return {"accuracy": self.accuracy, "correct": self.correct, "questions": self.questions}


class Accuracies(BaseModel):
    """The counts of a set of questions: over all of them, per group (`Audio`) and per type (`Audio Counting`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    overall: Count
    groups: dict[str, Count]
    types: dict[str, Count]

    def to_document(self) -> dict[str, Any]:
        """Return the document of `mavqa-evaluate --json`: accuracies in percent with their counts."""
        return {
            "overall": self.overall.accuracy,
            "questions": self.overall.questions,
            "groups": {name: count.to_document() for name, count in self.groups.items()},
            "types": {name: count.to_document() for name, count in self.types.items()},
        }


class Prediction(BaseModel):
    """The prediction for one question about a video.

    `prediction`: an answer of the vocabulary, or "" if it contains none of the question's choices. `answer`: the true
    answer. `type`: the question type, "" if the dataset has none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    question_id: str
    video_id: str
    type: str = ""
    prediction: str
    answer: str
    correct: bool


class Feature(BaseModel):
    """The origin of a stored feature: its fingerprint, and the kind of weights it was extracted with."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fingerprint: str
    weights: str


class Masking(BaseModel):
    """How the questions that lose a modality were sampled: `train.data.scenarios.Masks` without the questions."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rates: dict[str, float]
    unit: str
    seed: int


class ResultRow(BaseModel):
    """The result of one method on one scenario of one split.

    `kind`: "model" (trained), or "floor" (uses no video). `training`: the training settings, including missing rates.
    `features`: {stored feature: its origin}. `questions_sha256`: hash of the evaluated questions (`hash_questions`);
    only rows with equal hashes are comparable. `left_out`: number of questions of the split whose video could not be
    extracted; no scenario includes them. `multiple_choice`: number of questions answered among their choices.
    `masking`: how the questions that lose a modality were sampled; None if the scenario treats all questions alike.
    `parameters`: number of parameters of the method and its backbone. `sees`, `trains_on`: the missing modalities and
    the videos that the method is trained on (`train.interfaces.MissingModalityMethod`). `recovery`: error of the
    imputed features (`train.evaluation.recovery`); None if none were imputed. `interval`: 95 % interval of the overall
    accuracy in percent, from a bootstrap over videos; None if it was not computed or the bootstrap cannot tell.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    kind: Literal["model", "floor"]
    run: str
    split: str
    scenario: str
    method: str
    backbone: str
    variant: str
    inputs: str
    seed: int
    dataset: str
    release: str
    training: dict[str, Any]
    features: dict[str, Feature]
    questions_sha256: str
    left_out: int = 0
    multiple_choice: int = 0
    masking: Masking | None = None
    parameters: int = 0
    sees: str = ""
    trains_on: str = ""
    recovery: float | None = None
    interval: tuple[float, float] | None = None
    accuracies: Accuracies

    @property
    def key(self) -> tuple[str, str, str, str]:
        """The key of the row: a later row with the same key replaces this one."""
        return (self.run, self.method, self.split, self.scenario)


def tally(questions: Sequence[Question], predictions: Sequence[str]) -> Accuracies:
    """Count the correct predictions over `questions`, per group (a question's modality) and per type.

    An answer outside the vocabulary equals no prediction and counts as wrong. Raises ValueError if the two sequences
    differ in length or are empty.
    """
    if not questions:
        raise ValueError("there are no questions to count")
    groups: dict[str, list[bool]] = {}
    types: dict[str, list[bool]] = {}
    hits = [question.answer == prediction for question, prediction in zip(questions, predictions, strict=True)]
    for question, hit in zip(questions, hits, strict=True):
        for table, name in ((groups, question.modality), (types, question.type)):
            if name:
                table.setdefault(name, []).append(hit)
    return Accuracies(
        overall=_count(hits),
        groups={name: _count(members) for name, members in sorted(groups.items())},
        types={name: _count(members) for name, members in sorted(types.items())},
    )


def hash_questions(questions: Iterable[Question]) -> str:
    """Return the SHA-256 of the questions, their choices and true answers; their order does not matter."""
    lines = sorted(
        json.dumps([q.question_id, q.video_id, q.text, q.answer, *([] if q.choices is None else [q.choices])])
        for q in questions
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def append_results(path: Path, rows: Iterable[ResultRow]) -> None:
    """Append `rows` to a results file, which is complete at every moment (staged, then renamed)."""
    existing = "".join(line + "\n" for line in _read_lines(path)) if path.exists() else ""
    replace_text(path, existing + "".join(row.model_dump_json() + "\n" for row in rows))


def read_results(path: str | Path) -> list[ResultRow]:
    """Return the last row of each key of a results file, or of a run's, in the order of first appearance.

    Raises `UserError` with file and line if it is missing, malformed or has another format.
    """
    path = Path(path)
    path = path / RESULTS_FILE if path.is_dir() else path
    if not path.exists():
        evaluation = f"evaluate the run first with 'mavqa-evaluate {path.parent}'"
        remedy = evaluation if path.name == RESULTS_FILE else "pass the folder of an evaluated run"
        raise UserError(f"{path} is missing: {remedy}")
    rows: dict[tuple[str, str, str, str], ResultRow] = {}
    for number, line in enumerate(_read_lines(path), start=1):
        row = _parse(line, f"{path}:{number}")
        rows[row.key] = row
    return list(rows.values())


def predictions_path(run: Path, split: str, scenario: str) -> Path:
    """Return the path of the predictions of one evaluation. Raises `UserError` if one of the names leads out of `run`.

    The names may be those in a results file of someone else.
    """
    for kind, name in (("split", split), ("scenario", scenario)):
        check_file_name(kind, name, f"evaluate the run again with 'mavqa-evaluate {run}'")
    return run / f"predictions-{split}-{scenario}.jsonl"


def write_predictions(path: Path, predictions: Iterable[Prediction]) -> None:
    """Write one line per prediction, in the order of the questions."""
    replace_text(path, "".join(prediction.model_dump_json() + "\n" for prediction in predictions))


def read_predictions(path: Path, questions: int | None = None) -> list[Prediction]:
    """Return the predictions written by `write_predictions`.

    Raises `UserError` with file and line if the file is missing or malformed, or if it does not have as many
    predictions as `questions`.
    """
    if not path.exists():
        raise UserError(f"{path} is missing: evaluate the run again with 'mavqa-evaluate {path.parent}'")
    predictions = []
    for number, line in enumerate(_read_lines(path), start=1):
        try:
            predictions.append(Prediction.model_validate_json(line))
        except ValidationError as error:
            why = describe_invalid(error)
            raise UserError(f"{path}:{number}: not a prediction ({why}): evaluate the run again") from None
    if questions is not None and len(predictions) != questions:
        raise UserError(
            f"{path} has {len(predictions)} predictions, but {RESULTS_FILE} counts {questions} questions: evaluate the "
            "run again"
        )
    return predictions


def _count(hits: Sequence[bool]) -> Count:
    return Count(correct=sum(hits), questions=len(hits))


def _read_lines(path: Path) -> list[str]:
    """Return the lines of a JSON-lines file; other line separators than the newline may occur in its texts."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is corrupt ({error}): remove it and evaluate the run again") from None
    return lines if lines[-1] else lines[:-1]


def _parse(line: str, place: str) -> ResultRow:
    try:
        record = parse_json(line)
        format_ = record.get("format") if isinstance(record, dict) else None
        if format_ != FORMAT:
            raise UserError(f"{place}: unsupported result format {format_!r}, not {FORMAT}: evaluate the run again")
        return ResultRow.model_validate(record)
    except ValueError as error:
        why = describe_invalid(error) if isinstance(error, ValidationError) else one_line(error)
        raise UserError(f"{place}: not a result row ({why}): remove the line or evaluate the run again") from None
