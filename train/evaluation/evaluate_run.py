"""Evaluation of a run in every scenario, with its floors: result rows and predictions."""

import os
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.manifests.manifest import Manifest, Question, Vocabulary
from train import processes
from train.data.dataset import QuestionDataset
from train.data.feature_bank import FeatureBank
from train.data.scenarios import ALL_SCENARIOS, SCENARIOS, Masks, Rates
from train.evaluation.floors import filled_majority, floor_training_questions, template_majority
from train.evaluation.predict import (
    BATCH_SIZE,
    Evaluation,
    EvaluationProgress,
    evaluate,
    questions_of,
)
from train.evaluation.recovery import measure_recovery
from train.evaluation.reliability import calibration_error
from train.evaluation.statistics import interval_over_videos
from train.evaluation.subject import describe_masks, describe_run, identify_subject
from train.evaluation.vocabulary import match_vocabulary
from train.interfaces import MissingModalityMethod, inputs_of
from train.runs.claim import read_data
from train.runs.config import TrainConfig
from train.runs.features import read_specs, weights_hash
from train.runs.folder import load_hashed_run, read_environment
from train.runs.identity import is_run_folder
from train.runs.results import (
    RESULTS_FILE,
    Reliability,
    ResultRow,
    Subject,
    hash_questions,
    predictions_path,
    read_rows,
    save_results,
    write_predictions,
)


def default_split(manifest: Manifest) -> str:
    """Return the split to evaluate by default: test, else val. Raises `UserError` if the manifest has neither."""
    for split in ("test", "val"):
        if manifest.questions.get(split):
            return split
    raise UserError(
        f"manifest {manifest.name!r} has no questions in test or val: its splits are {manifest.describe_splits()}; "
        "pass one with questions as --split to mavqa-evaluate, or another --manifest"
    )


def evaluate_run(
    run: Path,
    manifest: Manifest,
    bank: FeatureBank,
    split: str = "test",
    scenarios: Sequence[str] = ALL_SCENARIOS,
    masks: Masks | None = None,
    device: str = "cpu",
    parts: Rates | None = None,
    report: Callable[[EvaluationProgress], None] | None = None,
    *,
    out: Path | None = None,
    keep: bool = False,
    temperatures: Mapping[str, float] | None = None,
) -> list[ResultRow]:
    """Evaluate the trained method of `run`; write rows and predictions to the folder `out` (default: `run`).

    Return the rows: of each scenario with questions that of the method, and those of the floors on its questions.
    `masks`: evaluate only the scenario of these masks, named after their rates. `parts`: {modality: share of its
    seconds}; evaluate only a scenario, such as `partly-audio=0.5`, in which every video is missing a stretch of them.
    `keep`: do not evaluate again what was evaluated with the same checkpoint, questions and features. `report` is
    called after each batch. `temperatures`: of the run's calibration, whose reliability the rows then have, too. Words
    and answers have the numbers of the run's vocabulary (`match_vocabulary`).
    Raises `UserError` if the run does not have the split's words and answers, or other seconds or weights than the
    store; if the store does not contain the manifest's data; if the split or all scenarios have no questions, a
    scenario is unknown, `masks` contain a question that is not in the split, or another process uses `out`.
    """
    out = run if out is None else out
    _check_arguments(run, out, masks, parts)
    opened = open_run(run, manifest, bank, split, device)
    method, vocabulary = opened.method, opened.vocabulary
    _check_masks(masks, manifest, split)
    fields = {
        **describe_run(run, opened.config, method, manifest, opened.dataset, split),
        "subject": opened.subject,
        "masking": None if masks is None else describe_masks(masks),
    }
    dataset, hidden = _choose_scenarios(opened.dataset, scenarios, masks, parts)
    with processes.locked_by_first(out, "another training or evaluation"):
        kept = _find_rows(out, fields) if keep else []
        pending = {name: hides for name, hides in hidden.items() if name not in {row.scenario for row in kept}}
        found = _evaluate(method, dataset, vocabulary.answers, pending, device, report, temperatures)
        recovery: dict[str, float] = {}
        if any(evaluation.scenario in SCENARIOS for evaluation in found):
            recovery = measure_recovery(method, dataset, questions_of(dataset, "complete"), BATCH_SIZE, device)
        training_questions = floor_training_questions(manifest, split)
        rows = [row for row in kept if row.scenario in hidden]
        for evaluation in found:
            row = _model_row(evaluation, set(vocabulary.answers), fields, recovery.get(evaluation.scenario))
            rows += [row, *_floor_rows(row, training_questions, evaluation.questions)]
            if processes.is_first():
                write_predictions(predictions_path(out, row), evaluation.records())
        if found and processes.is_first():
            save_results(out, rows)
    if not rows:
        raise UserError(
            f"split {split!r} of manifest {manifest.name!r} has no questions in {', '.join(hidden)} on the videos of "
            f"store {bank.store.path}: pass another --scenario or --split"
        )
    return sorted(rows, key=lambda row: list(hidden).index(row.scenario))


