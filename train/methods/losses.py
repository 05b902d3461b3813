"""The losses that methods share: of an answer, over parts of a batch, and their weighted sum."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from train.interfaces import Backbone, Representation

UNKNOWN_ANSWER = -1


def answer_losses(backbone: Backbone, representation: Representation, answer: Tensor) -> dict[str, Tensor]:
    """Return "answer", the cross-entropy, and the backbone's own weighted losses, all scalars, by name."""
    answered = backbone.answer(representation)
    return {"answer": cross_entropy(answered.logits, answer), **answered.losses}


def cross_entropy(logits: Tensor, answer: Tensor) -> Tensor:
    """Return the mean cross-entropy of `logits` [batch, answer] over the rows whose answer is in the frozen list."""
    known = (answer != UNKNOWN_ANSWER).sum().clamp_min(1)
    return F.cross_entropy(logits, answer, ignore_index=UNKNOWN_ANSWER, reduction="sum") / known


def weighted_sum(losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Return the sum of the scalar `losses`, each times its weight (one where none is given)."""
    return torch.stack([weights.get(name, 1.0) * loss for name, loss in losses.items()]).sum()


def mean_over_parts(parts: list[tuple[int, dict[str, Tensor]]]) -> dict[str, Tensor]:
    """Return the mean over questions of the losses of (questions, losses) parts; a loss that a part lacks is zero."""
    questions = sum(count for count, _ in parts)
    combined: dict[str, Tensor] = {}
    for count, losses in parts:
        for name, loss in losses.items():
            combined[name] = combined.get(name, loss.new_zeros(())) + loss * (count / questions)
    return combined
