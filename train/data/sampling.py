"""Which modality each training question loses, drawn anew every time: how comparison methods see missingness.

It fills nothing in (`train.methods.filling`) and has no part in evaluation (`train.data.scenarios`).
Source: ours; the ECCV 2024 paper does not say whether the methods it compares saw missing modalities in training.
"""

import torch
from torch import Tensor

from train.data.batch import MODALITIES, Batch

STATES: tuple[tuple[str, ...], ...] = ((), ("audio",), ("visual",))


def drawn_parts(batch: Batch) -> list[tuple[Tensor, Batch]]:
    """Return (rows, part) of the homogeneous `batch` for each state drawn: complete, audio missing, visual missing.

    Each question of a complete batch takes one of the three with equal chances, from torch's default generator; a
    batch that lacks a modality by nature is one part, as it is.
    """
    if len(batch.present) < len(MODALITIES):
        return [(torch.arange(len(batch)), batch)]
    drawn = torch.randint(len(STATES), (len(batch),))
    rows = [(drawn == state).nonzero().squeeze(1) for state in range(len(STATES))]
    return [(r, batch.select(r).without(*missing)) for r, missing in zip(rows, STATES, strict=True) if len(r)]
