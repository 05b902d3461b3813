"""One step of the optimiser: the gradient of the mean loss over a group of batches, AdamW, and its learning rate.

Source: Adam with a stepped rate is that of the AVST release; the rest is off by default.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor, nn

from pipeline.errors import UserError
from train.data.batch import Batch
from train.interfaces import MissingModalityMethod
from train.runs.config import TrainConfig
from train.runs.precision import autocast

NAMED_QUESTIONS = 16


@dataclass(frozen=True)
class BatchLosses:
    """The scalar losses {name: value} of a batch of `questions` questions."""

    losses: dict[str, float]
    questions: int


def make_optimiser(config: TrainConfig, module: nn.Module) -> torch.optim.AdamW:
    """Return an optimiser of the parameters of `module` that are trained; without weight decay it is Adam."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(trained, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)


def set_rate(optimiser: torch.optim.AdamW, config: TrainConfig, epoch: int, share: float) -> float:
    """Set the learning rate of a step in `epoch` (from 0) of a stage, after which `share` of it is done; return it."""
    rate = config.learning_rate * config.decay_factor ** (epoch // config.decay_epochs)
    if config.warmup_epochs:
        rate *= min(1.0, (epoch + share) / config.warmup_epochs)
    for group in optimiser.param_groups:
        group["lr"] = rate
    return rate


def take_step(
    method: MissingModalityMethod,
    optimiser: torch.optim.AdamW,
    batches: Iterable[Batch],
    questions: int,
    config: TrainConfig,
    device: torch.device,
) -> list[BatchLosses]:
    """Take one step on the mean loss over the `questions` of homogeneous `batches`; return the losses of each batch.

    One batch at a time is on the `device`. Raises `UserError`, with the questions, if a loss or the gradient is not
    finite; the weights have then been changed, and are not to be saved.
    """
    optimiser.zero_grad(set_to_none=True)
    names, values, parts = list[list[str]](), list[Tensor](), list[tuple[str, ...]]()
    for batch in batches:
        with autocast(device, config.precision):
            losses = method.training_loss(batch.to(device))
        (losses["total"] * (len(batch) / questions)).backward()
        names.append(list(losses))
        values.append(torch.stack([loss.detach().float() for loss in losses.values()]))
        parts.append(batch.question_id)
    if config.clip_norm is not None:
        trained = [parameter for group in optimiser.param_groups for parameter in group["params"]]
        torch.nn.utils.clip_grad_norm_(trained, config.clip_norm)
    optimiser.step()
    # The only place where a step waits for a GPU.
    read = [dict(zip(of, value.tolist(), strict=True)) for of, value in zip(names, values, strict=True)]
    for losses_of_batch, questions_of_batch in zip(read, parts, strict=True):
        if not isfinite(losses_of_batch["total"]):
            raise UserError(f"the loss of {_name(questions_of_batch)} is not finite: lower the learning rate")
    return [BatchLosses(losses, len(of)) for losses, of in zip(read, parts, strict=True)]


def _name(questions: tuple[str, ...]) -> str:
    shown = ", ".join(map(repr, questions[:NAMED_QUESTIONS]))
    others = len(questions) - NAMED_QUESTIONS
    return f"questions {shown}" + (f" and {others} others" if others > 0 else "")
