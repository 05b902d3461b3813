"""A learned constant in the place of what a generator would make: what is it worth to generate at all?

It reads nothing of the video or the question to make it.
Source: ours, the control of `train.methods.rmm`, whose slots the paper's addressing mixes into nearly one vector.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from train.data.batch import MODALITIES, Batch
from train.interfaces import Backbone, Representation, Stage
from train.methods.imputation import (
    BACKBONE_FIRST,
    OTHER,
    ConstantAnswer,
    complete_batch,
    completed_losses,
    losses_with_missing,
    predict_completed,
    rows_of,
    total_of,
    with_generated,
)


class ConstantFill(nn.Module):
    """Answer with one learned step of features, the same for every second of every video, for a missing modality.

    Training asks every complete question three times, as it is and with either modality replaced, as `rmm` does:
    L = sum of the three answer losses, and the backbone's own for what is complete. Questions that lack a modality by
    nature are used. The constants begin as the mean step of the first complete batch: a step of zeros has no direction,
    which a backbone that compares directions could not learn from.
    Differs from the released code: it has no such mode.
    """

    selection_scenarios = ("audio-missing", "visual-missing")
    trains_on = "all"

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        shapes = backbone.feature_shapes
        self.constants = nn.ParameterDict({m: nn.Parameter(torch.zeros(shapes[m])) for m in MODALITIES})
        self.register_buffer("placed", torch.zeros((), dtype=torch.bool))
        self.unseen = ConstantAnswer(backbone)
        self.stage = "all"

    def stages(self) -> tuple[Stage, ...]:
        """Return the backbone on complete data, then everything."""
        return BACKBONE_FIRST

    def enter(self, stage: str) -> None:
        """Begin the stage of this name: in "backbone" nothing is replaced."""
        self.stage = stage

    def training_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the named scalar losses; "total" is their sum."""
        later = None if self.stage == "backbone" else self._missing_losses
        losses = losses_with_missing(self.backbone, self.unseen, batch, later)
        return losses | {"total": total_of(losses, {})}

    def predict(self, batch: Batch) -> Tensor:
        """Return logits [batch, answer]; a missing modality is the constant, with none left others answer."""
        return predict_completed(self.backbone, self.unseen, batch, self.complete)

    def complete(self, batch: Batch) -> Representation:
        """Return the features of both modalities of a batch that has one; a missing one is the constant."""
        return complete_batch(self.backbone, batch, self._completed)

    def _missing_losses(self, representation: Representation, missing: list[str], answer: Tensor) -> dict[str, Tensor]:
        if self.training and not missing and not self.get_buffer("placed"):
            self._place(representation)
        completed = {m: self._completed(representation, m) for m in missing or MODALITIES}
        return completed_losses(self.backbone, completed, answer)

    def _completed(self, representation: Representation, missing: str) -> Representation:
        mask = representation.masks[OTHER[missing]]
        steps = self.constants[missing].expand(*mask.shape, *self.constants[missing].shape)
        return replace(with_generated(representation, {missing: steps}, OTHER[missing]), negatives=None)

    @torch.no_grad()
    def _place(self, representation: Representation) -> None:
        for modality, constant in self.constants.items():
            steps = rows_of(representation.features[modality], representation.masks[modality])
            constant.copy_(steps.mean(0))
        self.get_buffer("placed").fill_(True)
