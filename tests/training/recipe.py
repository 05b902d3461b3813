"""Weights and inputs for golden values, from formulas: without a generator they are the same in every torch version."""

import math

import torch
from torch import Tensor, nn

from train.backbones.sizes import ModelSizes
from train.data.batch import Batch


def scattered(count: int, salt: float) -> Tensor:
    """Return pseudo-random float64 [count] in [-0.5, 0.5)."""
    values = torch.sin(torch.arange(count, dtype=torch.float64) * 12.9898 + salt * 78.233) * 43758.5453
    return values - values.floor() - 0.5


def gaussian(shape: tuple[int, ...], salt: float) -> Tensor:
    """Return pseudo-random float32 values of `shape`, approximately standard normal."""
    radius = (-2 * (scattered(math.prod(shape), salt) + 0.5 + 1e-9).log()).sqrt()
    angle = 2 * math.pi * (scattered(math.prod(shape), salt + 0.5) + 0.5)
    return (radius * torch.cos(angle)).reshape(shape).float()


@torch.no_grad()
def fill(module: nn.Module) -> nn.Module:
    """Set every parameter, in order, to scattered values: gains about 1, matrices and kernels scaled by fan-in."""
    for position, parameter in enumerate(module.parameters()):
        is_kernel = parameter.dim() in (2, 4) and parameter.shape[0] > 2
        scale = 2 * (3 / (parameter.numel() / parameter.shape[0])) ** 0.5 if is_kernel else 0.4
        values = scattered(parameter.numel(), position).reshape(parameter.shape) * scale
        parameter.copy_(1 + values if bool((parameter == 1).all()) else values)
    return module


def probe(values: Tensor) -> float:
    """Return one number that depends on every value and its position."""
    return float((values.double().flatten() * scattered(values.numel(), 7.0)).sum())


AVST_SIZES = ModelSizes(words=93, answers=42, input_shapes={"vggish": (128,), "resnet18-map": (512, 14, 14)})


def scatter(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Return pseudo-random float32 values of `shape` in [-1, 1), an integer hash of each position."""
    mixed = (torch.arange(torch.Size(shape).numel()) + seed * 7_919 + 1) * 2_654_435_761 % 2**32
    mixed = (mixed ^ mixed >> 16) * 73_244_475 % 2**32
    return ((mixed ^ mixed >> 16).double() / 2**31 - 1).float().reshape(shape)


def formula_weights(module: nn.Module) -> None:
    """Set every parameter, in the order of their names, to scattered values; input whitening is left as it is."""
    weights = {name: values for name, values in module.state_dict().items() if "input_whitening" not in name}
    for position, (name, values) in enumerate(sorted(weights.items())):
        spread = 1.0 if "embedding" in name else (3 / values.shape[-1]) ** 0.5
        values.copy_(spread * scatter(tuple(values.shape), position))


def avst_batch() -> Batch:
    maps = scatter((4, 10, 512, 14, 14), 101).relu()
    tokens = torch.arange(28).reshape(2, 14) * 7 % 93
    mask = torch.ones(2, 10, dtype=torch.bool)
    return Batch(
        question={"tokens": tokens},
        audio={"vggish": scatter((2, 10, 128), 102).relu()},
        visual={"resnet18-map": maps[:2]},
        audio_mask=mask,
        visual_mask=mask,
        answer=torch.tensor([0, 1]),
        type=("Audio Counting", "Visual Location"),
        question_id=("1", "2"),
        video_id=("a", "b"),
        negatives={"resnet18-map": maps[2:]},
    )


def pstp_batch() -> Batch:
    mask = torch.ones(2, 60, dtype=torch.bool)
    return Batch(
        question={
            "clip-vit-b32-sentence": gaussian((2, 512), 101),
            "clip-vit-b32-words": gaussian((2, 77, 512), 102),
        },
        audio={"vggish": gaussian((2, 60, 128), 103).relu()},
        visual={"clip-vit-b32": gaussian((2, 60, 50, 512), 104)},
        audio_mask=mask,
        visual_mask=mask,
        answer=torch.tensor([0, 1]),
        type=("Audio Counting", "Visual Location"),
        question_id=("1", "2"),
        video_id=("a", "b"),
    )
