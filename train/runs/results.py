"""What an evaluation leaves behind: result rows and single predictions, as JSON lines. It predicts nothing.

`results.jsonl` of a run holds one row per (run, method, split, scenario); a later row of a key replaces the
earlier one. Rows carry integer counts, no percentages: a report recomputes every figure from them.
`predictions-<split>-<scenario>.jsonl` holds each question's prediction, for paired tests.
Source: evaluation arithmetic of the MUSIC-AVQA scripts (types and groups pool questions).
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.errors import UserError
from pipeline.files import replace_text
from pipeline.manifests.manifest import Question

FORMAT = 1
RESULTS_FILE = "results.jsonl"


class Count(BaseModel):
    """Right answers out of the questions asked (at least one)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    correct: int = Field(ge=0)
    questions: int = Field(ge=1)

    @property
    def accuracy(self) -> float:
        """Percent of the questions that were answered rightly, unrounded."""
        return 100 * self.correct / self.questions


class Accuracies(BaseModel):
    """The counts of one set of questions: all, by group (`Audio`) and by type (`Audio Counting`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    overall: Count
    groups: dict[str, Count]
    types: dict[str, Count]

    def to_document(self) -> dict[str, Any]:
        """Return the form of `mavqa-evaluate --json`: accuracies in percent beside their counts."""
        return {
            "overall": self.overall.accuracy,
            "questions": self.overall.questions,
            "groups": {name: _with_accuracy(count) for name, count in self.groups.items()},
            "types": {name: _with_accuracy(count) for name, count in self.types.items()},
        }


class Prediction(BaseModel):
    """One answered question about a video; `prediction` is an entry of the frozen list or "", `answer` the true one.

    `type` is the question's, "" where the dataset has none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    question_id: str
    video_id: str
    type: str = ""
    prediction: str
    answer: str
    correct: bool


class Feature(BaseModel):
    """Where one stored feature came from: the fingerprint of its numbers and the kind of weights used."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fingerprint: str
    weights: str


class Masking(BaseModel):
    """How it was drawn which questions lose a modality: `train.data.scenarios.Masks` without the questions."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rates: dict[str, float]
    unit: str
    seed: int


class ResultRow(BaseModel):
    """The outcome of one method on one scenario of one split.

    `questions_sha256`: which questions were asked (`hash_questions`); only rows that agree there compare.

    `kind`: a trained `model`, or a `floor` that sees no video. `training`: how it was trained, among it the missing
    rates. `features`: {stored feature name: where it came from}. `left_out`: questions of the split on videos that
    could not be extracted, which no scenario asks. `multiple_choice`: how many of those asked were answered among their
    choices. `masking`: the draw behind a scenario in which some questions lose a modality. `parameters`: how many
    numbers the method and its backbone learn. `sees`, `trains_on`: what the method saw of missing modalities in
    training (`train.interfaces.MissingModalityMethod`), and whether of "all" or only of "complete" videos. `recovery`:
    the error of what stood in for the modality that the scenario takes (`train.evaluation.recovery`), None where
    nothing did. `interval`: 95 %, of the accuracy of all questions in percent, by drawing the videos again; None where
    it was not computed.
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
        """What makes a row the same outcome, measured again."""
        return (self.run, self.method, self.split, self.scenario)


def tally(questions: Sequence[Question], predictions: Sequence[str]) -> Accuracies:
    """Count right predictions over `questions`, pooled per group (a question's modality) and per type.

    An answer outside the frozen list equals no prediction and so counts as wrong. Raises ValueError where the
    two sequences differ in length or are empty.
    """
    if not questions:
        raise ValueError("no question to count")
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
    """Return the SHA-256 of what is asked, the choices offered and the true answers, in any order."""
    lines = sorted(
        json.dumps([q.question_id, q.video_id, q.text, q.answer, *([] if q.choices is None else [q.choices])])
        for q in questions
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def append_results(path: Path, rows: Iterable[ResultRow]) -> None:
    """Append `rows` to a results file; the file is whole at every moment (staged, then renamed)."""
    existing = path.read_text(encoding="utf-8") if path.exists() else ""
    replace_text(path, existing + "".join(row.model_dump_json() + "\n" for row in rows))


def read_results(path: Path) -> list[ResultRow]:
    """Read a results file, keeping the last row of each key in the order of first appearance.

    Raises `UserError` naming file and line where it is missing, of another format or malformed.
    """
    if not path.exists():
        raise UserError(f"{path} is missing: evaluate the run first with 'mavqa-evaluate {path.parent}'")
    rows: dict[tuple[str, str, str, str], ResultRow] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        row = _parse(line, f"{path}:{number}")
        rows[row.key] = row
    return list(rows.values())


def predictions_path(run: Path, split: str, scenario: str) -> Path:
    """Return where the single predictions of one evaluation stand."""
    return run / f"predictions-{split}-{scenario}.jsonl"


def write_predictions(path: Path, predictions: Iterable[Prediction]) -> None:
    """Write single predictions, one line each, in the order of the questions."""
    replace_text(path, "".join(prediction.model_dump_json() + "\n" for prediction in predictions))


def read_predictions(path: Path) -> list[Prediction]:
    """Read what `write_predictions` wrote."""
    return [Prediction.model_validate_json(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _parse(line: str, where: str) -> ResultRow:
    try:
        record = json.loads(line)
        found = record.get("format") if isinstance(record, dict) else None
        if found != FORMAT:
            raise UserError(f"{where}: result format {found!r}, this program reads {FORMAT}: evaluate the run again")
        return ResultRow.model_validate(record)
    except (json.JSONDecodeError, ValidationError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"{where}: not a result row ({first}): remove the line or evaluate the run again") from None


def _count(hits: Sequence[bool]) -> Count:
    return Count(correct=sum(hits), questions=len(hits))


def _with_accuracy(count: Count) -> dict[str, float | int]:
    return {"accuracy": count.accuracy, "correct": count.correct, "questions": count.questions}
