"""Missing-aware prompts: learned keys and values that indicate the missing modality to a frozen backbone.

The missing modality itself is filled with zeros.
Source: Lee et al., "Multimodal Prompting with Missing Modalities for Visual Recognition", CVPR 2023.
"""

from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from pipeline.store.schema import MODALITIES
from train.data.batch import Batch
from train.data.scenarios import SAMPLED_MISSING
from train.interfaces import Backbone, Representation, Stage
from train.methods.both_missing import ConstantAnswer, encode_question, frozen
from train.methods.exposure import Exposure, exposed_losses
from train.methods.filling import Filling
from train.methods.imputation import BACKBONE_STAGE, plain_losses
from train.methods.losses import answer_losses, with_total


class MissingAwarePrompts(nn.Module):
    """Add prompts for the state of a question (complete, audio missing, visual missing) to the backbone's pooling.

    The prompts [state, prompt, channel] of each modality join the keys and values that the question attends to. The
    layers before the pooled vectors are frozen; prompts and the backbone's answer layers are trained on questions under
    the conditions of `exposure`: L = cross-entropy of the answer ("answer") + "unseen", which trains the constants that
    answer if both modalities are missing. Stages: the backbone on complete data, then prompts; without stages, training
    must start from a trained run (`freezes_backbone`). `prompt_rate`: learning rate of the prompts in the first epoch.

    Source: section 3.3, attention-level prompts. Differs from the released code: that prompts the first six of a
    transformer's twelve layers, while a backbone here has one pooling; a missing modality is filled with zeros, not
    with a white image or an empty text; the answer layers, which the backbone's training has begun, have the learning
    rate of the run, not that of the prompts.
    """

    selection_scenarios = ("audio-missing", "visual-missing")
    trains_on = "all"
    freezes_backbone = True

    def __init__(
        self,
        backbone: Backbone,
        *,
        prompts: PositiveInt = 16,
        prompt_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.01,
        exposure: Exposure = "sampled",
    ) -> None:
        super().__init__()
        self.backbone, self.sees = backbone, exposure
        self.learning_rates = {"prompts.": prompt_rate}
        self.filling = Filling(backbone, "zeros")
        start = torch.zeros(len(SAMPLED_MISSING), prompts, backbone.channels)
        for state in range(min(len(SAMPLED_MISSING), prompts)):
            start[state, state] = 1
        self.prompts = nn.ParameterDict({m: nn.Parameter(start.clone()) for m in MODALITIES})
        self.unseen = ConstantAnswer(backbone)
        self.stage = "prompts"

    @property
    def uses_negatives(self) -> bool:
        """Whether the present stage trains the match loss of the backbone."""
        return self.stage == "backbone"

    def stages(self) -> tuple[Stage, ...]:
        """Return the backbone on complete data, then prompts and answer layers."""
        return BACKBONE_STAGE, Stage("prompts", 0.5)

    def enter(self, stage: str) -> None:
        """Start the stage of this name; "backbone" uses no prompts."""
        self.stage = stage

    def training_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return "answer", "unseen" and "total"; in the stage "backbone" also the backbone's own losses."""
        if self.stage == "backbone":
            return with_total(plain_losses(self.backbone, self.unseen, self.backbone.encode(batch), batch))
        return exposed_losses(batch, self.sees, self._losses)

    def predict(self, batch: Batch) -> Tensor:
        """Return logits [batch, answer]; if both modalities are missing, the constants answer."""
        if not batch.available:
            return self.unseen.predict(self.backbone, batch)
        return self.backbone.answer(self._prompted(batch)).logits

    def _losses(self, batch: Batch) -> dict[str, Tensor]:
        question = encode_question(self.backbone, batch)
        losses = {"unseen": self.unseen.loss(self.backbone, question, batch.answer)}
        if batch.available:
            losses |= answer_losses(self.backbone, self._prompted(batch), batch.answer)
        return losses

    def _prompted(self, batch: Batch) -> Representation:
        """Return the prompted pooled vectors of the filled batch; only the prompts get a gradient from them."""
        state = SAMPLED_MISSING.index(tuple(m for m in MODALITIES if m not in batch.available))
        with frozen(self.backbone):
            representation = self.backbone.encode(self.filling.fill_missing(batch))
            pooled = self.backbone.pool(representation, {m: self.prompts[m][state] for m in MODALITIES})
        return replace(representation, pooled=pooled, negatives=None)
