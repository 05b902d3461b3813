"""Weights and inputs for golden values, by a formula: no generator, so that every version of torch gives the same."""

import math

import torch
from torch import Tensor, nn


def scattered(count: int, salt: float) -> Tensor:
    """Return float64 [count] in [-0.5, 0.5) that look random."""
    values = torch.sin(torch.arange(count, dtype=torch.float64) * 12.9898 + salt * 78.233) * 43758.5453
    return values - values.floor() - 0.5


def gaussian(shape: tuple[int, ...], salt: float) -> Tensor:
    """Return float32 of `shape` that look standard normal."""
    radius = (-2 * (scattered(math.prod(shape), salt) + 0.5 + 1e-9).log()).sqrt()
    angle = 2 * math.pi * (scattered(math.prod(shape), salt + 0.5) + 0.5)
    return (radius * torch.cos(angle)).reshape(shape).float()


@torch.no_grad()
def fill(module: nn.Module) -> nn.Module:
    """Give every parameter, in order, scattered values: gains about 1, matrices and kernels by their fan-in."""
    for position, parameter in enumerate(module.parameters()):
        is_kernel = parameter.dim() in (2, 4) and parameter.shape[0] > 2
        scale = 2 * (3 / (parameter.numel() / parameter.shape[0])) ** 0.5 if is_kernel else 0.4
        values = scattered(parameter.numel(), position).reshape(parameter.shape) * scale
        parameter.copy_(1 + values if bool((parameter == 1).all()) else values)
    return module


def probe(values: Tensor) -> float:
    """Return one number that depends on every value and its place."""
    return float((values.double().flatten() * scattered(values.numel(), 7.0)).sum())
