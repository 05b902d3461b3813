"""RMM and AVR together, the paper's method: impute the missing modality with RMM, refine both modalities with AVR.

The parts are in `train.methods.rmm` and `train.methods.avr`; this module combines and trains them.
Source: "Learning Trimodal Relation for AVQA with Missing Modality" (ECCV 2024), section 3, Eq. 8.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field, PositiveInt
from torch import Tensor
from torch.nn import functional as F

from pipeline.store.schema import MODALITIES
from train.data.scenarios import OTHER
from train.interfaces import Backbone, Representation
from train.methods.avr import (
    AudioVisualRefiner,
    DiffusionSizes,
    Join,
    RefineError,
    refine_loss,
    refine_settings,
    refined_features,
)
from train.methods.imputation import AvailableSteps, ImputingMethod, matches_imputed, with_imputed
from train.methods.losses import Weight
from train.methods.rmm import (
    RecallError,
    RelationMemory,
    observe,
    recall_loss,
    recall_settings,
    recalled_features,
)


@dataclass(frozen=True)
class JoinSettings:
    """How RMM, AVR and the backbone are combined; `JOIN_VARIANTS` lists the variants.

    `refined_available`: the backbone answers from the refined features of the available modality, not the real ones
    (Eq. 8).
    `tied`: an extra loss "tied" pulls the refined features of both missing cases to the real ones; not in the paper.
    """

    refined_available: bool
    tied: bool


JOIN_VARIANTS = {
    "paper": JoinSettings(refined_available=True, tied=False),
    "released": JoinSettings(refined_available=False, tied=True),
    "recommended": JoinSettings(refined_available=True, tied=False),
}


class RmmAvr(ImputingMethod):
    """Impute a missing modality with RMM, refine the features of both modalities with AVR, answer from them.

    RMM imputes from the available modality and the question; AVR refines the imputed and the available features
    together. Trained as every `ImputingMethod`: L = sum of the three answer losses + recall_weight x L_rmmr (Eq. 3-4,
    named "rmmr") + refine_weight x L_ave (Eq. 7, named "ave"). `slots`: L of the paper. `steps` to `recompute`: see
    `DiffusionSizes`. `variant`: "paper", the equations; "released", the released training step; "recommended", the
    equations with fixes; their settings are in `RECALL_VARIANTS`, `REFINE_VARIANTS` and `JOIN_VARIANTS`. What the paper
    leaves open and a variant decides, `recall_error` to `match_imputed` decide otherwise; see `Rmm` and `Avr`.

    Source: Eq. 8 and section 3 (inference). Differs from the released code: evaluation imputes with the slots and reads
    nothing of the missing modality (the released evaluation adds noise to the real features and never uses the slots);
    the reverse chain adds no noise in evaluation, so that a prediction depends on its question and video only; if both
    modalities are missing, learned constants answer. The variant "released" is the released training step except for
    the order of the questions, which mixes samples there (`RelationMemory`).
    """

    variants = ("recommended", "paper", "released")

    def __init__(
        self,
        backbone: Backbone,
        *,
        variant: str = "recommended",
        slots: PositiveInt = 75,
        steps: PositiveInt = 10,
        dim: PositiveInt = 64,
        mults: Annotated[Sequence[PositiveInt], Field(min_length=1)] = (1, 2),
        stem_kernel: PositiveInt = 7,
        width: PositiveInt | None = None,
        gradient_steps: PositiveInt | None = None,
        recompute: bool = False,
        recall_weight: Weight = 1.0,
        refine_weight: Weight = 1.0,
        recall_error: RecallError | None = None,
        placed: bool | None = None,
        refine_error: RefineError | None = None,
        schedule: str | None = None,
        join: Join | None = None,
        clamp: bool | None = None,
        match_imputed: bool | None = None,
    ) -> None:
        recall = recall_settings(variant, error=recall_error, placed=placed)
        refine = refine_settings(variant, error=refine_error, schedule=schedule, join=join, clamp=clamp)
        sizes = DiffusionSizes(steps, dim, tuple(mults), stem_kernel, width, gradient_steps, recompute)
        shapes = backbone.feature_shapes
        super().__init__(
            backbone,
            loss_weights={"rmmr": recall_weight, "ave": refine_weight},
            match_imputed=matches_imputed(variant, match_imputed),
        )
        self.settings = JOIN_VARIANTS[variant]
        self.memory = RelationMemory(shapes, backbone.channels, slots=slots, settings=recall)
        self.refiner = AudioVisualRefiner(shapes, sizes=sizes, settings=refine)
        self.diffusion_steps = self.refiner.first_step + 1

    def impute(self, representation: Representation, missing: str) -> Representation:
        """Return `representation` with `missing` recalled from the slots and both modalities refined."""
        recalled = {missing: recalled_features(self.memory, representation, missing)}
        return self._completed(representation, missing, self._refined(representation, recalled)[missing])

    def imputation_losses(
        self, representation: Representation, missing: Sequence[str], answer: Tensor
    ) -> dict[str, Tensor]:
        """Return the answer losses of each imputation and, for a complete batch, "rmmr", "ave" and "tied" (if set).

        Source: Eq. 8.
        """
        if self.training and not missing:
            observe(self.memory, representation)
        losses = {} if missing else {"ave": refine_loss(self.refiner, representation)}
        recalled = {m: recalled_features(self.memory, representation, m) for m in missing or MODALITIES}
        refined = self._refined(representation, recalled)
        completed = {m: self._completed(representation, m, features) for m, features in refined.items()}
        losses |= self.imputed_answer_losses(completed, answer)
        if missing:
            return losses
        losses["rmmr"] = recall_loss(self.memory, representation, recalled)
        if self.settings.tied:
            losses["tied"] = _tied_loss(representation, refined)
        return losses

    def _refined(self, representation: Representation, recalled: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """Return {missing modality: refined features of both modalities}, each {modality: [batch, time, ...]}.

        `recalled`: {missing modality: its recalled features}. All are refined by one chain.
        """
        completed = [with_imputed(representation, {m: values}, OTHER[m]) for m, values in recalled.items()]
        return dict(zip(recalled, refined_features(self.refiner, completed), strict=True))

    def _completed(self, representation: Representation, missing: str, refined: Mapping[str, Tensor]) -> Representation:
        """Return the representation that the backbone answers from."""
        imputed = refined if self.settings.refined_available else {missing: refined[missing]}
        return with_imputed(representation, imputed, OTHER[missing])


def _tied_loss(representation: Representation, refined: Mapping[str, Mapping[str, Tensor]]) -> Tensor:
    """Return the sum (scalar) of the mean squared errors of the four refined features against the real ones.

    `refined`: {missing modality: {modality: [batch, time, ...]}}.
    """
    both = AvailableSteps.of_both(representation)
    if not len(both):
        return representation.question.new_zeros(())
    differences = [
        F.mse_loss(both.take(features[m]), both.take(representation.features[m]))
        for features in refined.values()
        for m in MODALITIES
    ]
    return torch.stack(differences).sum()
