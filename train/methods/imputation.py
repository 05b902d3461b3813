"""What every method that generates a missing modality shares: rows of steps, running moments, answers and constants.

It generates nothing itself (`train.methods.rmm`, `train.methods.avr`). A generator works on single steps: a batch is
flattened sample by sample (row = sample x time + step) to the steps that are really there, so that a step that is not
there produces nothing and enters no loss.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from pipeline.store.schema import MODALITIES
from train.data.batch import Batch
from train.interfaces import Backbone, Representation, Stage
from train.methods.constant_answer import ConstantAnswer, encode_question
from train.methods.losses import answer_losses, weighted_sum

FASTEST_FORGETTING = 0.01
BACKBONE_STAGE = Stage("backbone", 0.5, ("backbone.", "unseen."))


class RunningMoments(nn.Module):
    """Remember mean and variance of every element of `shape`, over all rows seen in training.

    The first hundred updates count alike, from then on older ones fade by one hundredth at each. Nothing learns here.
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
        """Take in `rows` [row, *shape]."""
        self.updates += 1
        rate = max(1 / int(self.updates), FASTEST_FORGETTING)
        self.mean.lerp_(rows.mean(0).to(self.mean), rate)
        self.variance.lerp_((rows - self.mean).square().mean(0).to(self.variance), rate)


def repeat_question(question: Tensor, mask: Tensor) -> Tensor:
    """Return [row, channel]: the `question` [batch, channel] of each step where `mask` [batch, time] is True."""
    return question[mask.nonzero()[:, 0]]


def scatter_rows(rows: Tensor, mask: Tensor) -> Tensor:
    """Return [batch, time, ...] with `rows` [row, ...] where `mask` [batch, time] is True and zeros elsewhere."""
    values = rows.new_zeros(*mask.shape, *rows.shape[1:])
    values[mask] = rows
    return values


def with_imputed(representation: Representation, generated: Mapping[str, Tensor], available: str) -> Representation:
    """Return `representation` with `generated` {modality: [batch, time, ...]} as features.

    All features then have the mask of the `available` modality: a generated step is there where its source is.
    """
    mask = representation.masks[available]
    features = {**representation.features, **generated}
    return replace(representation, features=features, masks=dict.fromkeys(features, mask))


def plain_losses(
    backbone: Backbone, unseen: "ConstantAnswer", representation: Representation, batch: Batch
) -> dict[str, Tensor]:
    """Return the scalar losses by name of answering `batch`, encoded as `representation`, without any imputation.

    "unseen" trains the constants that answer with both modalities missing; a complete batch has the answer's
    cross-entropy and the backbone's own losses too.
    """
    losses = {"unseen": unseen.loss(backbone, representation, batch.answer)}
    if len(batch.present) == len(MODALITIES):
        losses |= answer_losses(backbone, representation, batch.answer)
    return losses


def imputed_answer_losses(
    backbone: Backbone, completed: Mapping[str, Representation], answer: Tensor
) -> dict[str, Tensor]:
    """Return losses "<modality>_missing_<name>" of answering `completed` {missing modality: representation}."""
    return {
        f"{modality}_missing_{name}": loss
        for modality, representation in completed.items()
        for name, loss in answer_losses(backbone, representation, answer).items()
    }


class ImputingMethod(nn.Module):
    """Base of the methods that impute the features of a missing modality and let the backbone answer from both.

    A subclass says what is imputed (`impute`) and what that costs in training (`imputation_losses`); its parts lie
    beside `backbone` and `unseen`. Training asks every complete question three times, as it is and with either
    modality imputed: L = sum of the three answer losses + the method's own losses, each times its weight in
    `loss_weights`. Stages: the backbone on complete data, then everything.
    """

    selection_scenarios = ("audio-missing", "visual-missing")
    sees = "replaced"

    def __init__(
        self, backbone: Backbone, *, loss_weights: Mapping[str, float] | None = None, trains_on: str = "all"
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.unseen = ConstantAnswer(backbone)
        self.loss_weights = dict(loss_weights or {})
        self.trains_on = trains_on
        self.stage = "all"

    def impute(self, representation: Representation, missing: str) -> Representation:
        """Return `representation` with features of both modalities; those of `missing` are not read."""
        raise NotImplementedError

    def imputation_losses(
        self, representation: Representation, missing: Sequence[str], answer: Tensor
    ) -> dict[str, Tensor]:
        """Return the scalar losses by name with each modality imputed: the one of `missing`, or both in turn."""
        raise NotImplementedError

    def stages(self) -> tuple[Stage, ...]:
        """Return the backbone on complete data, then everything."""
        return BACKBONE_STAGE, Stage("all", 0.5)

    def enter(self, stage: str) -> None:
        """Begin the stage of this name: in "backbone" nothing is imputed."""
        self.stage = stage

    def training_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the named scalar losses; "total" is their weighted sum.

        "unseen" trains the constants that answer with both modalities missing, and nothing else.
        """
        representation = self.backbone.encode(batch)
        losses = plain_losses(self.backbone, self.unseen, representation, batch)
        if batch.present and self.stage != BACKBONE_STAGE.name:
            missing = [m for m in MODALITIES if m not in batch.present]
            losses |= self.imputation_losses(representation, missing, batch.answer)
        return losses | {"total": weighted_sum(losses, self.loss_weights)}

    def predict(self, batch: Batch) -> Tensor:
        """Return logits [batch, answer]: a missing modality is imputed; with both missing the constants answer."""
        if not batch.present:
            return self.unseen.logits(self.backbone, encode_question(self.backbone, batch))
        return self.backbone.answer(self.complete(batch)).logits

    def complete(self, batch: Batch) -> Representation:
        """Return the features of both modalities of a batch that has one; a missing one is imputed."""
        representation = self.backbone.encode(batch)
        for missing in set(MODALITIES) - set(batch.present):
            representation = self.impute(representation, missing)
        return representation
