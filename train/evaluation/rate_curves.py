"""Accuracy against the share of questions that lack a modality, out of predictions that were made before.

It runs no model: a prediction depends on its question and its video alone, so that what a method answers at any rate is
put together from its answers with everything there, without sound and without pictures.
Source: Fig. 5 of the ECCV 2024 missing-modality paper; sets are nested over the rates, which the paper leaves open.
"""

from pathlib import Path

from pipeline.errors import UserError
from pipeline.manifests.manifest import Manifest
from train.data.scenarios import SCENARIOS, Masks, Rates, Unit, draw_masks
from train.evaluation.statistics import bootstrap
from train.runs.results import (
    RESULTS_FILE,
    Accuracies,
    Masking,
    ResultRow,
    append_results,
    hash_questions,
    predictions_path,
    read_predictions,
    read_results,
    tally,
)

TENTHS = 10
_NEEDED = {hidden: name for name, hidden in SCENARIOS.items() if len(hidden) < 2}


def rate_grid() -> list[Rates]:
    """Return {"audio": rate, "visual": rate} for every pair of tenths that sums to 1 at most, without (0, 0)."""
    pairs = [(a, v) for a in range(TENTHS + 1) for v in range(TENTHS + 1 - a) if a + v]
    return [{m: n / TENTHS for m, n in (("audio", a), ("visual", v)) if n} for a, v in pairs]


def add_curves(run: Path, manifest: Manifest, split: str, unit: Unit = "question", seed: int = 0) -> list[str]:
    """Add a row to the run's results for every pair of `rate_grid`; return their scenarios.

    Raises `UserError` where the run was not evaluated with each modality missing, or on other questions.
    """
    rows = {row.scenario: row for row in read_results(run / RESULTS_FILE) if row.kind == "model" and row.split == split}
    lacking = [name for name in _NEEDED.values() if name not in rows]
    if lacking:
        raise UserError(f"{run} has no results of {', '.join(lacking)} on {split}: run 'mavqa-evaluate {run}' first")
    answers = {name: _answers(run, split, name) for name in _NEEDED.values()}
    questions = [q for q in manifest.questions[split] if q.question_id in answers["complete"]]
    if any(hash_questions(questions) != rows[name].questions_sha256 for name in _NEEDED.values()):
        raise UserError(f"{run} answered other questions than manifest {manifest.name!r} holds: name the one it used")
    found = []
    for rates in rate_grid():
        masks = draw_masks(questions, rates, seed, unit)
        said = [answers[_NEEDED[masks.absent.get(q.question_id, ())]][q.question_id] for q in questions]
        right = [given == q.answer for given, q in zip(said, questions, strict=True)]
        interval = bootstrap(right, [q.video_id for q in questions])
        found.append(_row(rows["complete"], masks, tally(questions, said), interval))
    append_results(run / RESULTS_FILE, found)
    return [row.scenario for row in found]


def _answers(run: Path, split: str, scenario: str) -> dict[str, str]:
    return {told.question_id: told.prediction for told in read_predictions(predictions_path(run, split, scenario))}


def _row(complete: ResultRow, masks: Masks, accuracies: Accuracies, interval: tuple[float, float]) -> ResultRow:
    masking = Masking(rates=masks.rates, unit=masks.unit, seed=masks.seed)
    drawn = {"scenario": masks.name, "masking": masking, "accuracies": accuracies, "interval": interval}
    return complete.model_copy(update=drawn)
