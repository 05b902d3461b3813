"""The calibration of a run: one temperature per scenario, fitted on its val split, in a file beside its results.

What is missing changes how sure a model may be, so that each scenario has a temperature of its own. Temperatures change
no answer: the order of the probabilities is that of the logits.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from pipeline.errors import UserError, describe_invalid, one_line
from pipeline.files import replace_text
from pipeline.manifests.manifest import Manifest, parse_json
from train import processes
from train.data.batch import Batch
from train.data.feature_bank import FeatureBank
from train.data.scenarios import SCENARIOS
from train.evaluation.evaluate_run import OpenedRun, open_run
from train.evaluation.predict import BATCH_SIZE, EvaluationProgress, predict_each, questions_of
from train.evaluation.reliability import fit_temperature
from train.runs.claim import read_data
from train.runs.identity import is_current
from train.runs.results import Subject, hash_questions

CALIBRATION = "calibration.json"
SPLIT = "val"


class Calibration(BaseModel):
    """The temperatures {scenario: temperature} of a run, and what they were fitted on: `questions` of `subject`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    subject: Subject
    questions: int = Field(ge=1)
    temperatures: dict[str, float]


def calibrate_run(
    run: Path,
    manifest: Manifest,
    bank: FeatureBank,
    device: str = "cpu",
    report: Callable[[EvaluationProgress], None] | None = None,
    *,
    out: Path | None = None,
) -> Calibration | None:
    """Fit the temperatures of `run` on the naturally complete questions of val, and write them to `out` (default: run).

    A calibration of the same checkpoint, questions and features is kept, and so is any other of the checkpoint if val
    is not that of the training, as in another dataset. Returns None if there is no calibration then, or if val has no
    such question whose true answer the run can give. Raises `UserError` for what `evaluate_run` refuses.
    """
    out = run if out is None else out
    trained_with = read_data(run).get("questions", {}).get(SPLIT, "")
    questions = manifest.questions.get(SPLIT)
    if not questions or (trained_with and trained_with != hash_questions(questions)):
        return find_calibration(run, out)
    opened = open_run(run, manifest, bank, SPLIT, device)
    with processes.locked_by_first(out, "another training or evaluation"):
        known = read_calibration(out)
        if known is not None and known.subject == opened.subject:
            return known
        rows = _usable_rows(opened)
        if not len(rows):
            return None
        done = 0

        def count(questions: int) -> None:
            nonlocal done
            done += questions
            if report is not None:
                report(EvaluationProgress(done, len(rows) * len(SCENARIOS)))

        temperatures = {name: _fit(opened, rows, name, device, count) for name in SCENARIOS}
        found = Calibration(subject=opened.subject, questions=len(rows), temperatures=temperatures)
        replace_text(out / CALIBRATION, found.model_dump_json(indent=1) + "\n")
    return found


def read_calibration(folder: Path) -> Calibration | None:
    """Return the calibration in the folder of a run's results; None if there is none.

    Raises `UserError` if the file is corrupt.
    """
    path = folder / CALIBRATION
    try:
        return Calibration.model_validate(parse_json(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except ValueError as error:
        why = describe_invalid(error) if isinstance(error, ValidationError) else one_line(error)
        raise UserError(f"{path} is not a calibration ({why}): remove it and evaluate the run again") from None


def find_calibration(run: Path, results: Path | None = None) -> Calibration | None:
    """Return the calibration of the present checkpoint of `run` in the folder `results` (default: run), or None."""
    found = read_calibration(run if results is None else results)
    if found is None or not is_current(run, found.subject.run_id, found.subject.checkpoint_sha256):
        return None
    return found


def _usable_rows(opened: OpenedRun) -> np.ndarray:
    """Return the complete questions whose true answer the run can give; of others no temperature is more likely."""
    dataset, known = opened.dataset, set(opened.vocabulary.answers)
    rows = questions_of(dataset, "complete")
    questions = [dataset.questions[row] for row in rows]
    is_usable = [q.answer in known and (q.choices is None or q.answer in q.choices) for q in questions]
    return rows[np.array(is_usable, dtype=bool)]


def _fit(opened: OpenedRun, rows: np.ndarray, scenario: str, device: str, count: Callable[[int], None]) -> float:
    hidden = dict.fromkeys((opened.dataset.questions[row].question_id for row in rows), SCENARIOS[scenario])
    logits = predict_each(opened.method, opened.dataset, rows, hidden, BATCH_SIZE, device, _allowed_logits, count)
    return fit_temperature(torch.stack(logits).numpy(), opened.dataset.answers.numpy()[rows])


def _allowed_logits(batch: Batch, logits: Tensor) -> list[Tensor]:
    """Return the logits of each row, [answer], -inf for answers that are none of its choices."""
    if batch.choices is not None:
        logits = logits.masked_fill(~batch.choices.to(logits.device), -torch.inf)
    return list(logits.cpu())
