"""One step of the optimiser: the gradient of the mean loss over a group of batches, AdamW, and its learning rate.

Source: Adam with a stepped rate is that of the AVST release; the rest is off by default.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isfinite

import torch
from torch import nn

from pipeline.errors import UserError
from train import processes
from train.data.batch import Batch
from train.interfaces import MissingModalityMethod
from train.runs.config import TrainConfig
from train.runs.precision import autocast

NAMED_QUESTIONS = 16


@dataclass(frozen=True)
class BatchLosses:
    """The scalar losses {name: value} of a batch; `questions`: their number, a share of it if others have them, too."""

    losses: dict[str, float]
    question_id: tuple[str, ...]
    questions: float


def make_optimiser(config: TrainConfig, module: nn.Module) -> torch.optim.AdamW:
    """Return an optimiser of the parameters of the method `module` that are trained; without weight decay it is Adam.

    Those with a learning rate of their own (`MissingModalityMethod`) are in groups of their own.
    """
    own_rates: dict[str, float] = getattr(module, "learning_rates", {})
    grouped: dict[float, list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            rate = next((own for prefix, own in own_rates.items() if name.startswith(prefix)), config.learning_rate)
            grouped.setdefault(rate, []).append(parameter)
    groups = [{"params": parameters, "lr": rate, "first_rate": rate} for rate, parameters in grouped.items()]
    return torch.optim.AdamW(groups, weight_decay=config.weight_decay, fused=True)


def set_rate(optimiser: torch.optim.AdamW, config: TrainConfig, epoch: int, share: float) -> float:
    """Set the learning rates of a step in `epoch` (from 0) of a stage, after which `share` of it is done.

    Returns the rate of the run, of which other rates (`make_optimiser`) are multiples.
    """
    factor = config.decay_factor ** (epoch // config.decay_epochs)
    if config.warmup_epochs:
        factor *= min(1.0, (epoch + share) / config.warmup_epochs)
    for group in optimiser.param_groups:
        group["lr"] = group["first_rate"] * factor
    return config.learning_rate * factor


def take_step(
    method: MissingModalityMethod,
    optimiser: torch.optim.AdamW,
    batches: Iterable[Batch],
    sizes: Sequence[int],
    config: TrainConfig,
    device: torch.device,
) -> tuple[list[BatchLosses], float]:
    """Take one step on the mean loss over the questions of homogeneous batches.

    Returns the losses of each batch, and the norm of the gradient before it is clipped.

    `sizes`: number of questions of each batch, of which `batches` are this process's part; the gradient and the losses
    are those of all processes. One batch at a time is on the `device`. Raises `UserError`, with the questions, if a
    loss or the gradient is not finite; the weights have then been changed, and are not to be saved.
    """
    optimiser.zero_grad(set_to_none=True)
    found = []
    for batch, size in zip(batches, sizes, strict=True):
        with autocast(device, config.precision):
            losses = method.training_loss(batch.to(device))
        counted = len(batch) * processes.weight(size)
        (losses["total"] * (counted / sum(sizes))).backward()
        values = torch.stack([loss.detach().float() for loss in losses.values()])
        found.append((list(losses), values, batch.question_id, counted))
    trained = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    _add_up_gradients(trained)
    norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in trained if parameter.grad is not None])
    if config.clip_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(trained, config.clip_norm, norm)
    optimiser.step()
    # Losses are read when all work of the step is queued, so that a GPU does not wait for each.
    own = [BatchLosses(dict(zip(names, v.tolist(), strict=True)), ids, counted) for names, v, ids, counted in found]
    of_all = [batch for of_process in processes.collect(own) for batch in of_process]
    for batch_losses in of_all:
        if not isfinite(batch_losses.losses["total"]):
            raise UserError(f"the loss of {_name(batch_losses.question_id)} is not finite: lower the learning rate")
    if not isfinite(gradient_norm := float(norm)):
        questions = _name(tuple(question for batch_losses in of_all for question in batch_losses.question_id))
        raise UserError(f"the gradient of the loss of {questions} is not finite: lower the learning rate")
    return of_all, gradient_norm


def _add_up_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replace the gradients by their sums over the processes; a parameter without one in all of them has none."""
    if processes.count() == 1:
        return
    has_gradient = torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.int32)
    trained = [p for p, number in zip(parameters, processes.add_up(has_gradient).tolist(), strict=True) if number]
    own = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
    sums = processes.add_up(torch.cat([gradient.flatten() for gradient in own]))
    for parameter, total in zip(trained, sums.split([p.numel() for p in trained]), strict=True):
        parameter.grad = total.view_as(parameter)


def _name(questions: tuple[str, ...]) -> str:
    shown = ", ".join(map(repr, questions[:NAMED_QUESTIONS]))
    others = len(questions) - NAMED_QUESTIONS
    return f"questions {shown}" + (f" and {others} others" if others > 0 else "")
