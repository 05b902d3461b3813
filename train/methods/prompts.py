"""Missing-aware prompts: a frozen backbone is told what is missing by learned keys and values beside the real ones.

The missing modality itself is shown as zeros.
Source: Lee et al., "Multimodal Prompting with Missing Modalities for Visual Recognition", CVPR 2023.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from pipeline.store.schema import MODALITIES
from train.data.batch import Batch
from train.data.scenarios import SAMPLED_MISSING
from train.interfaces import Backbone, Representation, Stage
from train.methods.constant_answer import ConstantAnswer, encode_question, frozen
from train.methods.filling import Filling
from train.methods.imputation import BACKBONE_STAGE, plain_losses
from train.methods.losses import answer_losses, mean_over_parts, weighted_sum


class MissingAwarePrompts(nn.Module):
    """Let the question attend to prompts of the state that a video is in: complete, audio missing, visual missing.

    Prompts [state, prompt, channel] of each modality join the keys and values of the backbone's pooling. What comes
    before the pooled vectors is frozen; prompts and the backbone's answer layers learn, from questions whose state is
    drawn with equal chances: L = the cross-entropy of the answer. Stages (`stages`): the backbone on complete data,
    then prompts; trained in one stage it must start from a trained run (`--start-from`).

    Source: section 3.3, attention-level prompts. Differs from the released code: that one prompts the first six of a
    transformer's twelve layers, a backbone here has one pooling; a missing modality is zeros, as it is for every
    method here, where the release shows a white picture or an empty text; prompts learn at the rate of the run, where
    the release takes a hundred times that of its backbone.
    """

    selection_scenarios = ("audio-missing", "visual-missing")
    sees = "thirds"
    trains_on = "all"

    def __init__(self, backbone: Backbone, *, prompts: int = 16) -> None:
        super().__init__()
        self.backbone = backbone
        self.filling = Filling(backbone, "zeros")
        start = torch.zeros(len(SAMPLED_MISSING), prompts, backbone.channels)
        for state in range(min(len(SAMPLED_MISSING), prompts)):
            start[state, state] = 1
        self.prompts = nn.ParameterDict({m: nn.Parameter(start.clone()) for m in MODALITIES})
        self.unseen = ConstantAnswer(backbone)
        self.stage = "prompts"

    def stages(self) -> tuple[Stage, ...]:
        """Return the backbone on complete data, then prompts and answer layers."""
        return BACKBONE_STAGE, Stage("prompts", 0.5)

    def enter(self, stage: str) -> None:
        """Begin the stage of this name: in "backbone" there are no prompts."""
        self.stage = stage

    def training_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return "answer", "unseen" and "total" (in the stage "backbone" the backbone's own losses)."""
        if self.stage == "backbone":
            losses = plain_losses(self.backbone, self.unseen, self.backbone.encode(batch), batch)
            return losses | {"total": weighted_sum(losses, {})}
        return mean_over_parts([(len(part), self._losses(part)) for _, part in batch.sample_missing()])

    def predict(self, batch: Batch) -> Tensor:
        """Return logits [batch, answer]; with both modalities missing the constants answer."""
        if not batch.present:
            return self.unseen.logits(self.backbone, encode_question(self.backbone, batch))
        return self.backbone.answer(self._prompted(batch)).logits

    def _losses(self, batch: Batch) -> dict[str, Tensor]:
        question = encode_question(self.backbone, batch)
        losses = {"unseen": self.unseen.loss(self.backbone, question, batch.answer)}
        if batch.present:
            losses |= answer_losses(self.backbone, self._prompted(batch), batch.answer)
        return losses | {"total": weighted_sum(losses, {})}

    def _prompted(self, batch: Batch) -> Representation:
        """Return the pooled level of the filled batch, through which only the prompts get a gradient."""
        state = SAMPLED_MISSING.index(tuple(m for m in MODALITIES if m not in batch.present))
        with frozen(self.backbone):
            representation = self.backbone.encode(self.filling.complete(batch))
            pooled = self.backbone.pool(representation, {m: self.prompts[m][state] for m in MODALITIES})
        return replace(representation, pooled=pooled, negatives=None)
