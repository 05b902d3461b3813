"""Evaluation of a run in every scenario, with its floors: result rows, predictions and a summary document."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError
from pipeline.manifests.manifest import Manifest, Question
from pipeline.store.schema import MODALITIES, FeatureSpec
from train.backbones.registry import needs_of
from train.data.dataset import QuestionDataset
from train.data.feature_bank import FeatureBank
from train.data.scenarios import ALL_SCENARIOS, SCENARIO_OF, Masks, Rates
from train.evaluation.floors import filled_majority, floor_training_questions, template_majority
from train.evaluation.predict import (
    BATCH_SIZE,
    Evaluation,
    EvaluationProgress,
    evaluate,
    questions_of,
)
from train.evaluation.recovery import measure_recovery
from train.evaluation.statistics import bootstrap_interval
from train.interfaces import MissingModalityMethod, inputs_of
from train.runs.config import TrainConfig
from train.runs.folder import load_run, read_environment, read_vocabulary
from train.runs.results import (
    RESULTS_FILE,
    Accuracies,
    Feature,
    Masking,
    ResultRow,
    append_results,
    hash_questions,
    predictions_path,
    read_results,
    write_predictions,
)

if TYPE_CHECKING:
    from pipeline.store.reader import FeatureStore

# Fields in which a question-only run must equal the run that it is a floor of.
_SHARED_WITH_FLOOR = ("backbone", "seed", "dataset", "release", "split", "scenario", "questions_sha256")
_NOT_TRAINING = {"backbone", "method", "variant", "inputs", "seed", "device", "manifest", "store", "sizes"}


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
) -> list[str]:
    """Evaluate the trained method of `run`, append rows to its results, write its predictions; return the scenarios.

    `masks`: evaluate only the scenario of these masks, named after their rates. `parts`: {modality: share of its
    seconds}; evaluate only a scenario, such as `partly-audio=0.5`, in which every video is missing a stretch of them.
    Scenarios without questions are omitted. Each row of the method is followed by the floors on the same questions.
    `report` is called after each batch.
    Raises `UserError` if the run has another vocabulary than the manifest, the store does not contain the manifest's
    data, the split has no questions, a scenario is unknown, or `masks` contain a question that is not in the split.
    """
    method, config = load_run(run, device)
    if config.objective != "answer":
        raise UserError(
            f"run {run} is a pre-training ({config.objective}) without answers: train a run with "
            f"--start-from {run.name} and evaluate that one"
        )
    _check_data(run, config, manifest, bank, split)
    dataset = QuestionDataset(bank, manifest, split, inputs_of(method.backbone, config.map_size))
    if masks is not None:
        _check_masks(masks, manifest, split)
    found = _evaluate(method, dataset, manifest.vocabulary.answers, scenarios, masks, parts, device, report)
    recovery: dict[str, float] = {}
    if masks is None and {evaluation.scenario for evaluation in found} & set(SCENARIO_OF.values()):
        recovery = measure_recovery(method, dataset, questions_of(dataset, "complete"), BATCH_SIZE, device)
    floor_questions = floor_training_questions(manifest, split)
    left_out = int((~dataset.naturally_complete & ~dataset.naturally_incomplete).sum())
    rows = []
    for evaluation in found:
        predictions = evaluation.records()
        row = _row(run, config, manifest, bank.store, split, evaluation, left_out).model_copy(
            update={
                **_describe(method),
                "recovery": recovery.get(evaluation.scenario),
                "interval": bootstrap_interval([p.correct for p in predictions], [p.video_id for p in predictions]),
                "masking": None if masks is None else Masking(rates=masks.rates, unit=masks.unit, seed=masks.seed),
            }
        )
        rows += [row, *_floor_rows(row, floor_questions, evaluation.questions)]
        write_predictions(predictions_path(run, split, evaluation.scenario), predictions)
    append_results(run / RESULTS_FILE, rows)
    return [evaluation.scenario for evaluation in found]


def summarise_run(
    run: Path, split: str, scenarios: Sequence[str] | None = None, question_only: Path | None = None
) -> dict[str, Any]:
    """Return the document of `mavqa-evaluate --json` from a run's results (default: all scenarios without masks).

    The floors are those of the first scenario, in the usual order. `question_only`: the run for the question-only
    floor; by default one with the same seed and questions is searched in `run` and its neighbouring folders.
    Raises `UserError` if `question_only` has no results or was evaluated on other questions.
    """
    rows = [row for row in read_results(run / RESULTS_FILE) if row.split == split]
    models = {row.scenario: row for row in rows if row.kind == "model"}
    order = dict.fromkeys((*ALL_SCENARIOS, *models))
    requested = scenarios or [name for name, row in models.items() if row.masking is None]
    names = [name for name in order if name in models and name in requested]
    if not names:
        raise UserError(f"{run / RESULTS_FILE} has no row of split {split!r}: run 'mavqa-evaluate {run}' first")
    first = models[names[0]]
    floors = {r.method: r.accuracies for r in rows if r.kind == "floor" and r.scenario == first.scenario}
    return {
        "run": first.run,
        "split": split,
        "scenarios": {name: models[name].accuracies.to_document() for name in names},
        "floors": {
            "template_majority": _overall(floors.get("template-majority")),
            "filled_majority": _overall(floors.get("filled-majority")),
            "question_only": _overall(find_question_only(run, first, question_only)),
        },
    }


def count_left_out(run: Path, split: str) -> int:
    """Return the number of questions of `split` in no scenario of `run`: their videos could not be extracted."""
    return max((row.left_out for row in read_results(run / RESULTS_FILE) if row.split == split), default=0)


def find_question_only(run: Path, row: ResultRow, question_only: Path | None = None) -> Accuracies | None:
    """Return the accuracies of a question-only run with the seed, backbone and questions of `row`, or None.

    It is searched in `question_only` if given, else in `run` and its neighbouring folders. Raises `UserError` if
    `question_only` contains no such result.
    """
    neighbours = [path.parent for path in sorted(run.resolve().parent.glob(f"*/{RESULTS_FILE}"))]
    for folder in [question_only] if question_only else [run, *neighbours]:
        for other in read_results(folder / RESULTS_FILE):
            is_comparable = all(getattr(other, name) == getattr(row, name) for name in _SHARED_WITH_FLOOR)
            if is_comparable and other.inputs == "question" and other.kind == "model":
                return other.accuracies
    if question_only:
        raise UserError(
            f"{question_only} is not a question-only run with seed {row.seed} evaluated on the same questions "
            f"({row.split} {row.scenario}): pass one trained with --inputs question"
        )
    return None


def _evaluate(
    method: MissingModalityMethod,
    dataset: QuestionDataset,
    answers: Sequence[str],
    scenarios: Sequence[str],
    masks: Masks | None,
    parts: Rates | None,
    device: str,
    report: Callable[[EvaluationProgress], None] | None,
) -> list[Evaluation]:
    """Evaluate the scenario of `parts`, else of `masks`, else `scenarios`; those without questions are omitted."""
    hidden: dict[str, Mapping[str, Sequence[str]] | None] = dict.fromkeys(scenarios)
    if parts:
        for modality, share in parts.items():
            dataset = dataset.without_part(modality, share)
        hidden = {"partly-" + ",".join(f"{modality}={share:g}" for modality, share in sorted(parts.items())): {}}
    elif masks is not None:
        hidden = {masks.name: masks.absent}
    total = sum(len(questions_of(dataset, scenario)) for scenario in hidden)
    done = 0

    def count(questions: int) -> None:
        nonlocal done
        done += questions
        if report is not None:
            report(EvaluationProgress(done, total))

    evaluations = (
        evaluate(method, dataset, scenario, answers, device=device, masks=hides, on_batch=count)
        for scenario, hides in hidden.items()
    )
    return [evaluation for evaluation in evaluations if evaluation is not None]


def _check_data(run: Path, config: TrainConfig, manifest: Manifest, bank: FeatureBank, split: str) -> None:
    """Raise `UserError` if the split is empty, or the features' weights or the vocabulary are not those of training."""
    if manifest.questions.get(split) == ():
        raise UserError(
            f"split {split!r} of manifest {manifest.name!r} has no questions: its splits are "
            f"{manifest.describe_splits()}; pass another --split"
        )
    store = bank.store
    needs = needs_of(config.backbone)
    trained = read_environment(run).get("feature_weights", {})
    for name in (name for modality in MODALITIES for name in needs[modality]):
        weights = store.spec(name).constants.get("weights", {}).get("sha256", "")
        if trained.get(name, weights) != weights:
            raise UserError(
                f"run {run} was trained on {name} with weights {trained[name]}, store {store.path} has weights "
                f"{weights}: pass the --store that it was trained on ({config.store or 'not recorded'})"
            )
    if read_vocabulary(run) != manifest.vocabulary:
        raise UserError(
            f"run {run} was trained with another vocabulary than that of manifest {manifest.name!r}: pass the "
            f"--manifest that it was trained on ({config.manifest or 'not recorded'})"
        )


