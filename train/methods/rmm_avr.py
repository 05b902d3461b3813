"""RMM and AVR together, the paper's method: recall the missing modality, refine both, let the backbone answer.

The parts are `train.methods.rmm` and `train.methods.avr`; here is only how they are joined, trained and used.
Source: "Learning Trimodal Relation for AVQA with Missing Modality" (ECCV 2024), section 3, Eq. 8.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.store.schema import MODALITIES
from train.data.scenarios import OTHER
from train.interfaces import Backbone, Representation
from train.methods.avr import (
    AudioVisualRefiner,
    DiffusionSizes,
    refine_loss,
    refine_settings,
    refined_features,
)
from train.methods.imputation import ImputingMethod, imputed_answer_losses, with_imputed
from train.methods.rmm import RelationMemory, observe, recall_loss, recall_settings, recalled_features


@dataclass(frozen=True)
class JoinSettings:
    """How the parts are joined.

    `refined_available`: the backbone is given the refined available modality too, not the real one (Eq. 8).
    `matched`: generated pairs take the backbone's match loss too (Eq. 8); negatives stay real, so a generated pair is
    told from them by its looks alone and the loss falls to 0 without teaching anything.
    `tied`: an extra loss ties both refined features of both cases to the real ones, element mean (not in the paper).
    """

    refined_available: bool
    matched: bool
    tied: bool


JOIN_VARIANTS = {
    "paper": JoinSettings(refined_available=True, matched=True, tied=False),
    "released": JoinSettings(refined_available=False, matched=True, tied=True),
    "recommended": JoinSettings(refined_available=True, matched=False, tied=False),
}


class RmmAvr(ImputingMethod):
    """Recall what is missing from slots, refine it with what is there, answer from both.

    Training asks every complete question three times, as it is and with either modality recalled and both refined:
    L = sum of the three answer losses + recall_weight x L_rmmr + refine_weight x L_ave. `variant`: "paper", the
    equations; "released", the released training step; "recommended", the mended equations. What a variant means for
    each part stands in `RECALL_VARIANTS`, `REFINE_VARIANTS` and `JOIN_VARIANTS`. Stages (`stages`): the backbone on
    complete data, then everything.

    Source: Eq. 8 and section 3 (inference). Differs from the released code: inference recalls with the slots and reads
    nothing of the missing modality (the released evaluation adds noise to the real features and never calls the
    slots); the chain adds no noise in evaluation, so that a prediction depends on its question and video alone; with
    both modalities missing no generator is called. The variant "released" is its training step but for the order of
    questions, which mixes samples there (`RelationMemory`).
    """

    variants = ("recommended", "paper", "released")

    def __init__(
        self,
        backbone: Backbone,
        *,
        variant: str = "recommended",
        slots: int = 75,
        steps: int = 10,
        schedule: str = "sigmoid",
        dim: int = 64,
        mults: Sequence[int] = (1, 2),
        stem_kernel: int = 7,
        width: int | None = None,
        gradient_steps: int | None = None,
        recompute: bool = False,
        recall_weight: float = 1.0,
        refine_weight: float = 1.0,
    ) -> None:
        recall, refine = recall_settings(variant), refine_settings(variant)
        sizes = DiffusionSizes(steps, schedule, dim, tuple(mults), stem_kernel, width, gradient_steps, recompute)
        shapes = backbone.feature_shapes
        super().__init__(
            backbone,
            loss_weights={"rmmr": recall_weight, "ave": refine_weight},
            trains_on="all" if recall.one_sided and refine.one_sided else "complete",
        )
        self.settings = JOIN_VARIANTS[variant]
        self.memory = RelationMemory(shapes, backbone.channels, slots=slots, settings=recall)
        self.refiner = AudioVisualRefiner(shapes, sizes=sizes, settings=refine)

    def impute(self, representation: Representation, missing: str) -> Representation:
        """Return `representation` with `missing` recalled from the slots and both modalities refined."""
        recalled = recalled_features(self.memory, representation, missing)
        return self._completed(representation, missing, self._refined(representation, missing, recalled))

    def imputation_losses(
        self, representation: Representation, missing: Sequence[str], answer: Tensor
    ) -> dict[str, Tensor]:
        """Return the losses with each modality imputed; of a complete batch also those of both parts.

        Source: Eq. 8.
        """
        if self.training and not missing:
            observe(self.memory, representation)
        losses = {} if missing else {"ave": refine_loss(self.refiner, representation)}
        recalled = {m: recalled_features(self.memory, representation, m) for m in missing or MODALITIES}
        refined = {m: self._refined(representation, m, features) for m, features in recalled.items()}
        completed = {m: self._completed(representation, m, features) for m, features in refined.items()}
        losses |= imputed_answer_losses(self.backbone, completed, answer)
        if missing:
            return losses
        losses["rmmr"] = recall_loss(self.memory, representation, recalled)
        if self.settings.tied:
            losses["tied"] = _tied_loss(representation, refined)
        return losses

    def _refined(self, representation: Representation, missing: str, recalled: Tensor) -> dict[str, Tensor]:
        pseudo = with_imputed(representation, {missing: recalled}, OTHER[missing])
        return refined_features(self.refiner, pseudo)

    def _completed(self, representation: Representation, missing: str, refined: Mapping[str, Tensor]) -> Representation:
        generated = refined if self.settings.refined_available else {missing: refined[missing]}
        completed = with_imputed(representation, generated, OTHER[missing])
        return completed if self.settings.matched else replace(completed, negatives=None)


def _tied_loss(representation: Representation, refined: Mapping[str, Mapping[str, Tensor]]) -> Tensor:
    """Return the sum of the four element means of squared differences between refined and real features."""
    both = representation.masks["audio"] & representation.masks["visual"]
    if not both.any():
        return representation.question.new_zeros(())
    differences = [
        F.mse_loss(features[m][both], representation.features[m][both])
        for features in refined.values()
        for m in MODALITIES
    ]
    return torch.stack(differences).sum()
