"""The summary of one evaluation: the document of `mavqa-evaluate --json`."""

from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from train.data.scenarios import ALL_SCENARIOS
from train.evaluation.calibration import Calibration
from train.runs.results import RESULTS_FILE, Accuracies, ResultRow, read_results, read_rows


def summarise_rows(
    rows: Sequence[ResultRow], question_only: Path | None = None, near: Path | None = None
) -> dict[str, Any]:
    """Return the document of `mavqa-evaluate --json` from the rows of one evaluation.

    The floors are those of the first scenario, in the usual order. `question_only`: the run for the question-only
    floor; by default one with the same seed and questions, which answers each training question once, is searched in
    the run folder `near` and its neighbours.
    Raises `UserError` if `question_only` has no results or was evaluated on other questions.
    """
    models = {row.scenario: row for row in rows if row.kind == "model"}
    names = [name for name in dict.fromkeys((*ALL_SCENARIOS, *models)) if name in models]
    first = models[names[0]]
    floors = {row.method: row.accuracies for row in rows if row.kind == "floor" and row.scenario == first.scenario}
    return {
        "run": first.run,
        "split": first.split,
        "seen_in_training": first.seen,
        "left_out": first.left_out,
        "unknown_answers": first.unknown_answers,
        "scenarios": {name: models[name].accuracies.to_document() for name in names},
        "floors": {
            "template_majority": _overall(floors.get("template-majority")),
            "filled_majority": _overall(floors.get("filled-majority")),
            "question_only": _overall(find_question_only(first, question_only, near)),
        },
    }


def describe_reliability(rows: Sequence[ResultRow], calibration: Calibration | None) -> dict[str, Any]:
    """Return the entry "reliability" of the document: expected calibration errors by scenario, in percentage points.

    "temperature" is that of the scenario; None where questions have that of what they are missing, and without a
    calibration, which also leaves "calibrated_on" None.
    """
    temperatures = {} if calibration is None else calibration.temperatures
    found = {row.scenario: row.reliability for row in rows if row.kind == "model" and row.reliability is not None}
    return {
        "calibrated_on": calibration and {"split": calibration.subject.split, "questions": calibration.questions},
        "scenarios": {
            scenario: {**reliability.model_dump(), "temperature": temperatures.get(scenario)}
            for scenario, reliability in found.items()
        },
    }


def find_question_only(row: ResultRow, question_only: Path | None, near: Path | None) -> Accuracies | None:
    """Return the accuracies of a question-only run with the seed, backbone and questions of `row`, or None.

    It is searched in `question_only` if given, else in the run folder `near` and its neighbours; results of neighbours
    that cannot be read are ignored. Raises `UserError` if `question_only` contains no such result.
    """
    if question_only:
        found = _matching(question_only, row)
        if found is None:
            raise UserError(
                f"{question_only} is not a question-only run with seed {row.seed} evaluated on the same questions "
                f"({row.split} {row.scenario}): pass one trained with --inputs question"
            )
        return found
    neighbours = sorted(near.resolve().parent.glob(f"*/{RESULTS_FILE}")) if near else []
    for path in neighbours:
        with suppress(UserError):
            if found := _matching(path.parent, row, ("", "nothing")):
                return found
    return None


def _matching(folder: Path, row: ResultRow, exposures: Collection[str] | None = None) -> Accuracies | None:
    """Return the accuracies of a question-only run on what `row` was evaluated on, from the results in `folder`.

    `exposures`: what the run may have seen of missing modalities; None: anything.
    """

    def is_match(other: ResultRow) -> bool:
        is_exposed = exposures is None or other.sees in exposures
        is_question_only = other.kind == "model" and other.inputs == "question" and is_exposed
        return is_question_only and _comparison(other) == _comparison(row)

    # Only of a match is the checkpoint's hash needed.
    if not any(map(is_match, read_rows(folder / RESULTS_FILE))):
        return None
    return next(other.accuracies for other in read_results(folder) if is_match(other))


def _comparison(row: ResultRow) -> tuple[object, ...]:
    """Return the fields in which a question-only run must equal the run that it is a floor of."""
    of_run = (row.backbone, row.seed, row.trained_on_sha256)
    return (
        *of_run,
        row.dataset,
        row.release,
        row.split,
        row.scenario,
        row.subject.questions_sha256,
        row.subject.seconds,
    )


def _overall(accuracies: Accuracies | None) -> float | None:
    return None if accuracies is None else accuracies.overall.accuracy
