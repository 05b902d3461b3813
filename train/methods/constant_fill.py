"""A learned constant in the place of what a generator would make: what is it worth to generate at all?

It reads nothing of the video or the question to make it.
Source: ours, the control of `train.methods.rmm`, whose slots the paper's addressing mixes into nearly one vector.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from pipeline.store.schema import MODALITIES
from train.data.scenarios import OTHER
from train.interfaces import Backbone, Representation
from train.methods.imputation import ImputingMethod, imputed_answer_losses, with_imputed


class ConstantFill(ImputingMethod):
    """Answer with one learned step of features, the same for every second of every video, for a missing modality.

    Training asks every complete question three times, as it is and with either modality replaced, as `rmm` does:
    L = sum of the three answer losses, and the backbone's own for what is complete. Questions that lack a modality by
    nature are used. The constants begin as the mean step of the first complete batch: a step of zeros has no direction,
    which a backbone that compares directions could not learn from.
    Differs from the released code: it has no such mode.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__(backbone)
        shapes = backbone.feature_shapes
        self.constants = nn.ParameterDict({m: nn.Parameter(torch.zeros(shapes[m])) for m in MODALITIES})
        self.register_buffer("placed", torch.zeros((), dtype=torch.bool))

    def impute(self, representation: Representation, missing: str) -> Representation:
        """Return `representation` with the constant in every step of the available modality."""
        mask = representation.masks[OTHER[missing]]
        steps = self.constants[missing].expand(*mask.shape, *self.constants[missing].shape)
        return replace(with_imputed(representation, {missing: steps}, OTHER[missing]), negatives=None)

    def imputation_losses(
        self, representation: Representation, missing: Sequence[str], answer: Tensor
    ) -> dict[str, Tensor]:
        """Return the answer losses with each modality replaced."""
        if self.training and not missing and not self.get_buffer("placed"):
            self._place(representation)
        completed = {m: self.impute(representation, m) for m in missing or MODALITIES}
        return imputed_answer_losses(self.backbone, completed, answer)

    @torch.no_grad()
    def _place(self, representation: Representation) -> None:
        for modality, constant in self.constants.items():
            steps = representation.features[modality][representation.masks[modality]]
            constant.copy_(steps.mean(0))
        self.get_buffer("placed").fill_(True)
