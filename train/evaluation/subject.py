"""What an evaluation is of: the fields of its result rows, all computed from contents."""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError
from pipeline.manifests.manifest import Manifest
from pipeline.store.schema import IMPORTED, FeatureSpec
from train.data.dataset import QuestionDataset
from train.data.scenarios import NATURAL, Masks
from train.evaluation.predict import questions_of
from train.interfaces import MissingModalityMethod
from train.runs.claim import hash_training_data, read_data
from train.runs.config import TrainConfig
from train.runs.features import read_digests, read_specs
from train.runs.folder import read_environment
from train.runs.identity import run_id
from train.runs.log import METRICS, read_metrics
from train.runs.presets import PRESETS
from train.runs.results import Feature, Masking, Subject, hash_questions

if TYPE_CHECKING:
    from pipeline.store.reader import FeatureStore

_NOT_TRAINING = {"backbone", "method", "variant", "inputs", "seed", "device", "manifest", "store", "sizes"}


def identify_subject(
    run: Path, config: TrainConfig, dataset: QuestionDataset, store: "FeatureStore", split: str, checkpoint_sha256: str
) -> Subject:
    """Return the subject of an evaluation of `run` on the questions and features of `dataset`."""
    questions, scenarios = dataset.questions, ["left out"] * len(dataset)
    for scenario in ("complete", NATURAL):
        for row in questions_of(dataset, scenario):
            scenarios[row] = scenario
    groups = [json.dumps([s, q.type, q.modality, q.template]) for s, q in zip(scenarios, questions, strict=True)]
    digests = read_digests(config.backbone, store, questions)
    features = {
        name: Feature(fingerprint=spec.fingerprint, weights=_kind_of_weights(spec), sha256=digests[name])
        for name, spec in read_specs(config.backbone, store).items()
    }
    return Subject(
        run_id=run_id(run),
        checkpoint_sha256=checkpoint_sha256,
        split=split,
        questions_sha256=hash_questions(questions, groups),
        seconds=store.seconds,
        features=features,
    )


def describe_run(
    run: Path,
    config: TrainConfig,
    method: MissingModalityMethod,
    manifest: Manifest,
    dataset: QuestionDataset,
    split: str,
) -> dict[str, Any]:
    """Return the fields that the rows of all scenarios share."""
    module: Any = method
    data = read_data(run)
    trained_on = data.get("questions", {})
    epochs = _count_epochs(run, config)
    uses = {trained_on.get("val"): "selection", trained_on.get("train"): "training"}
    return {
        "run": run.resolve().name,
        "method": config.method,
        "backbone": config.backbone,
        "variant": config.variant,
        "inputs": config.inputs,
        "seed": config.seed,
        "dataset": manifest.name,
        "release": manifest.release,
        # All seeds of a method start from runs that differ only in their seed.
        "training": {
            **config.model_dump(exclude=_NOT_TRAINING),
            "start_from": re.sub(rf"-(seed)?{config.seed}$", "", config.start_from),
            **({"start_training": data["start_training"]} if "start_training" in data else {}),
            # A run that was stopped is another model.
            "epochs": config.epochs if epochs == config.epochs else f"{epochs} of {config.epochs}",
        },
        "trained_on_sha256": hash_training_data(data),
        "seen": uses.get(hash_questions(manifest.questions[split]), ""),
        "left_out": int((~dataset.naturally_complete & ~dataset.naturally_incomplete).sum()),
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "sees": method.sees,
        "trains_on": method.trains_on,
        "has_variants": hasattr(method, "variants"),
        "diffusion_steps": getattr(method, "diffusion_steps", None),
        "options": chosen_options(config),
    }


def chosen_options(config: TrainConfig) -> dict[str, Any]:
    """Return the options of the method that are not those of the preset or of a reference's inputs."""
    of_preset = PRESETS[config.preset].options.get(config.method, {})
    given = {name: value for name, value in config.options.items() if name != "inputs"}
    return {name: value for name, value in given.items() if name not in of_preset or of_preset[name] != value}


def _count_epochs(run: Path, config: TrainConfig) -> int:
    """Return the epochs that `run` was trained for; an imported run counts as finished.

    Raises `UserError` if they are not known: a stopped run would be taken for a finished one.
    """
    epochs = len(read_metrics(run))
    if not epochs and "imported_from" not in read_environment(run):
        raise UserError(f"{run / METRICS} is missing, which says whether {run} was trained to its end: copy it too")
    return epochs or config.epochs


def describe_masks(masks: Masks) -> Masking:
    """Return how `masks` were sampled, and the hash of what they hide."""
    return Masking(rates=masks.rates, unit=masks.unit, seed=masks.seed, sha256=masks.sha256)


def _kind_of_weights(spec: FeatureSpec) -> str:
    if spec.is_imported:
        return IMPORTED
    weights = spec.constants.get("weights", {})
    return str(weights.get("weights", "none")) if isinstance(weights, dict) else str(weights)
