"""Losses that several methods share: of an answer, averaged over parts of a batch, and their weighted sum."""

from collections.abc import Callable, Mapping
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from train.data.batch import Batch
from train.interfaces import Backbone, Representation

UNKNOWN_ANSWER = -1

# The weight of a loss among others.
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def answer_losses(backbone: Backbone, representation: Representation, answer: Tensor) -> dict[str, Tensor]:
    """Return "answer", the cross-entropy, and the backbone's own weighted losses by name, all scalars."""
    answered = backbone.answer(representation)
    return {"answer": cross_entropy(answered.logits, answer), **answered.losses}


def cross_entropy(logits: Tensor, answer: Tensor) -> Tensor:
    """Return the mean cross-entropy of `logits` [batch, answer] over the rows whose answer is in the vocabulary."""
    known = (answer != UNKNOWN_ANSWER).sum().clamp_min(1)
    return F.cross_entropy(logits, answer, ignore_index=UNKNOWN_ANSWER, reduction="sum") / known


def weighted_sum(losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Return the sum of the scalar `losses`, each times its weight (default 1)."""
    return torch.stack([weights.get(name, 1.0) * loss for name, loss in losses.items()]).sum()


def sampled_losses(batch: Batch, losses_of: Callable[[Batch], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Sample the missing modality of each question and return the mean losses over all questions of `batch`.

    `losses_of` returns the scalar losses of one part of `Batch.sample_missing`: complete, audio missing or visual
    missing.
    """
    return mean_over_parts([(len(part), losses_of(part)) for _, part in batch.sample_missing()])


def mean_over_parts(parts: list[tuple[int, dict[str, Tensor]]]) -> dict[str, Tensor]:
    """Return the mean losses over all questions of `parts`, (number of questions, losses) each.

    A loss that is missing in a part counts as zero there.
    """
    questions = sum(count for count, _ in parts)
    combined: dict[str, Tensor] = {}
    for count, losses in parts:
        for name, loss in losses.items():
            combined[name] = combined.get(name, loss.new_zeros(())) + loss * (count / questions)
    return combined
