"""Losses that several methods share: of an answer, and their weighted sum."""

from collections.abc import Mapping
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

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


def with_total(losses: Mapping[str, Tensor], weights: Mapping[str, float] | None = None) -> dict[str, Tensor]:
    """Return the scalar `losses` and "total", their sum, each times its weight (default 1)."""
    total = torch.stack([(weights or {}).get(name, 1.0) * loss for name, loss in losses.items()]).sum()
    return {**losses, "total": total}