@dataclass(frozen=True)
class OpenedRun:
    """A trained method with the questions of a split, and the features of a store, which fit to its training.

    `vocabulary`: the run's, which numbers words and answers. `subject`: what an evaluation of them is of.
    """

    method: MissingModalityMethod
    config: TrainConfig
    vocabulary: Vocabulary
    dataset: QuestionDataset
    subject: Subject


def open_run(run: Path, manifest: Manifest, bank: FeatureBank, split: str, device: str) -> OpenedRun:
    """Load the method of `run`, and the questions of `split` as it reads them.

    Raises `UserError` if the run gives no answers, does not have the split's words and answers, or has other seconds or
    weights than the store; if the store does not contain the manifest's data; if the split has no questions.
    """
    method, config, checkpoint_sha256 = load_hashed_run(run, device)
    _check_data(run, config, manifest, bank, split)
    vocabulary = match_vocabulary(run, config, manifest, split)
    dataset = QuestionDataset(bank, manifest, split, inputs_of(method.backbone, config.map_size), vocabulary)
    subject = identify_subject(run, config, dataset, bank.store, split, checkpoint_sha256)
    return OpenedRun(method, config, vocabulary, dataset, subject)


def _check_arguments(run: Path, out: Path, masks: Masks | None, parts: Rates | None) -> None:
    """Raise `UserError` if `out` is another run, or if two kinds of missing modalities are combined."""
    if masks is not None and parts:
        raise UserError("masks and missing parts exclude each other: pass only one of them")
    if os.path.realpath(out) != os.path.realpath(run) and is_run_folder(out):
        raise UserError(f"{out} is another run, whose results would be replaced: pass another --out")


def _find_rows(folder: Path, fields: Mapping[str, Any]) -> list[ResultRow]:
    """Return the rows in `folder` with the subject and masking of `fields`: scenarios that have their predictions."""
    stored = read_rows(folder / RESULTS_FILE) if (folder / RESULTS_FILE).exists() else []
    rows = [row for row in stored if (row.subject, row.masking) == (fields["subject"], fields["masking"])]
    saved = {row.scenario for row in rows if row.kind == "model" and predictions_path(folder, row).exists()}
    return [row.model_copy(update={"run": fields["run"]}) for row in rows if row.scenario in saved]


def _model_row(
    evaluation: Evaluation, answers: Set[str], fields: Mapping[str, Any], recovery: float | None
) -> ResultRow:
    """Return the row of the method in one scenario; `fields` are those of all its scenarios.

    `answers`: those of the vocabulary.
    """
    hits = [
        question.answer == given for question, given in zip(evaluation.questions, evaluation.predictions, strict=True)
    ]
    return ResultRow(
        kind="model",
        scenario=evaluation.scenario,
        **fields,
        multiple_choice=sum(question.choices is not None for question in evaluation.questions),
        unknown_answers=sum(question.answer not in answers for question in evaluation.questions),
        recovery=recovery,
        interval=interval_over_videos(hits, [question.video_id for question in evaluation.questions]),
        reliability=_measure_reliability(evaluation, hits),
        accuracies=evaluation.accuracies,
    )


def _measure_reliability(evaluation: Evaluation, hits: Sequence[bool]) -> Reliability:
    calibrated = evaluation.calibrated
    return Reliability(
        error=calibration_error(evaluation.confidences, hits),
        calibrated_error=None if calibrated is None else calibration_error(calibrated, hits),
    )


