"""ShaSpec: a shared and a specific encoding of each modality; the shared one also imputes the other modality.

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
from train.methods.both_missing import ConstantAnswer
from train.methods.exposure import Exposure, exposed_losses
from train.methods.imputation import AvailableSteps
from train.methods.losses import Weight, answer_losses
from train.networks.layers import masked_mean


class ShaSpec(nn.Module):
    """Fuse the shared and the specific encoding of each modality; impute a missing modality by the shared encoding.

    Acts on the steps level: g = shared + fusion(shared, specific) replaces the steps of an available modality, the
    other's shared encoding those of a missing one; if both are available, the backbone's own visual steps are added.
    Training answers each complete question under the conditions of `exposure`: L = cross-entropy of the answer
    ("answer") + alignment_weight x L1 distance of the two shared encodings ("alignment", the mean over complete
    questions) + domain_weight x cross-entropy of classifying the modality by its specific encoding ("domain") +
    "unseen", which trains the constants that answer if both modalities are missing. There is no match loss, which needs
    features.

    Source: sections 3.2-3.4. Differs from the released code: that segments images, and also aligns encodings of blank
    inputs; here steps without a modality enter neither extra loss. The release imputes from the first available
    modality, which is the other one if there are two. AVST's visual steps are grounded by the audio if it is available.
    """

    selection_scenarios = ("audio-missing", "visual-missing")
    trains_on = "all"
    uses_negatives = False

    def __init__(
        self,
        backbone: Backbone,
        *,
        alignment_weight: Weight = 0.1,
        domain_weight: Weight = 0.02,
        exposure: Exposure = "sampled",
    ) -> None:
        super().__init__()
        channels = backbone.channels
        self.backbone, self.sees = backbone, exposure
        self.shared = _encoder(channels)
        self.specific = nn.ModuleDict({m: _encoder(channels) for m in MODALITIES})
        self.fusion = nn.Linear(2 * channels, channels)
        self.domain = nn.Linear(channels, len(MODALITIES))
        self.unseen = ConstantAnswer(backbone)
        self.weights = {"alignment": alignment_weight, "domain": domain_weight}

    def training_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return "answer", "alignment", "domain", "unseen" and "total"."""
        return exposed_losses(batch, self.sees, self._losses, weights=self.weights, conditional=("alignment",))

    def predict(self, batch: Batch) -> Tensor:
        """Return logits [batch, answer]; a missing modality is imputed; with both missing, the constants answer."""
        if not batch.available:
            return self.unseen.predict(self.backbone, batch)
        representation = self.backbone.encode(batch)
        steps = self.backbone.steps(representation)
        return self.backbone.answer(self._fused(representation, steps, self._shared(steps))).logits

    def _losses(self, batch: Batch) -> dict[str, Tensor]:
        representation = self.backbone.encode(batch)
        losses = {"unseen": self.unseen.loss(self.backbone, representation, batch.answer)}
        if batch.available:
            steps = self.backbone.steps(representation)
            shared = self._shared(steps)
            fused = self._fused(representation, steps, shared)
            losses |= answer_losses(self.backbone, fused, batch.answer)
            losses["domain"] = self._domain_loss(representation, steps)
            if len(batch.available) == len(MODALITIES):
                losses["alignment"] = self._alignment_loss(representation, shared)
        return losses

    def _shared(self, steps: dict[str, Tensor]) -> dict[str, Tensor]:
        return {modality: self.shared(values) for modality, values in steps.items()}

    def _fused(
        self, representation: Representation, steps: dict[str, Tensor], shared: dict[str, Tensor]
    ) -> Representation:
        """Return the representation with fused or imputed steps [batch, time, channel] of both modalities."""
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
        """Return the cross-entropy (scalar) of classifying each modality by the mean of its specific encoding."""
        losses = []
        for modality, values in steps.items():
            mean = masked_mean(self.specific[modality](values), representation.mask(modality, values))
            target = torch.full((len(mean),), MODALITIES.index(modality), device=mean.device)
            losses.append(F.cross_entropy(self.domain(mean), target))
        return torch.stack(losses).mean()

    def _alignment_loss(self, representation: Representation, shared: dict[str, Tensor]) -> Tensor:
        """Return the mean absolute difference (scalar) of the shared encodings where both modalities are available."""
        both = AvailableSteps.of_both(representation)
        if not len(both):
            return representation.question.new_zeros(())
        return F.l1_loss(both.take(shared["audio"]), both.take(shared["visual"]))


def _encoder(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, channels))
