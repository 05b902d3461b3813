"""Initialisation of a model before training: the whitening of its inputs, and the weights of another run.

Whitening uses only the training split, without the modalities that the run's masks hide.
"""

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn

from pipeline.errors import UserError, one_line
from pipeline.store.schema import MODALITIES
from train.data.dataset import QuestionDataset
from train.interfaces import Backbone
from train.runs.folder import CHECKPOINT, read_tensors

BATCH_SIZE = 64
BACKBONE_PREFIX = "backbone."


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


def start_from(module: nn.Module, run: Path) -> None:
    """Load the weights and input whitening of the trained backbone of `run` into the backbone of the method `module`.

    Raises `UserError` if the run is missing or has a different backbone.
    """
    tensors, _ = read_tensors(run / CHECKPOINT)
    backbone = {name: values for name, values in tensors.items() if name.startswith(BACKBONE_PREFIX)}
    try:
        module.load_state_dict(backbone, strict=False)
    except RuntimeError as error:
        raise UserError(f"cannot start from {run}: {one_line(error)}") from None
    differing = sorted(backbone.keys() ^ {name for name in module.state_dict() if name.startswith(BACKBONE_PREFIX)})
    if differing:
        raise UserError(f"cannot start from {run}: its backbone has other tensors, such as {', '.join(differing[:3])}")
