"""What a model starts from, before its first step: the whitening of its inputs, and the weights of another run.

It trains nothing and reads only the training split, with what the run's masks hide left out.
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
    """Give the backbone's whitenings mean and covariance of every feature's stored channels over the split's videos."""
    sums: dict[str, torch.Tensor] = {}
    products: dict[str, torch.Tensor] = {}
    counts: dict[str, int] = {}
    _, first_questions = np.unique([q.video_id for q in dataset.questions], return_index=True)
    for batch in dataset.batches(BATCH_SIZE, None, masks, first_questions):
        for modality in batch.present:
            for name, values in (batch.features(modality) or {}).items():
                seen = values[batch.mask(modality)].double()
                axis = 1 if backbone.input_whitening[name].axis == 0 else -1
                channels = seen.movedim(axis, -1).flatten(0, -2)
                sums[name] = sums.get(name, torch.zeros(())) + channels.sum(0)
                products[name] = products.get(name, torch.zeros(())) + channels.T @ channels
                counts[name] = counts.get(name, 0) + len(channels)
    for name in (name for modality in MODALITIES for name in backbone.needs[modality] if name in counts):
        mean = sums[name] / counts[name]
        backbone.input_whitening[name].set(mean, products[name] / counts[name] - torch.outer(mean, mean))


def start_from(module: nn.Module, run: Path) -> None:
    """Give the method's backbone the weights (and input whitening) of the trained backbone in `run`.

    Raises `UserError` where the run is missing or its backbone is another one.
    """
    tensors, _ = read_tensors(run / CHECKPOINT)
    own = {name: values for name, values in tensors.items() if name.startswith(BACKBONE_PREFIX)}
    try:
        module.load_state_dict(own, strict=False)
    except RuntimeError as error:
        raise UserError(f"cannot start from {run}: {one_line(error)}") from None
    expected = {name for name in module.state_dict() if name.startswith(BACKBONE_PREFIX)}
    if expected != own.keys():
        raise UserError(f"cannot start from {run}: its backbone has other parts ({sorted(expected ^ own.keys())[:3]})")
