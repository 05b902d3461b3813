"""RMM: recall a missing modality from slots that the available one and the question point at, step by step.

It recalls features; it does not refine them (`train.methods.avr`, `train.methods.rmm_avr`).
Source: "Learning Trimodal Relation for AVQA with Missing Modality" (ECCV 2024), section 3.1, Eq. 1-4.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.errors import UserError
from pipeline.store.schema import MODALITIES
from train.data.scenarios import OTHER
from train.interfaces import Backbone, Representation
from train.methods.imputation import (
    ImputingMethod,
    RunningMoments,
    imputed_answer_losses,
    repeat_question,
    scatter_rows,
    with_imputed,
)

Addressing = Literal["paper", "cosine", "centred"]
Combination = Literal["paper_softmax", "normalised_product", "tau"]
RecallError = Literal["sum", "mean", "share"]
# Sharper slots recall one real step rather than what steps like this one share, and training unlearns it slowly: on the
# demo's features the error of recall grows from 1 on (FINDINGS.md), where the largest weight is some ten times the
# smallest.
START_SHARPNESS = 1.0
SMALLEST_VARIANCE = 1e-6


@dataclass(frozen=True)
class RecallSettings:
    """How slots are addressed, how two addresses become weights, and what counts as an error of recall.

    `addressing`: "paper", product over the root of the channels; "cosine"; "centred", cosine of what differs from the
    running mean, times a learned sharpness. `combination` of the addresses a, b (each sums to one): "paper_softmax",
    softmax(a b); "tau", softmax(a b / tau); "normalised_product", a b over its sum. `error`: squared error, "sum"
    over the features of a step, "mean" over them, or "share", the mean over the mean variance of the real features.
    `detached`: the real features are targets only. `placed`: slots start as real steps. `one_sided`: training
    questions on videos that lack a modality are used too.
    """

    addressing: Addressing
    combination: Combination
    error: RecallError
    detached: bool
    placed: bool
    one_sided: bool
    tau: float = 1.0


RECALL_VARIANTS = {
    "paper": RecallSettings("paper", "paper_softmax", "sum", detached=False, placed=False, one_sided=False),
    "released": RecallSettings("cosine", "paper_softmax", "mean", detached=False, placed=False, one_sided=False),
    "recommended": RecallSettings("centred", "normalised_product", "share", detached=True, placed=True, one_sided=True),
}


class RelationMemory(nn.Module):
    """Slots per modality that stand for one another: slot j of each is one trimodal relation.

    `shapes`: {"audio" | "visual": shape of one step}. `question_channels`: the paper's c. 7,603,200 parameters for
    75 slots, 512 channels and 14 x 14 maps (two more, the sharpness of two addresses each, where centred).

    Source: Eq. 1-2. Differs from the released code: a question stands beside its own sample's steps (the released
    code lays questions out time by time and features sample by sample, so it mixes samples), any number of steps and
    any shapes; "paper" addresses by the paper's product, the released code by the cosine. "recommended" mends the
    collapse of the slots: the softmax of a product of two probabilities is nearly uniform (largest over smallest
    weight at most e, with the cosine 1.0083), whatever was seen, so the normalised product takes its place; slots
    serve as keys and as values, so keys are compared without what all features share; and slots start as real steps.
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
        """Return the pseudo features [row, *shape] of `missing`.

        `available` [row, ...]: steps of the other modality; `question` [row, channel]: the question of each step.
        Source: Eq. 2.
        """
        weights = self.weights(OTHER[missing], available, question)
        return (weights @ self.slots[missing]).unflatten(1, self.shapes[missing])

    def weights(self, modality: str, available: Tensor, question: Tensor) -> Tensor:
        """Return how much of each slot is recalled [row, slot], from steps of `modality` and their questions.

        The weights of a row are positive and sum to one. Source: Eq. 1 and the text before Eq. 2.
        """
        scores = self._scores(modality, available.flatten(1)), self._scores("question", question)
        if self.settings.combination == "normalised_product":
            return (scores[0] + scores[1]).softmax(-1)
        product = scores[0].softmax(-1) * scores[1].softmax(-1)
        return (product / (self.settings.tau if self.settings.combination == "tau" else 1.0)).softmax(-1)

    def error(self, missing: str, recalled: Tensor, real: Tensor) -> Tensor:
        """Return the scalar error of `recalled` against `real` features of `missing`, both [row, *shape].

        Source: Eq. 3, one of its two halves.
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
        """Take in real steps {"question" | "audio" | "visual": [row, ...]} of a training batch of `samples` questions.

        Their moments are remembered; while slots are still to be placed (at most one per question and batch, spread
        over the batch), a slot takes the three features of one real step.
        """
        flat = {name: values.flatten(1) for name, values in real.items()}
        for name, values in flat.items():
            self._moments(name).update(values)
        if not self.settings.placed:
            return
        first, rows = int(self.placed), len(flat["question"])
        count = min(len(self.slots["question"]) - first, samples, rows)
        chosen = (torch.arange(count) * rows // max(count, 1) + first) % max(rows, 1)
        for name, values in flat.items():
            self.slots[name][first : first + count] = values[chosen.to(values.device)].to(self.slots[name])
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
        cosine = F.normalize(rows - mean, dim=1) @ F.normalize(slots - mean, dim=1).T
        return cosine * self.log_sharpness[name].exp()


def recalled_features(memory: RelationMemory, representation: Representation, missing: str) -> Tensor:
    """Return the features [batch, time, ...] that `memory` recalls for `missing`, zero where its source has no step."""
    mask = representation.masks[OTHER[missing]]
    available = representation.features[OTHER[missing]][mask]
    question = repeat_question(representation.question, mask)
    return scatter_rows(memory.recall(missing, available, question), mask)


def recall_loss(memory: RelationMemory, representation: Representation, recalled: Mapping[str, Tensor]) -> Tensor:
    """Return L_rmmr (scalar) over the steps where both modalities are there. Source: Eq. 3-4.

    `recalled`: {modality: [batch, time, ...]}, from `recalled_features`.
    """
    both = representation.masks["audio"] & representation.masks["visual"]
    if not both.any():
        return representation.question.new_zeros(())
    errors = [memory.error(m, recalled[m][both], representation.features[m][both]) for m in MODALITIES]
    return torch.stack(errors).sum()


def observe(memory: RelationMemory, representation: Representation) -> None:
    """Show `memory` the real steps of a complete training batch."""
    both = representation.masks["audio"] & representation.masks["visual"]
    real = {m: representation.features[m][both] for m in MODALITIES}
    if both.any():
        memory.observe({"question": repeat_question(representation.question, both), **real}, len(both))


def recall_settings(variant: str) -> RecallSettings:
    """Return the settings of `variant`; UserError where it is unknown."""
    if variant not in RECALL_VARIANTS:
        raise UserError(f"variant {variant!r} is unknown; take one of {', '.join(RECALL_VARIANTS)}")
    return RECALL_VARIANTS[variant]


class Rmm(ImputingMethod):
    """Answer from recalled features where a modality is missing; the generator without the diffusion.

    Training asks every complete question three times, as it is and with either modality recalled, and adds the
    recalling loss: L = sum of the three answer losses + recall_weight x L_rmmr.
    Source: section 3.1, the row "RMM" of table 4. Differs from the released code: it has no such mode.
    """

    variants = ("recommended", "paper", "released")

    def __init__(
        self, backbone: Backbone, *, variant: str = "recommended", slots: int = 75, recall_weight: float = 1.0
    ) -> None:
        settings = recall_settings(variant)
        trains_on = "all" if settings.one_sided else "complete"
        super().__init__(backbone, loss_weights={"rmmr": recall_weight}, trains_on=trains_on)
        self.memory = RelationMemory(backbone.feature_shapes, backbone.channels, slots=slots, settings=settings)

    def impute(self, representation: Representation, missing: str) -> Representation:
        """Return `representation` with the features of `missing` recalled from the slots."""
        recalled = recalled_features(self.memory, representation, missing)
        return with_imputed(representation, {missing: recalled}, OTHER[missing])

    def imputation_losses(
        self, representation: Representation, missing: Sequence[str], answer: Tensor
    ) -> dict[str, Tensor]:
        """Return the answer losses with each modality recalled and, of a complete batch, "rmmr" (L_rmmr)."""
        if self.training and not missing:
            observe(self.memory, representation)
        completed = {m: self.impute(representation, m) for m in missing or MODALITIES}
        losses = imputed_answer_losses(self.backbone, completed, answer)
        if missing:
            return losses
        recalled = {m: completed[m].features[m] for m in MODALITIES}
        return losses | {"rmmr": recall_loss(self.memory, representation, recalled)}