def _choose_scenarios(
    dataset: QuestionDataset, scenarios: Sequence[str], masks: Masks | None, parts: Rates | None
) -> tuple[QuestionDataset, dict[str, Mapping[str, Sequence[str]] | None]]:
    """Return the dataset to evaluate and {scenario: its masks, None for its own}: of `parts`, else of `masks`."""
    if parts:
        for modality, share in parts.items():
            dataset = dataset.without_part(modality, share)
        name = "partly-" + ",".join(f"{modality}={share:g}" for modality, share in sorted(parts.items()))
        return dataset, {name: {}}
    return dataset, {masks.name_for(dataset.questions): masks.absent} if masks is not None else dict.fromkeys(scenarios)


def _evaluate(
    method: MissingModalityMethod,
    dataset: QuestionDataset,
    answers: Sequence[str],
    hidden: Mapping[str, Mapping[str, Sequence[str]] | None],
    device: str,
    report: Callable[[EvaluationProgress], None] | None,
    temperatures: Mapping[str, float] | None,
) -> list[Evaluation]:
    """Evaluate each scenario of `hidden`; those without questions are omitted."""
    total = sum(len(questions_of(dataset, scenario)) for scenario in hidden)
    done = 0

    def count(questions: int) -> None:
        nonlocal done
        done += questions
        if report is not None:
            report(EvaluationProgress(min(done, total), total))

    evaluations = (
        evaluate(
            method, dataset, scenario, answers, device=device, masks=hides, on_batch=count, temperatures=temperatures
        )
        for scenario, hides in hidden.items()
    )
    return [evaluation for evaluation in evaluations if evaluation is not None]


def _check_data(run: Path, config: TrainConfig, manifest: Manifest, bank: FeatureBank, split: str) -> None:
    """Raise `UserError` unless the run gives answers, the split has questions, and the data fit to the training."""
    if config.objective != "answer":
        raise UserError(
            f"run {run} is a pre-training ({config.objective}) without answers: train a run with "
            f"--start-from {run.name} and evaluate that one"
        )
    if manifest.questions.get(split) == ():
        raise UserError(
            f"split {split!r} of manifest {manifest.name!r} has no questions: its splits are "
            f"{manifest.describe_splits()}; pass another --split"
        )
    store = bank.store
    seconds = read_data(run).get("seconds", store.seconds)
    if seconds != store.seconds:
        raise UserError(
            f"run {run} was trained on {seconds} seconds per video, store {store.path} has {store.seconds}: pass the "
            f"--store that it was trained on ({config.store or 'not recorded'})"
        )
    trained = read_environment(run).get("feature_weights", {})
    for name, spec in read_specs(config.backbone, store).items():
        weights = weights_hash(spec)
        if trained.get(name, weights) != weights:
            raise UserError(
                f"run {run} was trained on {name} with weights {trained[name]}, store {store.path} has weights "
                f"{weights}: pass the --store that it was trained on ({config.store or 'not recorded'})"
            )


def _check_masks(masks: Masks | None, manifest: Manifest, split: str) -> None:
    """Raise `UserError` if `masks` contain a question that is not in `split`, where they would have no effect."""
    unknown = sorted(
        (masks.absent if masks else {}).keys()
        - {question.question_id for question in manifest.questions.get(split, ())}
    )
    if unknown:
        raise UserError(
            f"the masks contain {len(unknown)} questions that are not in split {split!r} of manifest "
            f"{manifest.name!r}, such as {unknown[0]!r}: pass masks of this split, or their --split"
        )


def _floor_rows(row: ResultRow, train: Sequence[Question], test: Sequence[Question]) -> list[ResultRow]:
    """Return the rows of the floors on the questions `test` of `row`; [] without training questions."""
    if not train:
        return []
    floors = {"template-majority": template_majority(train, test), "filled-majority": filled_majority(train, test)}
    of_models = {"parameters": 0, "sees": "", "trains_on": "", "recovery": None, "interval": None, "reliability": None}
    model_fields = of_models | {"has_variants": False, "diffusion_steps": None, "options": {}}
    trained_on = {"trained_on_sha256": hash_questions(train, [question.template for question in train]), "seen": ""}
    return [
        row.model_copy(update={**model_fields, **trained_on, "kind": "floor", "method": name, "accuracies": accuracies})
        for name, accuracies in floors.items()
    ]
