"""Accuracy at every missing rate, computed from existing predictions without running the model.

A prediction depends only on its question and video. The predictions at any missing rate therefore combine those of the
scenarios `complete`, `audio-missing` and `visual-missing`.
Source: Fig. 5 of the ECCV 2024 missing-modality paper. The questions missing a modality at one rate also miss it at
every higher rate, which the paper leaves open.
"""

from collections.abc import Callable
from pathlib import Path

from pipeline.errors import UserError
from pipeline.manifests.manifest import Manifest
from train.data.scenarios import SCENARIO_OF, SCENARIOS, Rates, Unit, sample_masks
from train.evaluation.statistics import bootstrap_interval
from train.runs.results import (
    RESULTS_FILE,
    Masking,
    append_results,
    hash_questions,
    predictions_path,
    read_predictions,
    read_results,
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
    run: Path,
    manifest: Manifest,
    split: str,
    unit: Unit = "question",
    seed: int = 0,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[str]:
    """Append a row to the run's results for every pair of `rate_grid`; return their scenarios.

    `on_progress` receives (pairs done, pairs in total).
    Raises `UserError` if the run was not evaluated with each modality missing, or was evaluated on other questions.
    """
    rows = {row.scenario: row for row in read_results(run / RESULTS_FILE) if row.kind == "model" and row.split == split}
    missing = [scenario for scenario in _NEEDED if scenario not in rows]
    if missing:
        raise UserError(f"{run} has no results of {', '.join(missing)} on {split}: run 'mavqa-evaluate {run}' first")
    answers: dict[str, dict[str, str]] = {}
    for scenario in _NEEDED:
        path, count = predictions_path(run, split, scenario), rows[scenario].accuracies.overall.questions
        answers[scenario] = {p.question_id: p.prediction for p in read_predictions(path, count)}
    questions = [q for q in manifest.questions[split] if q.question_id in answers["complete"]]
    if any(hash_questions(questions) != rows[scenario].questions_sha256 for scenario in _NEEDED):
        raise UserError(
            f"{run} was evaluated on other questions than manifest {manifest.name!r} has: pass the manifest it used"
        )
    curve, grid = [], rate_grid()
    for done, rates in enumerate(grid, start=1):
        masks = sample_masks(questions, rates, seed, unit)
        predictions = [answers[SCENARIO_OF[masks.absent.get(q.question_id, ())]][q.question_id] for q in questions]
        hits = [prediction == q.answer for prediction, q in zip(predictions, questions, strict=True)]
        point = {
            "scenario": masks.name,
            "masking": Masking(rates=masks.rates, unit=masks.unit, seed=masks.seed),
            "accuracies": tally(questions, predictions),
            "interval": bootstrap_interval(hits, [q.video_id for q in questions]),
        }
        curve.append(rows["complete"].model_copy(update=point))
        on_progress(done, len(grid))
    append_results(run / RESULTS_FILE, curve)
    return [row.scenario for row in curve]
