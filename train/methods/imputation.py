"""Shared parts of the methods that impute the features of a missing modality: base class, moments, losses, rows.

The methods are `train.methods.rmm`, `train.methods.avr`, `train.methods.rmm_avr` and `train.methods.constant_fill`.
Imputation works on single time steps: features [batch, time, ...] are flattened to the available steps as rows
[row, ...], sample by sample (`AvailableSteps`), so that masked steps impute nothing and enter no loss.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from pipeline.store.schema import MODALITIES
from train import processes
from train.data.batch import Batch
from train.interfaces import Backbone, Representation, Stage
from train.methods.both_missing import ConstantAnswer
from train.methods.losses import answer_losses, with_total

SMALLEST_UPDATE_RATE = 0.01
BACKBONE_STAGE = Stage("backbone", 0.5, ("backbone.", "unseen."))


class RunningMoments(nn.Module):
    """Running mean and variance of each element of `shape` over all training rows, without gradient.

    The first hundred updates have equal weight; from then on each update has weight 0.01.
    """

    mean: Tensor
    variance: Tensor
    updates: Tensor

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("variance", torch.ones(shape))
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def update(self, rows: Tensor) -> None:
        """Update the moments with `rows` [row, *shape] and those of the other processes; no effect without any."""
        mean = processes.mean_rows(rows)
        if mean is None:
            return
        self.updates += 1
        rate = (1 / self.updates.to(self.mean.dtype)).clamp_min(SMALLEST_UPDATE_RATE)
        self.mean.lerp_(mean.to(self.mean), rate)
        variance = processes.mean_rows((rows - self.mean).square())
        assert variance is not None
        self.variance.lerp_(variance.to(self.variance), rate)


class AvailableSteps:
    """The steps where `mask`, bool [batch, time], is True, as rows: row = sample x time + step, without the others.

    If all steps are available, as in most batches, rows are views. A GPU is waited for here only, not at each use.
    """

    def __init__(self, mask: Tensor) -> None:
        self._shape = mask.shape
        self._rows = torch.arange(mask.numel(), device=mask.device)
        self._is_all = bool(mask.all())
        if not self._is_all:
            self._rows = self._rows[mask.flatten()]

    @classmethod
    def of_both(cls, representation: Representation) -> "AvailableSteps":
        """Return the steps where both modalities of `representation` are available."""
        return cls(representation.masks["audio"] & representation.masks["visual"])

    def __len__(self) -> int:
        return len(self._rows)

    def take(self, values: Tensor) -> Tensor:
        """Return the rows [row, ...] of `values` [batch, time, ...]."""
        rows = values.flatten(0, 1)
        return rows if self._is_all else rows[self._rows]

    def put(self, rows: Tensor) -> Tensor:
        """Return [batch, time, ...] with `rows` [row, ...] at their steps and zeros elsewhere."""
        if not self._is_all:
            values = rows.new_zeros(math.prod(self._shape), *rows.shape[1:])
            rows = values.index_copy(0, self._rows, rows)
        return rows.unflatten(0, self._shape)

    def repeat(self, question: Tensor) -> Tensor:
        """Return the `question` [batch, channel] of each row, [row, channel]."""
        return question[self._rows // self._shape[1]]


def with_imputed(representation: Representation, imputed: Mapping[str, Tensor], available: str) -> Representation:
    """Return `representation` with `imputed` {modality: [batch, time, ...]} as its features.

    All features then have the mask of the `available` modality, from which they are imputed.
    """
    features = {**representation.features, **imputed}
    return replace(representation, features=features, masks=dict.fromkeys(features, representation.masks[available]))


def plain_losses(
    backbone: Backbone, unseen: ConstantAnswer, representation: Representation, batch: Batch
) -> dict[str, Tensor]:
    """Return the scalar losses of answering `batch`, encoded as `representation`, without imputation.

    "unseen" trains the constants that answer if both modalities are missing. A complete batch also has "answer", the
    cross-entropy, and the backbone's own losses.
    """
    losses = {"unseen": unseen.loss(backbone, representation, batch.answer)}
    if len(batch.available) == len(MODALITIES):
        losses |= answer_losses(backbone, representation, batch.answer)
    return losses


def matches_imputed(variant: str, choice: bool | None) -> bool:
    """Return `choice`, by default whether a variant of RMM and AVR computes the match loss on imputed pairs (Eq. 8)."""
    return variant != "recommended" if choice is None else choice


class ImputingMethod(nn.Module):
    """Base of the methods that impute the features of a missing modality; the backbone answers from both.

    Acts on the features level. Subclasses implement `impute` and `imputation_losses`; their modules are next to
    `backbone` and `unseen`, the learned constants that answer if both modalities are missing. In training, each
    complete question is answered three times, with both modalities, with audio imputed and with visual imputed:
    L = sum of the three answer losses (cross-entropy and the backbone's own losses) + the method's own losses, each
    times its weight in `loss_weights`, + "unseen". A question with one modality is answered once, with the other
    imputed. Stages: the backbone on complete data without imputation, then all parameters.

    `match_imputed`: the backbone's match loss is computed on imputed pairs, too. Negatives are real, so that an imputed
    pair is recognised by its appearance alone, and the loss falls to 0 without any benefit.
    """

    selection_scenarios = ("audio-missing", "visual-missing")
    sees = "all"
    trains_on = "all"

    def __init__(
        self,
        backbone: Backbone,
        *,
        loss_weights: Mapping[str, float] | None = None,
        match_imputed: bool = False,
    ) -> None:
        super().__init__()
        self.backbone, self.match_imputed = backbone, match_imputed
        self.unseen = ConstantAnswer(backbone)
        self.loss_weights = dict(loss_weights or {})
        self.stage = "all"

    def impute(self, representation: Representation, missing: str) -> Representation:
        """Return `representation` with the features of both modalities; those of `missing` are imputed, never read."""
        raise NotImplementedError

    def imputation_losses(
        self, representation: Representation, missing: Sequence[str], answer: Tensor
    ) -> dict[str, Tensor]:
        """Return the scalar losses of imputing `missing`, or of imputing each modality if `missing` is empty."""
        raise NotImplementedError

    def stages(self) -> tuple[Stage, ...]:
        """Return the stages: the backbone on complete data, then all parameters."""
        return BACKBONE_STAGE, Stage("all", 0.5)

    def enter(self, stage: str) -> None:
        """Start the stage of this name; nothing is imputed in "backbone"."""
        self.stage = stage

    def training_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the scalar losses by name; "total" is their weighted sum.

        "unseen" trains only the constants that answer if both modalities are missing.
        """
        representation = self.backbone.encode(batch)
        losses = plain_losses(self.backbone, self.unseen, representation, batch)
        if batch.available and self.stage != BACKBONE_STAGE.name:
            missing = [m for m in MODALITIES if m not in batch.available]
            losses |= self.imputation_losses(representation, missing, batch.answer)
        return with_total(losses, self.loss_weights)

    def imputed_answer_losses(self, completed: Mapping[str, Representation], answer: Tensor) -> dict[str, Tensor]:
        """Return the losses "<modality>_missing_<name>" of answering from `completed` {missing modality: ...}.

        <name> is "answer" or one of the backbone's own losses.
        """
        losses = {}
        for modality, representation in completed.items():
            representation = representation if self.match_imputed else replace(representation, negatives=None)
            for name, loss in answer_losses(self.backbone, representation, answer).items():
                losses[f"{modality}_missing_{name}"] = loss
        return losses

    def predict(self, batch: Batch) -> Tensor:
        """Return logits [batch, answer] from both modalities, one of them imputed if missing, or from the constants."""
        if not batch.available:
            return self.unseen.predict(self.backbone, batch)
        return self.backbone.answer(self.complete(batch)).logits

    def complete(self, batch: Batch) -> Representation:
        """Return the features of both modalities, one of them imputed if missing; `batch` has at least one."""
        representation = self.backbone.encode(batch)
        for missing in set(MODALITIES) - set(batch.available):
            representation = self.impute(representation, missing)
        return representation
