"""ShaSpec: what both modalities share stands in for the one that is missing; what is specific to it is left out.

It generates no features of the missing modality.
Source: Wang et al., "Multi-modal Learning with Missing Modality via Shared-Specific Feature Modelling", CVPR 2023.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.store.schema import MODALITIES
from train.data.batch import Batch
from train.data.scenarios import OTHER
from train.interfaces import Backbone, Representation
from train.methods.constant_answer import ConstantAnswer, encode_question
from train.methods.losses import answer_losses, mean_over_parts, weighted_sum
from train.networks.layers import masked_mean


class ShaSpec(nn.Module):
    """Fuse a shared and a specific encoding of each modality's steps; take the other's shared one where one is missing.

    Acts on the steps level: g = shared + fusion(shared, specific) replaces the steps of a modality that is there, the
    other's shared encoding those of one that is not; with both there, the backbone's own visual steps are added.
    Training draws for every complete question one of complete, audio missing, visual missing with equal chances:
    L = answer + alignment_weight x L1 of the two shared encodings + domain_weight x cross-entropy of telling the
    modality from its specific encoding. The backbone's match loss has no part: it needs features.

    Source: sections 3.2-3.4. Differs from the released code: that one segments images and aligns encodings of blank
    inputs too; here seconds that lack a modality enter neither extra loss. It fills in the first modality that is
    there, which with two of them is the other. What AVST gives as the step of a picture is grounded by the sound, where
    there is one. Losses are means over all questions, also those they leave out.
    """

    selection_scenarios = ("audio-missing", "visual-missing")
    sees = "thirds"
    trains_on = "all"

    def __init__(self, backbone: Backbone, *, alignment_weight: float = 0.1, domain_weight: float = 0.02) -> None:
        super().__init__()
        channels = backbone.channels
        self.backbone = backbone
        self.shared = _encoder(channels)
        self.specific = nn.ModuleDict({m: _encoder(channels) for m in MODALITIES})
        self.fusion = nn.Linear(2 * channels, channels)
        self.domain = nn.Linear(channels, len(MODALITIES))
        self.unseen = ConstantAnswer(backbone)
        self.weights = {"alignment": alignment_weight, "domain": domain_weight}

    def training_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return "answer", "alignment", "domain", "unseen" and "total", over what the draw left of the batch."""
        return mean_over_parts([(len(part), self._losses(part)) for _, part in batch.sample_missing()])

    def predict(self, batch: Batch) -> Tensor:
        """Return logits [batch, answer]; shared encodings stand in, with both missing the constants answer."""
        if not batch.present:
            return self.unseen.logits(self.backbone, encode_question(self.backbone, batch))
        representation = self.backbone.encode(batch)
        steps = self.backbone.steps(representation)
        return self.backbone.answer(self._entered(representation, steps, self._shared(steps))).logits

    def _losses(self, batch: Batch) -> dict[str, Tensor]:
        representation = self.backbone.encode(batch)
        losses = {"unseen": self.unseen.loss(self.backbone, representation, batch.answer)}
        if batch.present:
            steps = self.backbone.steps(representation)
            shared = self._shared(steps)
            entered = self._entered(representation, steps, shared)
            losses |= answer_losses(self.backbone, entered, batch.answer)
            losses["domain"] = self._domain_loss(representation, steps)
            if len(batch.present) == len(MODALITIES):
                losses["alignment"] = self._alignment_loss(representation, shared)
        return losses | {"total": weighted_sum(losses, self.weights)}

    def _shared(self, steps: dict[str, Tensor]) -> dict[str, Tensor]:
        return {modality: self.shared(values) for modality, values in steps.items()}

    def _entered(
        self, representation: Representation, steps: dict[str, Tensor], shared: dict[str, Tensor]
    ) -> Representation:
        """Return what the backbone answers from: steps [batch, time, channel] of both modalities."""
        fused = {
            m: shared[m] + self.fusion(torch.cat((shared[m], self.specific[m](values)), dim=-1))
            for m, values in steps.items()
        }
        if len(fused) == len(MODALITIES):
            fused["visual"] = fused["visual"] + steps["visual"]
        masks = dict(representation.masks)
        for missing in set(MODALITIES) - set(fused):
            fused[missing], masks[missing] = shared[OTHER[missing]], masks[OTHER[missing]]
        return replace(representation, steps=fused, masks=masks, negatives=None)

    def _domain_loss(self, representation: Representation, steps: dict[str, Tensor]) -> Tensor:
        """Return the cross-entropy (scalar) of naming each modality by the mean of its specific encoding."""
        losses = []
        for modality, values in steps.items():
            mean = masked_mean(self.specific[modality](values), representation.mask(modality, values))
            target = torch.full((len(mean),), MODALITIES.index(modality), device=mean.device)
            losses.append(F.cross_entropy(self.domain(mean), target))
        return torch.stack(losses).mean()

    def _alignment_loss(self, representation: Representation, shared: dict[str, Tensor]) -> Tensor:
        """Return the mean absolute difference (scalar) of the shared encodings of the seconds that have both."""
        both = representation.masks["audio"] & representation.masks["visual"]
        if not both.any():
            return representation.question.new_zeros(())
        return F.l1_loss(shared["audio"][both], shared["visual"][both])


def _encoder(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, channels))