def _check_masks(masks: Masks, manifest: Manifest, split: str) -> None:
    """Raise `UserError` if `masks` contain a question that is not in `split`, where they would have no effect."""
    unknown = sorted(masks.absent.keys() - {question.question_id for question in manifest.questions.get(split, ())})
    if unknown:
        raise UserError(
            f"the masks contain {len(unknown)} questions that are not in split {split!r} of manifest "
            f"{manifest.name!r}, such as {unknown[0]!r}: pass masks of this split, or their --split"
        )


def _row(
    run: Path,
    config: TrainConfig,
    manifest: Manifest,
    store: "FeatureStore",
    split: str,
    evaluation: Evaluation,
    left_out: int,
) -> ResultRow:
    specs = {name: store.spec(name) for name in (config.sizes.input_shapes if config.sizes else {})}
    # All seeds of a method start from runs that differ only in their seed.
    start_from = re.sub(rf"-(seed)?{config.seed}$", "", config.start_from)
    return ResultRow(
        kind="model",
        run=run.resolve().name,
        split=split,
        scenario=evaluation.scenario,
        method=config.method,
        backbone=config.backbone,
        variant=config.variant,
        inputs=config.inputs,
        seed=config.seed,
        dataset=manifest.name,
        release=manifest.release,
        training={**config.model_dump(exclude=_NOT_TRAINING), "start_from": start_from},
        features={
            name: Feature(fingerprint=store.fingerprint(name), weights=_kind_of_weights(spec))
            for name, spec in specs.items()
        },
        questions_sha256=hash_questions(evaluation.questions),
        left_out=left_out,
        multiple_choice=sum(question.choices is not None for question in evaluation.questions),
        accuracies=evaluation.accuracies,
    )


def _describe(method: MissingModalityMethod) -> dict[str, Any]:
    """Return the fields of a result row that describe the method itself."""
    module: Any = method
    parameters = sum(parameter.numel() for parameter in module.parameters())
    return {"parameters": parameters, "sees": method.sees, "trains_on": method.trains_on}


def _floor_rows(row: ResultRow, train: Sequence[Question], test: Sequence[Question]) -> list[ResultRow]:
    """Return the rows of the floors on the questions `test` of `row`; [] without training questions."""
    if not train:
        return []
    floors = {"template-majority": template_majority(train, test), "filled-majority": filled_majority(train, test)}
    model_fields = {"parameters": 0, "sees": "", "trains_on": "", "recovery": None, "interval": None}
    return [
        row.model_copy(update={**model_fields, "kind": "floor", "method": name, "accuracies": accuracies})
        for name, accuracies in floors.items()
    ]


def _kind_of_weights(spec: FeatureSpec) -> str:
    weights = spec.constants.get("weights", {})
    return str(weights.get("weights", "none")) if isinstance(weights, dict) else str(weights)


def _overall(accuracies: Accuracies | None) -> float | None:
    return None if accuracies is None else accuracies.overall.accuracy
