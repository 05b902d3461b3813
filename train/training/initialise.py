"""Initialisation of a model before training: the whitening of its inputs, and the weights of another run.

Whitening uses only the training split, without the modalities that the run's masks hide.
"""

from collections.abc import Collection, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pipeline.errors import UserError, one_line
from pipeline.store.schema import MODALITIES
from train.data.dataset import QuestionDataset
from train.interfaces import Backbone, MissingModalityMethod
from train.runs.config import TrainConfig
from train.runs.folder import CHECKPOINT, LAST, is_finished, read_config, read_tensors
from train.runs.log import read_metrics

BATCH_SIZE = 64
BACKBONE_PREFIX = "backbone."
WHITENING_MATRICES = "backbone.input_whitening.*.matrix"


def whiten_inputs(backbone: Backbone, dataset: QuestionDataset, masks: Mapping[str, Collection[str]]) -> None:
    """Set the backbone's input whitening from mean and covariance of each feature's channels over the split's videos.

    `masks`: {question id: hidden modalities}.
    """
    sums: dict[str, torch.Tensor] = {}
    products: dict[str, torch.Tensor] = {}
    counts: dict[str, int] = {}
    _, first_questions = np.unique([q.video_id for q in dataset.questions], return_index=True)
    for batch in dataset.batches(BATCH_SIZE, None, masks, first_questions):
        for modality in batch.available:
            for name, values in (batch.features(modality) or {}).items():
                steps = values[batch.mask(modality)].double()
                axis = 1 if backbone.input_whitening[name].axis == 0 else -1
                channels = steps.movedim(axis, -1).flatten(0, -2)
                sums[name] = sums.get(name, torch.zeros(())) + channels.sum(0)
                products[name] = products.get(name, torch.zeros(())) + channels.T @ channels
                counts[name] = counts.get(name, 0) + len(channels)
    for name in (name for modality in MODALITIES for name in backbone.needs[modality] if name in counts):
        mean = sums[name] / counts[name]
        backbone.input_whitening[name].set(mean, products[name] / counts[name] - torch.outer(mean, mean))


def check_start(config: TrainConfig, method: MissingModalityMethod, run: Path) -> None:
    """Raise `UserError` if the backbone of `run` would start as another one, or frozen and untrained.

    The run to start from is not checked before it exists: a sweep trains it first.
    """
    is_frozen = config.training == "joint" and getattr(method, "freezes_backbone", False)
    cure = "start from a run that answers from all inputs (--start-from), or train in stages (--preset paper)"
    if is_frozen and not config.start_from:
        raise UserError(f"method {config.method!r} trains on a frozen backbone, which would stay random: {cure}")
    start = run.parent / config.start_from
    if not config.start_from or not (start / "config.json").exists():
        return
    settings = read_config(start)
    given, needed = settings.model_dump(mode="json"), config.model_dump(mode="json")
    for name in ("backbone", "heads", "backbone_options", "map_size"):  # the same tensors, but other outputs
        if given[name] != needed[name]:
            raise UserError(
                f"cannot start from {start}: it was trained with {name} = {given[name]!r}, not {needed[name]!r}"
            )
    if is_frozen and (settings.objective != "answer" or settings.inputs != "all"):
        raise UserError(
            f"method {config.method!r} trains on a frozen backbone, of which {start} trained only a part: {cure}"
        )


def start_from(module: nn.Module, run: Path, whiten: bool) -> set[str]:
    """Load what `run` trained of its backbone, and its input whitening, into the backbone of the method `module`.

    Return the names of the parameters that were loaded. The others, such as the question encoder after grounding
    pre-training, keep their initial values, which depend on the seed.
    Raises `UserError` if the run is missing, was stopped or has a different backbone, or if only one of both runs
    whitens its inputs; `whiten`: whether this one does.
    """
    tensors, facts = read_tensors(run / CHECKPOINT)
    settings = read_config(run)
    if "imported" not in facts and not is_finished(run, settings):
        done = f"{len(read_metrics(run))} of {settings.epochs} epochs"
        raise UserError(
            f"cannot start from {run}: it was stopped after {done}, finish it first (mavqa-train --resume --out {run})"
        )
    backbone = {name: values for name, values in tensors.items() if name.startswith(BACKBONE_PREFIX)}
    parameters = {name for name, _ in module.named_parameters()} & backbone.keys()
    is_whitened = any(fnmatch(name, WHITENING_MATRICES) for name in backbone)
    if is_whitened != whiten:
        raise UserError(
            f"cannot start from {run} with whiten = {whiten}: it was trained on inputs that are "
            f"{'whitened' if is_whitened else 'not whitened'}; pass --set whiten={str(is_whitened).lower()}"
        )
    trained = _trained_parameters(run, facts, parameters)
    loaded = {name: values for name, values in backbone.items() if name in trained or name not in parameters}
    try:
        module.load_state_dict(loaded, strict=False)
    except RuntimeError as error:
        raise UserError(f"cannot start from {run}: {one_line(error)}") from None
    differing = sorted(backbone.keys() ^ {name for name in module.state_dict() if name.startswith(BACKBONE_PREFIX)})
    if differing:
        raise UserError(f"cannot start from {run}: its backbone has other tensors, such as {', '.join(differing[:3])}")
    return trained


def _trained_parameters(run: Path, facts: Mapping[str, Any], names: set[str]) -> set[str]:
    """Return which of the parameters `names` were trained by `run`, or by the run that it started from.

    Runs of versions that did not record them trained all, except pre-training: that trained those with moments.
    """
    if "trained" in facts:
        return names & set(facts["trained"])
    if read_config(run).objective == "answer":
        return names
    if not (run / LAST).exists():
        raise UserError(f"cannot start from {run}: what it trained is not recorded, train or import it again")
    state, _ = read_tensors(run / LAST)
    return {name for name in names if f"adam/{name}/exp_avg" in state}
