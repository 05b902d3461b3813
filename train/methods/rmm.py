"""RMM: impute the features of a missing modality as a weighted sum of learned slots, one time step at a time.

The weights come from the available modality and the question. AVR, which refines features, is in `train.methods.avr`;
both together are in `train.methods.rmm_avr`.
Source: "Learning Trimodal Relation for AVQA with Missing Modality" (ECCV 2024), section 3.1, Eq. 1-4.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.errors import unknown_name
from pipeline.store.schema import MODALITIES
from train import processes
from train.data.scenarios import OTHER
from train.interfaces import Backbone, Representation
from train.methods.imputation import (
    AvailableSteps,
    ImputingMethod,
    RunningMoments,
    matches_imputed,
    with_imputed,
)
from train.methods.losses import Weight

Addressing = Literal["paper", "cosine", "centred"]
Combination = Literal["paper_softmax", "normalised_product", "tau"]
RecallError = Literal["sum", "mean", "share"]
# With a higher sharpness a single real step is recalled instead of what similar steps share, and training corrects this
# slowly: on the demo's features the recall error grows above 1, where the largest weight is ten times the smallest.
START_SHARPNESS = 1.0
SMALLEST_VARIANCE = 1e-6
# Closer to the mean, as in a first batch of one question, a feature has only the direction of its rounding error, and
# the gradient of a cosine no bound.
SMALLEST_DISTANCE = 1e-3


@dataclass(frozen=True)
class RecallSettings:
    """Settings of `RelationMemory`; `RECALL_VARIANTS` lists them for "paper", "released" and "recommended".

    `addressing`: score of a feature x against each slot g. "paper": x . g / sqrt(question channels) (Eq. 1). "cosine":
    their cosine. "centred": their cosine after subtracting the running mean of x from both, times a learned sharpness.
    `combination`: weights from the addresses a (available modality) and b (question), each a softmax of scores.
    "paper_softmax": softmax(a b). "tau": softmax(a b / tau). "normalised_product": a b / sum(a b).
    `error`: reduction of the squared errors of a step's elements, before the mean over steps. "sum" (Eq. 3). "mean".
    "share": the mean divided by the mean running variance of the real features.
    `detached`: L_rmmr gives no gradient to the real features, its targets.
    `placed`: slots are initialised with real steps of the first training batches, not from N(0, 1).
    """

    addressing: Addressing
    combination: Combination
    error: RecallError
    detached: bool
    placed: bool
    tau: float = 1.0


RECALL_VARIANTS = {
    "paper": RecallSettings("paper", "paper_softmax", "mean", detached=False, placed=False),
    "released": RecallSettings("cosine", "paper_softmax", "mean", detached=False, placed=False),
    "recommended": RecallSettings("centred", "normalised_product", "share", detached=True, placed=True),
}


class RelationMemory(nn.Module):
    """L learned slots per modality (question, audio, visual); slot j of the three is one trimodal relation.

    A step of a missing modality is recalled as the weighted sum of that modality's slots. The same slots serve both
    missing cases. `shapes`: {"audio" | "visual": shape of one step}. `question_channels`: c of the paper. 7,603,200
    parameters for 75 slots, 512 channels and 14 x 14 maps (plus one sharpness per modality if "centred").

    Source: section 3.1, Eq. 1-2. Differs from the released code: each step is addressed with the question of its own
    sample (the released code orders questions by time but features by sample, so that it mixes samples); any number of
    steps and any shapes. The variant "paper" addresses by the dot product of Eq. 1, the released code by the cosine.
    "recommended" fixes the collapse of the slots. It uses the normalised product, because the softmax of a product of
    two probabilities is nearly uniform for any input (largest over smallest weight at most e, with the cosine 1.0083).
    It subtracts the running mean, which all features share, from features and slots before comparing them, because
    slots are both keys and values. It initialises slots with real steps.
    """

    placed: Tensor

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        question_channels: int,
        *,
        slots: int = 75,
        settings: RecallSettings = RECALL_VARIANTS["recommended"],
    ) -> None:
        super().__init__()
        self.shapes = {modality: tuple(shapes[modality]) for modality in MODALITIES}
        self.settings, self.channels = settings, question_channels
        sizes = {"question": question_channels} | {m: math.prod(s) for m, s in self.shapes.items()}
        self.slots = nn.ParameterDict({name: nn.Parameter(torch.randn(slots, n)) for name, n in sizes.items()})
        self.moments = nn.ModuleDict({name: RunningMoments(n) for name, n in sizes.items()})
        if settings.addressing == "centred":
            sharpness = math.log(START_SHARPNESS)
            self.log_sharpness = nn.ParameterDict({name: nn.Parameter(torch.tensor(sharpness)) for name in sizes})
        self.register_buffer("placed", torch.zeros((), dtype=torch.long))

    def recall(self, missing: str, available: Tensor, question: Tensor) -> Tensor:
        """Return the recalled features [row, *shape] of `missing`, the paper's pseudo features.

        `available` [row, ...]: steps of the other modality; `question` [row, channel]: the question of each step.
        Source: Eq. 2.
        """
        weights = self.weights(OTHER[missing], available, question)
        return (weights @ self.slots[missing]).unflatten(1, self.shapes[missing])

    def weights(self, modality: str, available: Tensor, question: Tensor) -> Tensor:
        """Return the weight of each slot [row, slot] for the steps `available` of `modality` and their questions.

        The weights of a row are positive and sum to one. Source: Eq. 1 and the text before Eq. 2.
        """
        scores = self._scores(modality, available.flatten(1)), self._scores("question", question)
        if self.settings.combination == "normalised_product":
            return (scores[0] + scores[1]).softmax(-1)
        product = scores[0].softmax(-1) * scores[1].softmax(-1)
        return (product / (self.settings.tau if self.settings.combination == "tau" else 1.0)).softmax(-1)

    def error(self, missing: str, recalled: Tensor, real: Tensor) -> Tensor:
        """Return the scalar error of the `recalled` features of `missing` against the `real` ones, both [row, *shape].

        Source: Eq. 3, L_a for audio and L_v for visual.
        """
        real = real.detach() if self.settings.detached else real
        errors = (recalled - real).square().flatten(1)
        if self.settings.error == "sum":
            return errors.sum(1).mean()
        if self.settings.error == "mean":
            return errors.mean()
        return errors.mean() / self._moments(missing).variance.mean().clamp_min(SMALLEST_VARIANCE)

    @torch.no_grad()
    def observe(self, real: Mapping[str, Tensor], samples: int) -> None:
        """Update the running moments, if used, with real steps, and initialise slots with them if `placed` is set.

        `real`: {"question" | "audio" | "visual": [row, ...]} of a training batch of `samples` questions. Until all
        slots are initialised, each call copies the features of up to `samples` steps, spread over the batch, to slots.
        """
        flat = {name: values.flatten(1) for name, values in real.items()}
        if self.settings.addressing == "centred" or self.settings.error == "share":
            for name, values in flat.items():
                self._moments(name).update(values)
        if not self.settings.placed:
            return
        first = int(self.placed)
        if first == len(self.slots["question"]):
            return
        rows, samples = map(sum, zip(*processes.collect((len(flat["question"]), samples)), strict=True))
        count = min(len(self.slots["question"]) - first, samples, rows)
        chosen = (torch.arange(count, device=flat["question"].device) * rows // max(count, 1) + first) % max(rows, 1)
        for name, values in flat.items():
            self.slots[name][first : first + count] = processes.select_rows(values, chosen).to(self.slots[name])
        self.placed += count

    def _moments(self, name: str) -> RunningMoments:
        moments = self.moments[name]
        assert isinstance(moments, RunningMoments)
        return moments

    def _scores(self, name: str, rows: Tensor) -> Tensor:
        slots = self.slots[name]
        if self.settings.addressing == "paper":
            return rows @ slots.T / math.sqrt(self.channels)
        if self.settings.addressing == "cosine":
            return F.normalize(rows, dim=1) @ F.normalize(slots, dim=1).T
        mean = self._moments(name).mean
        rows, slots = (F.normalize(values - mean, dim=1, eps=SMALLEST_DISTANCE) for values in (rows, slots))
        cosine = rows @ slots.T
        return cosine * self.log_sharpness[name].exp()


def recalled_features(memory: RelationMemory, representation: Representation, missing: str) -> Tensor:
    """Return the recalled features [batch, time, ...] of `missing`, zeros where the other modality has no step."""
    steps = AvailableSteps(representation.masks[OTHER[missing]])
    available = steps.take(representation.features[OTHER[missing]])
    return steps.put(memory.recall(missing, available, steps.repeat(representation.question)))


def recall_loss(memory: RelationMemory, representation: Representation, recalled: Mapping[str, Tensor]) -> Tensor:
    """Return L_rmmr (scalar) over the steps where both modalities are available; 0 if there is none. Source: Eq. 3-4.

    `recalled`: {modality: [batch, time, ...]}, from `recalled_features`.
    """
    both = AvailableSteps.of_both(representation)
    if not len(both):
        return representation.question.new_zeros(())
    errors = [memory.error(m, both.take(recalled[m]), both.take(representation.features[m])) for m in MODALITIES]
    return torch.stack(errors).sum()


def observe(memory: RelationMemory, representation: Representation) -> None:
    """Call `memory.observe` with the steps of a complete training batch where both modalities are available."""
    both = AvailableSteps.of_both(representation)
    real = {m: both.take(representation.features[m]) for m in MODALITIES}
    memory.observe({"question": both.repeat(representation.question), **real}, len(representation.question))


def recall_settings(variant: str, **choices: Any) -> RecallSettings:
    """Return the settings of `variant`, with the `choices` that are not None.

    Raises `UserError` if the variant is unknown.
    """
    if variant not in RECALL_VARIANTS:
        raise unknown_name("variant", variant, RECALL_VARIANTS)
    return replace(RECALL_VARIANTS[variant], **{name: one for name, one in choices.items() if one is not None})


class Rmm(ImputingMethod):
    """Impute a missing modality with RMM alone, without AVR.

    Imputes the features of the missing modality from the features of the available one and the question. Trained as
    every `ImputingMethod`: L = sum of the three answer losses + recall_weight x L_rmmr (Eq. 3-4, named "rmmr").
    `slots`: L of the paper. `variant`: see `RecallSettings` and `RECALL_VARIANTS`, of which
    `recall_error` and `placed` replace two. `match_imputed`: see `ImputingMethod`; default: not in "recommended".
    Source: section 3.1, the row "RMM" of table 4. Differs from the released code: it has no such mode.
    """

    variants = ("recommended", "paper", "released")

    def __init__(
        self,
        backbone: Backbone,
        *,
        variant: str = "recommended",
        slots: PositiveInt = 75,
        recall_weight: Weight = 1.0,
        recall_error: RecallError | None = None,
        placed: bool | None = None,
        match_imputed: bool | None = None,
    ) -> None:
        settings = recall_settings(variant, error=recall_error, placed=placed)
        super().__init__(
            backbone,
            loss_weights={"rmmr": recall_weight},
            match_imputed=matches_imputed(variant, match_imputed),
        )
        self.memory = RelationMemory(backbone.feature_shapes, backbone.channels, slots=slots, settings=settings)

    def impute(self, representation: Representation, missing: str) -> Representation:
        """Return `representation` with the features of `missing` recalled from the slots."""
        recalled = recalled_features(self.memory, representation, missing)
        return with_imputed(representation, {missing: recalled}, OTHER[missing])

    def imputation_losses(
        self, representation: Representation, missing: Sequence[str], answer: Tensor
    ) -> dict[str, Tensor]:
        """Return the answer losses of each imputation and, for a complete batch, "rmmr" (L_rmmr)."""
        if self.training and not missing:
            observe(self.memory, representation)
        completed = {m: self.impute(representation, m) for m in missing or MODALITIES}
        losses = self.imputed_answer_losses(completed, answer)
        if missing:
            return losses
        recalled = {m: completed[m].features[m] for m in MODALITIES}
        return losses | {"rmmr": recall_loss(self.memory, representation, recalled)}
