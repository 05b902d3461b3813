"""Constant fill: impute a learned constant, the control for methods that impute from the video and the question.

Source: ours, the control of `train.methods.rmm`, whose slots the paper's addressing averages to nearly one vector.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipeline.store.schema import MODALITIES
from train import processes
from train.data.scenarios import OTHER
from train.interfaces import Backbone, Representation
from train.methods.imputation import ImputingMethod, with_imputed


class ConstantFill(ImputingMethod):
    """Impute a missing modality with one learned step of features, the same for all steps of all videos.

    Trained as every `ImputingMethod`, also on questions that have only one modality in the data: L = sum of the three
    answer losses. The constants are initialised with the mean step of the first complete batch: zeros have no
    direction, so that a backbone that compares directions could not learn from them.
    Differs from the released code: it has no such mode.
    """

    def __init__(self, backbone: Backbone, *, match_imputed: bool = False) -> None:
        super().__init__(backbone, match_imputed=match_imputed)
        shapes = backbone.feature_shapes
        self.constants = nn.ParameterDict({m: nn.Parameter(torch.zeros(shapes[m])) for m in MODALITIES})
        self.register_buffer("placed", torch.zeros((), dtype=torch.bool))

    def impute(self, representation: Representation, missing: str) -> Representation:
        """Return `representation` with the constant of `missing` at each step of the available modality."""
        mask = representation.masks[OTHER[missing]]
        steps = self.constants[missing].expand(*mask.shape, *self.constants[missing].shape)
        return with_imputed(representation, {missing: steps}, OTHER[missing])

    def imputation_losses(
        self, representation: Representation, missing: Sequence[str], answer: Tensor
    ) -> dict[str, Tensor]:
        """Return the answer losses of each imputation."""
        if self.training and not missing and not self.get_buffer("placed"):
            self._initialise_constants(representation)
        completed = {m: self.impute(representation, m) for m in missing or MODALITIES}
        return self.imputed_answer_losses(completed, answer)

    @torch.no_grad()
    def _initialise_constants(self, representation: Representation) -> None:
        for modality, constant in self.constants.items():
            steps = representation.features[modality][representation.masks[modality]]
            mean = processes.mean_rows(steps)
            assert mean is not None
            constant.copy_(mean)
        self.get_buffer("placed").fill_(True)
