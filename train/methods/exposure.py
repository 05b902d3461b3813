"""Exposure: under which conditions a training question with both modalities is answered, and how often.

Sources: sampled missingness is that of ModDrop (TPAMI 2016) with at most one modality missing; all conditions are those
of Eq. 8 of the ECCV 2024 missing-modality paper, which answers each question three times.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Literal

import torch
from torch import Tensor

from pipeline.store.schema import MODALITIES
from train import processes
from train.data.batch import Batch
from train.data.scenarios import SAMPLED_MISSING
from train.methods.losses import with_total

# "sampled": once, under one of the conditions complete, audio missing and visual missing, a third each. "all": three
# times, once under each.
Exposure = Literal["sampled", "all"]


def conditions(batch: Batch, exposure: Exposure) -> list[tuple[Tensor, Batch]]:
    """Return (rows int64 [row], part) for each condition under which questions of a homogeneous batch are answered.

    A batch in which a modality is missing already is returned as one part.
    """
    if exposure == "sampled" or len(batch.available) < len(MODALITIES):
        return batch.sample_missing()
    rows = torch.arange(len(batch))
    return [(rows, batch.without(*missing)) for missing in SAMPLED_MISSING]


def exposed_losses(
    batch: Batch,
    exposure: Exposure,
    losses_of: Callable[[Batch], dict[str, Tensor]],
    *,
    weights: Mapping[str, float] | None = None,
    conditional: Collection[str] = (),
) -> dict[str, Tensor]:
    """Return the mean losses of a homogeneous batch over its answers, and "total" (`mean_answer_losses`).

    `losses_of` returns the scalar losses of one part of `conditions`; see `mean_over_parts` for `conditional`.
    """
    parts = [(len(part), losses_of(part)) for _, part in conditions(batch, exposure)]
    return mean_answer_losses(parts, len(batch), weights=weights, conditional=conditional)


def mean_answer_losses(
    parts: list[tuple[int, dict[str, Tensor]]],
    questions: int,
    *,
    weights: Mapping[str, float] | None = None,
    conditional: Collection[str] = (),
) -> dict[str, Tensor]:
    """Return the mean losses of `parts` over their answers, and "total", their weighted sum times answers per question.

    Every answer thus counts as much in training: a question that is answered under three conditions three times as much
    as one that has a single modality, as in Eq. 8, which is a sum over the answers. `questions`: of the batch.
    """
    losses = with_total(mean_over_parts(parts, conditional), weights)
    return losses | {"total": losses["total"] * (sum(count for count, _ in parts) / questions)}


def mean_over_parts(parts: list[tuple[int, dict[str, Tensor]]], conditional: Collection[str] = ()) -> dict[str, Tensor]:
    """Return the mean losses over all answers of `parts`, (number of questions, losses) each.

    A loss that a part does not have counts as zero there, as the match loss of a backbone, which is a part of what an
    answer with both modalities costs. `conditional`: losses of a method that are defined under some conditions only,
    such as the error of an imputed modality; their means are over the answers of the parts that have them, in all
    processes.
    """
    answers = sum(count for count, _ in parts)
    counts = {name: sum(count for count, losses in parts if name in losses) for name in conditional}
    of_all = processes.collect((answers, counts)) if conditional else []
    all_answers = sum(number for number, _ in of_all)
    combined: dict[str, Tensor] = {}
    for count, losses in parts:
        for name, loss in losses.items():
            share = count / answers
            if name in counts:
                share *= all_answers / sum(of_process[name] for _, of_process in of_all)
            combined[name] = combined.get(name, loss.new_zeros(())) + loss * share
    return combined
