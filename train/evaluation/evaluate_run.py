"""The outcome of a run: its evaluation in every scenario beside the floors, as rows and one document.

It trains nothing and draws nothing. What it writes is all that a report reads.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError
from pipeline.files import replace_text
from pipeline.manifests.manifest import Manifest, Question
from pipeline.store.schema import MODALITIES, FeatureSpec
from train.backbones.registry import needs_of
from train.data.dataset import QuestionDataset
from train.data.feature_bank import FeatureBank
from train.data.scenarios import ALL_SCENARIOS, Masks, Rates
from train.evaluation.floors import filled_majority, learning_questions, template_majority
from train.evaluation.predict import BATCH_SIZE, Evaluation, evaluate, evaluate_scenarios, questions_of
from train.evaluation.recovery import SCENARIO_OF, measure_recovery
from train.evaluation.statistics import bootstrap
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

DATA_FILE = "data.json"
_SAME_FOR_A_FLOOR = ("backbone", "seed", "dataset", "release", "split", "scenario", "questions_sha256")
_NOT_TRAINING = {"backbone", "method", "variant", "inputs", "seed", "device", "manifest", "store", "sizes"}


def default_split(manifest: Manifest) -> str:
    """Return the split to evaluate by default: test, else val. Raises `UserError` where neither is."""
    for split in ("test", "val"):
        if manifest.questions.get(split):
            return split
    raise UserError(f"manifest {manifest.name!r} has no test or val split: name the split to evaluate")


def claim_data(run: Path, config: TrainConfig, manifest: Manifest, bank: FeatureBank) -> None:
    """Record in `run`, before it is trained, which questions and features it is about (`data.json`).

    Raises `UserError` where the folder holds a run about others (a resume would mix two datasets), or the run to start
    from is about others (its words may differ, and its training questions may be this one's test).
    """
    needs = needs_of(config.backbone)
    features = {name: bank.store.fingerprint(name) for m in MODALITIES for name in needs[m]}
    questions = {split: hash_questions(manifest.questions[split]) for split in manifest.splits}
    claim = {"questions": questions, "vocabulary": manifest.vocabulary.to_json(), "features": features}
    text = json.dumps(claim, ensure_ascii=False, indent=1) + "\n"
    path = run / DATA_FILE
    before = run.parent / config.start_from
    claimed = before / DATA_FILE
    if config.start_from and claimed.exists() and claimed.read_text(encoding="utf-8") != text:
        raise UserError(f"cannot start from {before}: it was trained on other questions or features than {run} is")
    if (run / "config.json").exists():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            raise UserError(
                f"{run} holds a run on other questions or features than manifest {manifest.name!r} "
                f"and store {bank.store.path} give now: remove it, or give another --out"
            )
        return
    run.mkdir(parents=True, exist_ok=True)
    replace_text(path, text)


def _check_weights(run: Path, config: TrainConfig, bank: FeatureBank) -> None:
    """Raise `UserError` where the store's features come from other weights than those that the run was trained on."""
    store = bank.store
    needs = needs_of(config.backbone)
    trained = read_environment(run).get("feature_weights", {})
    for name in (name for modality in MODALITIES for name in needs[modality]):
        weights = store.spec(name).constants.get("weights", {}).get("sha256", "")
        if trained.get(name, weights) != weights:
            raise UserError(
                f"run {run} was trained on {name} of weights {trained[name]}, store {store.path} holds it of weights "
                f"{weights}: evaluate it on the store it was trained on ({config.store or 'not recorded'})"
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
) -> list[str]:
    """Evaluate the trained method in `run`; add rows to its results and write its single predictions.

    Return the scenarios that had questions. With `masks` they are the only scenario, named after their rates. With
    `parts` {modality: share of its seconds} every video lacks a stretch of each, in a scenario named after them.
    The floors of the same questions are written beside the method's rows. Raises `UserError` where the run's
    vocabulary is not the manifest's, the store does not serve the manifest, a scenario is unknown, or `masks` are of
    other questions.
    """
    method, config = load_run(run, device)
    if config.objective != "answer":
        raise UserError(f"run {run} is a pre-training ({config.objective}) and answers nothing: start a run from it")
    _check_weights(run, config, bank)
    if read_vocabulary(run) != manifest.vocabulary:
        raise UserError(
            f"run {run} was trained with another vocabulary than manifest {manifest.name!r}: evaluate it "
            f"with the manifest it was trained on ({config.manifest or 'not recorded'})"
        )
    dataset = QuestionDataset(bank, manifest, split, inputs_of(method.backbone, config.map_size))
    answers = manifest.vocabulary.answers
    recovery: dict[str, float] = {}
    if parts:
        for modality, share in parts.items():
            dataset = dataset.without_part(modality, share)
        one = evaluate(method, dataset, name_parts(parts), answers, device=device, masks={})
        found = [one] if one else []
    elif masks is None:
        found = evaluate_scenarios(method, dataset, answers, scenarios, device=device)
        recovery = _measure_recovery(method, dataset, [evaluation.scenario for evaluation in found], device)
    else:
        _check_masks(masks, manifest, split)
        one = evaluate(method, dataset, masks.name, answers, device=device, masks=masks.absent)
        found = [one] if one else []
    learnt = learning_questions(manifest, split)
    left_out = int((~dataset.naturally_complete & ~dataset.naturally_incomplete).sum())
    rows = []
    for evaluation in found:
        row = _row(run, config, manifest, bank.store, split, evaluation, left_out)
        told = evaluation.records()
        interval = bootstrap([t.correct for t in told], [t.video_id for t in told])
        about = {**_describe(method), "recovery": recovery.get(evaluation.scenario), "interval": interval}
        row = row.model_copy(update=about)
        if masks is not None:
            masking = Masking(rates=masks.rates, unit=masks.unit, seed=masks.seed)
            row = row.model_copy(update={"masking": masking})
        rows += [row, *_floor_rows(row, learnt, evaluation.questions)]
        write_predictions(predictions_path(run, split, evaluation.scenario), told)
    append_results(run / RESULTS_FILE, rows)
    return [evaluation.scenario for evaluation in found]


def summarise_run(
    run: Path, split: str, scenarios: Sequence[str] | None = None, question_only: Path | None = None
) -> dict[str, Any]:
    """Return the document of `mavqa-evaluate --json` out of a run's results (by default all scenarios but masked ones).

    Floors are of the questions of its first scenario, in the usual order. `question_only` names the run that
    gives the question-only floor; without it, one of the same seed and questions is looked for beside `run`.
    Raises `UserError` where the named one answered other questions or has no results.
    """
    rows = [row for row in read_results(run / RESULTS_FILE) if row.split == split]
    models = {row.scenario: row for row in rows if row.kind == "model"}
    order = dict.fromkeys((*ALL_SCENARIOS, *models))
    wanted = scenarios or [name for name, row in models.items() if row.masking is None]
    chosen = [name for name in order if name in models and name in wanted]
    if not chosen:
        raise UserError(f"{run / RESULTS_FILE} has no row of {split!r}: run 'mavqa-evaluate {run}' first")
    first = models[chosen[0]]
    floors = {r.method: r.accuracies for r in rows if r.kind == "floor" and r.scenario == first.scenario}
    return {
        "run": first.run,
        "split": split,
        "scenarios": {name: models[name].accuracies.to_document() for name in chosen},
        "floors": {
            "template_majority": _overall(floors.get("template-majority")),
            "filled_majority": _overall(floors.get("filled-majority")),
            "question_only": _overall(find_question_only(run, first, question_only)),
        },
    }


def count_left_out(run: Path, split: str) -> int:
    """Return how many questions of `split` no scenario of `run` asks: their videos could not be extracted."""
    return max((row.left_out for row in read_results(run / RESULTS_FILE) if row.split == split), default=0)


def find_question_only(run: Path, row: ResultRow, named: Path | None = None) -> Accuracies | None:
    """Return how a question-only run of the same seed and backbone answered the questions of `row`, or None.

    It is looked for in `named`, else in `run` and the folders beside it. Raises `UserError` where `named`
    has no such result.
    """
    beside = [path.parent for path in sorted(run.resolve().parent.glob(f"*/{RESULTS_FILE}"))]
    for folder in [named] if named else [run, *beside]:
        for other in read_results(folder / RESULTS_FILE):
            same = all(getattr(other, name) == getattr(row, name) for name in _SAME_FOR_A_FLOOR)
            if same and other.inputs == "question" and other.kind == "model":
                return other.accuracies
    if named:
        raise UserError(
            f"{named} is no question-only run of seed {row.seed} evaluated on the same questions "
            f"({row.split} {row.scenario}): name one trained with --inputs question"
        )
    return None


def name_parts(parts: Rates) -> str:
    """Return the name of the scenario in which a stretch of every video is gone, such as `partly-audio=0.5`."""
    return "partly-" + ",".join(f"{modality}={share:g}" for modality, share in sorted(parts.items()))


def _check_masks(masks: Masks, manifest: Manifest, split: str) -> None:
    """Raise `UserError` where `masks` name a question that `split` lacks: it would hide nothing and say it did."""
    unknown = sorted(masks.absent.keys() - {question.question_id for question in manifest.questions.get(split, ())})
    if unknown:
        raise UserError(
            f"the masks name {len(unknown)} questions that split {split!r} of manifest {manifest.name!r} lacks, "
            f"such as {unknown[0]!r}: give the masks of these questions, or their --split"
        )


def _row(
    run: Path,
    config: TrainConfig,
    manifest: Manifest,
    store: "FeatureStore",
    split: str,
    found: Evaluation,
    left_out: int,
) -> ResultRow:
    specs = {name: store.spec(name) for name in (config.sizes.input_shapes if config.sizes else {})}
    return ResultRow(
        kind="model",
        run=run.resolve().name,
        split=split,
        scenario=found.scenario,
        method=config.method,
        backbone=config.backbone,
        variant=config.variant,
        inputs=config.inputs,
        seed=config.seed,
        dataset=manifest.name,
        release=manifest.release,
        training={**config.model_dump(exclude=_NOT_TRAINING), "start_from": _without_seed(config)},
        features={
            name: Feature(fingerprint=store.fingerprint(name), weights=_weights(spec)) for name, spec in specs.items()
        },
        questions_sha256=hash_questions(found.questions),
        left_out=left_out,
        multiple_choice=sum(question.choices is not None for question in found.questions),
        accuracies=found.accuracies,
    )


def _measure_recovery(
    method: MissingModalityMethod, dataset: QuestionDataset, scenarios: Sequence[str], device: str
) -> dict[str, float]:
    """Return {scenario: recovery error} where a scenario of one missing modality is among `scenarios`."""
    if not set(scenarios) & set(SCENARIO_OF.values()):
        return {}
    return measure_recovery(method, dataset, questions_of(dataset, "complete"), BATCH_SIZE, device)


def _describe(method: MissingModalityMethod) -> dict[str, Any]:
    """Return what a result row says of the method itself."""
    module: Any = method
    parameters = sum(parameter.numel() for parameter in module.parameters())
    return {"parameters": parameters, "sees": method.sees, "trains_on": method.trains_on}


def _without_seed(config: TrainConfig) -> str:
    """Return the run that the training began from by what all seeds of it share: they are one method."""
    return re.sub(rf"-(seed)?{config.seed}$", "", config.start_from)


def _floor_rows(row: ResultRow, learnt: Sequence[Question], asked: Sequence[Question]) -> list[ResultRow]:
    if not learnt:
        return []
    found = {
        "template-majority": template_majority(learnt, asked),
        "filled-majority": filled_majority(learnt, asked),
    }
    nothing = {"parameters": 0, "sees": "", "trains_on": "", "recovery": None, "interval": None}
    return [
        row.model_copy(update={**nothing, "kind": "floor", "method": name, "accuracies": accuracies})
        for name, accuracies in found.items()
    ]


def _weights(spec: FeatureSpec) -> str:
    weights = spec.constants.get("weights", {})
    return str(weights.get("weights", "none")) if isinstance(weights, dict) else str(weights)


def _overall(accuracies: Accuracies | None) -> float | None:
    return None if accuracies is None else accuracies.overall.accuracy
