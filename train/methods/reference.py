"""Reference models that never see a modality: question only, question and audio, question and visual.

They are trained and evaluated without the modality, and so show what a missing-modality method gains.
Source: the AVST paper's ablation by inputs (rows Q, A+Q, V+Q), the fair reference for missing-modality tables.
"""

from dataclasses import replace
from typing import Literal

from torch import Tensor, nn

from pipeline.store.schema import MODALITIES
from train.data.batch import Batch
from train.interfaces import Backbone, Representation
from train.methods.exposure import Exposure, exposed_losses
from train.methods.losses import answer_losses, with_total
from train.networks.layers import LearnedConstants

# The inputs of a model that does not see all.
Restriction = Literal["question", "audio,question", "visual,question"]


class Reference(nn.Module):
    """Answer from `inputs` only; a learned constant at the pooled level replaces every other modality.

    `inputs`: "question", "audio,question" or "visual,question". If the allowed modality of a question is missing, its
    constant is used too, in training and in evaluation. L = the backbone's answer losses. `exposure`: None answers each
    training question once, as it is; else as other methods do, for comparisons at their exposure.
    Differs from the released code: the AVST release has no such mode; its paper does not say what replaces a modality.
    """

    selection_scenarios = ("complete",)
    trains_on = "all"
    uses_negatives = False

    def __init__(
        self, backbone: Backbone, *, inputs: Restriction = "question", exposure: Exposure | None = None
    ) -> None:
        super().__init__()
        self.backbone, self.exposure = backbone, exposure
        self.sees = exposure or "nothing"
        self.hidden = tuple(m for m in MODALITIES if m not in inputs.split(","))
        self.constants = LearnedConstants(backbone)

    def training_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return "answer", the backbone's own losses and "total"."""
        if self.exposure:
            return exposed_losses(batch, self.exposure, self._losses)
        return with_total(self._losses(batch))

    def predict(self, batch: Batch) -> Tensor:
        """Return logits [batch, answer]."""
        return self.backbone.answer(self._encode(batch)).logits

    def _losses(self, batch: Batch) -> dict[str, Tensor]:
        return answer_losses(self.backbone, self._encode(batch), batch.answer)

    def _encode(self, batch: Batch) -> Representation:
        representation = self.backbone.encode(batch.without(*self.hidden))
        missing = tuple(m for m in MODALITIES if m not in representation.features)
        return replace(representation, pooled=self.constants(missing, len(batch)))
