"""State dicts as saved by the official releases, and inputs, from formulas: the same on every machine."""

import math
import zlib
from collections.abc import Mapping, Sequence

import torch
from recipe import scattered
from torch import Tensor


def official_state(shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Return float32 tensors for `shapes` {official name: shape}; a value depends only on its name and position."""
    return {name: _tensor(name, tuple(shape)) for name, shape in shapes.items()}


def _tensor(name: str, shape: tuple[int, ...]) -> Tensor:
    values = scattered(math.prod(shape), zlib.crc32(name.encode()) % 1000 / 10).reshape(shape).float()
    if "embed" in name or "word2vec" in name or "memory" in name or "mem_kv" in name:
        return 2 * values
    if len(shape) == 1 or name.endswith(".g"):
        return values * 0.4 + (1 if "norm" in name and name.endswith((".weight", ".g")) else 0)
    return values * 2 * math.sqrt(3 / math.prod(shape[1:]))


def question_tokens(rows: int) -> Tensor:
    """Return int64 [row, token 14] below 93."""
    return torch.arange(rows * 14).reshape(rows, 14) * 7 % 93


def sound(rows: int) -> Tensor:
    """Return float32 [row, time 10, 128] >= 0."""
    return (2 * scattered(rows * 1280, 101.0)).relu().reshape(rows, 10, 128).float()


def pictures(rows: int) -> Tensor:
    """Return float32 [row, time 10, 512, 14, 14] >= 0."""
    return (2 * scattered(rows * 10 * 512 * 196, 102.0)).relu().reshape(rows, 10, 512, 14, 14).float()
