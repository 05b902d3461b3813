"""Import the arrays of a question feature: published per question, stored per unique text.

Of several questions with one text, the first with a usable array gives the row; the arrays of the others are compared
with it.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from pipeline.arrays.npy_files import ArrayError
from pipeline.arrays.survey import Survey
from pipeline.manifests.manifest import Manifest
from pipeline.store.schema import FeatureSpec, State
from pipeline.store.writer import StoreWriter

# Texts that are written together: a few megabytes of the largest feature.
ROWS_PER_BLOCK = 64


@dataclass(frozen=True)
class QuestionOutcome:
    """The result of importing one question feature; the fields are those of `ImportSummary`."""

    imported: int
    states: dict[str, int]
    failures: list[dict[str, str]]
    differing: list[dict[str, str | float]]


def import_question_feature(
    writer: StoreWriter,
    manifest: Manifest,
    survey: Survey,
    spec: FeatureSpec,
    missing: Collection[str],
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> QuestionOutcome:
    """Write the feature of the texts `missing`, those that do not have it; `on_progress` receives (texts done, total).

    A text without a usable array has no row; it is a failure of its first question.
    """
    questions: dict[str, list[str]] = {}
    for split in manifest.splits:
        for question in manifest.questions[split]:
            questions.setdefault(question.text, []).append(question.question_id)
    failures: list[dict[str, str]] = []
    differing: list[dict[str, str | float]] = []
    imported = 0
    if missing:
        rows = writer.append_questions(manifest.texts())
        writer.add_spec(spec)
        ordered = sorted(missing, key=rows.__getitem__)
        done = 0
        for _, texts in groupby(ordered, key=lambda text: rows[text] // ROWS_PER_BLOCK):
            found: dict[int, tuple[np.ndarray, str]] = {}
            for text in texts:
                done += 1
                first, reason = _read_first(survey, questions[text], differing)
                if first is None:
                    failures.append({"question_id": questions[text][0], "feature": spec.name, "reason": reason})
                else:
                    found[rows[text]] = first
            if found:
                values = np.stack([values for values, _ in found.values()])
                writer.write_questions(spec.name, np.array(list(found)), values, 0, [sha for _, sha in found.values()])
            imported += len(found)
            on_progress(done, len(missing))
    states = {state.name.lower(): 0 for state in State}
    states |= {"complete": len(questions) - len(failures), "failed": len(failures)}
    return QuestionOutcome(imported, states, failures, differing)


def _read_first(
    survey: Survey, question_ids: list[str], differing: list[dict[str, str | float]]
) -> tuple[tuple[np.ndarray, str] | None, str]:
    """Return the values and file hash of the first usable array, or None and why the first question has none.

    Questions whose array has other values are added to `differing`.
    """
    first: tuple[np.ndarray, str] | None = None
    reason = ""
    for question_id in question_ids:
        if problem := survey.problem(question_id):
            reason = reason or problem
            continue
        try:
            (values,), sha256 = survey.read(question_id)
        except ArrayError as error:
            reason = reason or str(error)
            continue
        if first is None:
            first = values, sha256
        elif sha256 != first[1] and not np.array_equal(values, first[0]):
            difference = float(np.abs(values.astype(np.float64) - first[0]).max())
            entry: dict[str, str | float] = {
                "question_id": question_id,
                "feature": survey.layout.feature,
                "largest_difference": difference,
            }
            differing.append(entry)
    return first, reason
