"""The results of an evaluation on disk: result rows and predictions, as JSON lines.

`results.jsonl` has one row per method, scenario and `Subject`: what was evaluated on what, by content. A later row with
the same key replaces an earlier one, whatever the folder's name. Rows contain integer counts, not percentages: a report
computes every accuracy from them. `predictions-<split>-<scenario>-<key>.jsonl` has the prediction of each question, for
paired tests.
Source: the accuracies of the MUSIC-AVQA scripts (types and groups pool questions).
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.errors import UserError, describe_invalid, one_line
from pipeline.files import check_file_name, replace_text
from pipeline.manifests.manifest import Question, parse_json
from train.data.scenarios import Unit
from train.runs.identity import CHECKPOINT, is_current, is_run_folder

FORMAT = 2
KEY_LENGTH = 12
RESULTS_FILE = "results.jsonl"
# Values of `ResultRow.sees` in earlier rows.
_RECORD_FIELDS = {
    *("run", "kind", "backbone", "method", "variant", "inputs", "sees", "seed", "dataset", "release", "scenario"),
}
_FORMER_EXPOSURES = {"thirds": "sampled", "replaced": "all"}


class Count(BaseModel):
    """The number of correct answers and of questions (at least one)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    correct: int = Field(ge=0)
    questions: int = Field(ge=1)

    @model_validator(mode="after")
    def _check_correct(self) -> "Count":
        if self.correct > self.questions:
            raise ValueError(f"{self.correct} of {self.questions} questions cannot be correct")
        return self

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
    """A stored feature: its fingerprint, the kind of weights it was extracted with, a hash of its rows.

    `sha256`: over the rows of the evaluated videos, or questions (`pipeline.store.reader.FeatureStore.digest_of`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    fingerprint: str
    weights: str
    sha256: str


class Reliability(BaseModel):
    """How far probabilities are from the accuracy: expected calibration errors, in percentage points.

    `error`: of the model's own probabilities; `calibrated_error`: at the temperatures of the run's calibration, None
    without one (`train.evaluation.calibration`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    error: float
    calibrated_error: float | None = None


class Masking(BaseModel):
    """How the questions that lose a modality were sampled: `train.data.scenarios.Masks`, a hash for its questions."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rates: dict[str, float]
    unit: Unit
    seed: int
    sha256: str


class Subject(BaseModel):
    """What was evaluated on what, by content: the same in a renamed or moved folder.

    `run_id`, `checkpoint_sha256`: of the run (`train.runs.identity`). `questions_sha256`: of the split's questions, and
    which of them are in which scenarios (`hash_questions`); only rows with equal hashes are comparable. `seconds`: the
    time steps per video of the store. `features`: {stored feature: its origin}.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    run_id: str
    checkpoint_sha256: str
    split: str
    questions_sha256: str
    seconds: int
    features: dict[str, Feature]


class ResultRow(BaseModel):
    """The result of one method on one scenario of one split.

    `kind`: "model" (trained), or "floor" (uses no video). `run`: the name of the folder. `training`: the training
    settings, including missing rates. `trained_on_sha256`: hash of what the model was trained on (questions and stored
    rows of train and val), or of the training questions of the floor; "" if that is not known. `seen`: what training
    used these questions for: "training", "selection" (of the epoch), or "". `left_out`: number of questions of the
    split whose video could not be extracted; no scenario includes them. `multiple_choice`: number of questions answered
    among their choices. `unknown_answers`: number of questions whose true answer is outside the model's vocabulary, so
    that they count as wrong.
    `masking`: how the questions that lose a modality were sampled; None if the scenario treats all questions alike.
    `parameters`: number of parameters of the method and its backbone. `sees`, `trains_on`: the missing modalities and
    the videos that the method is trained on (`train.interfaces.MissingModalityMethod`). `has_variants`: whether the
    method has variants. `diffusion_steps`: number of steps that the method's reverse chain runs; None
    without one. `options`: of the method, those that are not its preset's. `recovery`: error of the
    imputed features (`train.evaluation.recovery`); None if none were imputed. `interval`: 95 % interval of the overall
    accuracy in percent over videos, for this trained model; None if it was not or cannot be computed. Rows of
    earlier versions have one from a bootstrap. `reliability`: of the probabilities; None in rows of earlier versions
    and of floors.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[2] = 2
    kind: Literal["model", "floor"]
    run: str
    subject: Subject
    scenario: str
    method: str
    backbone: str
    variant: str
    inputs: str
    seed: int
    dataset: str
    release: str
    training: dict[str, Any]
    trained_on_sha256: str = ""
    seen: Literal["", "selection", "training"] = ""
    left_out: int = 0
    multiple_choice: int = 0
    unknown_answers: int = 0
    masking: Masking | None = None
    parameters: int = 0
    sees: Annotated[str, AfterValidator(lambda sees: _FORMER_EXPOSURES.get(sees, sees))] = ""
    trains_on: str = ""
    has_variants: bool = False
    diffusion_steps: int | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    recovery: float | None = None
    interval: tuple[float, float] | None = None
    reliability: Reliability | None = None
    accuracies: Accuracies

    @property
    def split(self) -> str:
        """The evaluated split."""
        return self.subject.split

    @property
    def key(self) -> str:
        """The key of the row, 12 hex digits: a later row with the same key replaces this one."""
        masking = self.masking and self.masking.model_dump()
        trained_on = self.trained_on_sha256 if self.kind == "floor" else ""
        parts = [self.subject.model_dump(), self.kind, self.method, self.scenario, masking, trained_on]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:KEY_LENGTH]


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


def hash_questions(questions: Sequence[Question], groups: Sequence[str] | None = None) -> str:
    """Return the SHA-256 of the questions, their choices and true answers; their order does not matter.

    `groups`: a further text per question, such as the scenarios that it is in.
    """
    lines = sorted(
        json.dumps([q.question_id, q.video_id, q.text, q.answer, *([] if q.choices is None else [q.choices])]) + group
        for q, group in zip(questions, groups or [""] * len(questions), strict=True)
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def save_results(folder: Path, rows: Sequence[ResultRow]) -> None:
    """Add `rows`, all of one run, to the results file of `folder`, which is complete at every moment.

    What they replace is removed with its predictions: rows of the same subject and scenario, rows of other checkpoints
    of the run, and in a run folder rows of other runs.
    """
    path, run_id = folder / RESULTS_FILE, rows[0].subject.run_id
    is_run, checkpoint = is_run_folder(folder), rows[0].subject.checkpoint_sha256
    evaluated = [(row.subject, row.scenario, row.masking) for row in rows]
    kept: list[ResultRow] = []
    replaced: list[ResultRow] = []
    for row in read_rows(path) if path.exists() else ():
        is_other_run = row.subject.run_id != run_id
        is_obsolete = is_run if is_other_run else row.subject.checkpoint_sha256 != checkpoint
        (replaced if is_obsolete else kept).append(row)
    kept = [row for row in kept if (row.subject, row.scenario, row.masking) not in evaluated]
    replace_text(path, "".join(row.model_dump_json() + "\n" for row in (*kept, *rows)))
    for row in replaced:
        predictions_path(folder, row).unlink(missing_ok=True)


def read_results(path: str | Path) -> list[ResultRow]:
    """Return the rows of a results file, or of a run; a run's rows have the present name of its folder.

    Raises `UserError` with file and line if it is missing or malformed, or if it is of an earlier checkpoint than the
    one in its run folder.
    """
    path = Path(path)
    path = path / RESULTS_FILE if path.is_dir() else path
    rows = read_rows(path)
    if not rows:
        raise UserError(f"{path} has no results of this version of mavqa: run 'mavqa-evaluate {path.parent}'")
    if not is_run_folder(path.parent):
        return rows
    for row in rows:
        if not is_current(path.parent, row.subject.run_id, row.subject.checkpoint_sha256):
            raise UserError(
                f"{path} has results of an earlier checkpoint than {path.parent / CHECKPOINT}: evaluate it again with "
                f"'mavqa-evaluate {path.parent}'"
            )
    return [row.model_copy(update={"run": path.parent.resolve().name}) for row in rows]


def to_records(rows: Iterable[ResultRow]) -> list[dict[str, Any]]:
    """Return one flat record per row and set of questions: all of them, each group and each type."""
    records = []
    for row in rows:
        facts = row.model_dump(include=_RECORD_FIELDS) | {"split": row.split}
        overall = {"overall": row.accuracies.overall}
        for level, counts in (("overall", overall), ("group", row.accuracies.groups), ("type", row.accuracies.types)):
            for name, count in counts.items():
                records.append(facts | {"level": level, "group": name} | count.to_document())
    return records


def read_rows(path: Path) -> list[ResultRow]:
    """Return the last row of each key of a results file, whichever checkpoint it is of.

    Rows of the first format are ignored: they do not say what they are of. Raises `UserError` with file and line if
    the file is missing or malformed.
    """
    if not path.exists():
        evaluation = f"evaluate the run first with 'mavqa-evaluate {path.parent}'"
        remedy = evaluation if path.name == RESULTS_FILE else "pass the folder of an evaluated run"
        raise UserError(f"{path} is missing: {remedy}")
    found = (_parse(line, f"{path}:{number}") for number, line in enumerate(_read_lines(path), start=1))
    return list({row.key: row for row in found if row is not None}.values())


def predictions_path(folder: Path, row: ResultRow) -> Path:
    """Return the path of the predictions that `row` counts. Raises `UserError` if a name in it leads out of `folder`.

    The row may be from a results file of someone else.
    """
    for kind, name in (("split", row.split), ("scenario", row.scenario)):
        check_file_name(kind, name, f"evaluate the run again with 'mavqa-evaluate {folder}'")
    return folder / f"predictions-{row.split}-{row.scenario}-{row.key}.jsonl"


def write_predictions(path: Path, predictions: Iterable[Prediction]) -> None:
    """Write one line per prediction, in the order of the questions."""
    replace_text(path, "".join(prediction.model_dump_json() + "\n" for prediction in predictions))


def read_predictions(path: Path, count: Count | None = None) -> list[Prediction]:
    """Return the predictions written by `write_predictions`.

    Raises `UserError` with file and line if the file is missing or malformed, or if its predictions have another
    `count` than their row.
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
    correct = sum(prediction.correct for prediction in predictions)
    if count is not None and (correct, len(predictions)) != (count.correct, count.questions):
        raise UserError(
            f"{path} has {correct} correct of {len(predictions)} predictions, {RESULTS_FILE} {count.correct} of "
            f"{count.questions}: evaluate the run again"
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


def _parse(line: str, place: str) -> ResultRow | None:
    """Return the row in `line`; None for one of the first format."""
    try:
        record = parse_json(line)
        format_ = record.get("format") if isinstance(record, dict) else None
        if format_ == 1:
            return None
        if format_ != FORMAT:
            raise UserError(f"{place}: unsupported result format {format_!r}, not {FORMAT}: evaluate the run again")
        return ResultRow.model_validate(record)
    except ValueError as error:
        why = describe_invalid(error) if isinstance(error, ValidationError) else one_line(error)
        raise UserError(f"{place}: not a result row ({why}): remove the line or evaluate the run again") from None
