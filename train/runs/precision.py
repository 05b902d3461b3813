"""The floating-point precision of a training: float32, TF32 or bfloat16. Weights are always float32.

By default torch computes convolutions of float32 on a GPU in TF32, with 10 instead of 23 bits of fraction. Here that is
a choice, and answers are never computed in it.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch


@contextmanager
def gpu_products(precision: str) -> Iterator[None]:
    """Compute matrix products and convolutions of float32 on a GPU in TF32 if `precision` is "tf32", else as they are.

    The flags are those of the process, and are set back at the end.
    """
    backends: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    previous = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        for backend, value in zip(backends, previous, strict=True):
            backend.allow_tf32 = value


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Return a context that computes products and convolutions in bfloat16 if `precision` says so, else as they are."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")
