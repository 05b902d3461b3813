"""Accuracy at every missing rate, computed from existing predictions without running the model.

A prediction depends only on its question and video. The predictions at any missing rate therefore combine those of the
scenarios `complete`, `audio-missing` and `visual-missing`.
Source: Fig. 5 of the ECCV 2024 missing-modality paper. The questions missing a modality at one rate also miss it at
every higher rate, which the paper leaves open.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pipeline.errors import UserError
from pipeline.files import locked
from pipeline.manifests.manifest import Manifest, Question
from train.data.scenarios import SCENARIO_OF, SCENARIOS, Masks, Rates, Unit, sample_masks
from train.evaluation.statistics import interval_over_videos
from train.evaluation.subject import describe_masks
from train.runs.results import (
    RESULTS_FILE,
    Masking,
    ResultRow,
    predictions_path,
    read_predictions,
    read_rows,
    save_results,
    tally,
)

TENTHS = 10
# A rate curve has no questions with both modalities missing.
_NEEDED = [name for name, hidden in SCENARIOS.items() if len(hidden) < 2]


def rate_grid() -> list[Rates]:
    """Return {"audio": rate, "visual": rate} for every pair of tenths that sums to at most 1, except (0, 0)."""
    pairs = [(a, v) for a in range(TENTHS + 1) for v in range(TENTHS + 1 - a) if a + v]
    return [{m: n / TENTHS for m, n in (("audio", a), ("visual", v)) if n} for a, v in pairs]


def add_curves(
    folder: Path,
    evaluated: ResultRow,
    manifest: Manifest,
    unit: Unit = "question",
    seed: int = 0,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    keep: bool = False,
) -> list[ResultRow]:
    """Add a row for every pair of `rate_grid` to the results in `folder`; return these rows.

    `evaluated`: a row of the evaluation to compute them from, on the questions of `manifest`. `keep`: do not compute
    again what `folder` has. `on_progress` receives (pairs done, pairs in total).
    Raises `UserError` if the run was not evaluated with each modality missing.
    """
    stored = [row for row in read_rows(folder / RESULTS_FILE) if row.kind == "model"]
    stored = [row for row in stored if row.subject == evaluated.subject]
    rows = {row.scenario: row for row in stored if row.masking is None}
    missing = [scenario for scenario in _NEEDED if scenario not in rows]
    if missing:
        raise UserError(
            f"{folder} has no results of {', '.join(missing)} on {evaluated.split}: evaluate these scenarios first"
        )
    answers: dict[str, dict[str, str]] = {}
    for scenario in _NEEDED:
        predictions = read_predictions(predictions_path(folder, rows[scenario]), rows[scenario].accuracies.overall)
        answers[scenario] = {p.question_id: p.prediction for p in predictions}
    questions = [q for q in manifest.questions[evaluated.split] if q.question_id in answers["complete"]]
    masks_of = [sample_masks(questions, rates, seed, unit) for rates in rate_grid()]
    curve = []
    for done, masks in enumerate(masks_of, start=1):
        masking = describe_masks(masks)
        found = next((row for row in stored if keep and row.masking == masking), None)
        curve.append(found or _curve_row(rows["complete"], questions, answers, masks, masking))
        on_progress(done, len(masks_of))
    with locked(folder, "another training or evaluation"):
        save_results(folder, curve)
    return curve


def _curve_row(
    complete: ResultRow,
    questions: Sequence[Question],
    answers: Mapping[str, Mapping[str, str]],
    masks: Masks,
    masking: Masking,
) -> ResultRow:
    """Return the row of one pair of rates, from the `answers` {scenario: {question id: prediction}}."""
    predictions = [answers[SCENARIO_OF[masks.absent.get(q.question_id, ())]][q.question_id] for q in questions]
    hits = [prediction == q.answer for prediction, q in zip(predictions, questions, strict=True)]
    point = {
        "scenario": masks.name,
        "masking": masking,
        "accuracies": tally(questions, predictions),
        "interval": interval_over_videos(hits, [q.video_id for q in questions]),
        "recovery": None,
        "reliability": None,
    }
    return complete.model_copy(update=point)
