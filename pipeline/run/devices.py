"""Whether there is a GPU to compute on. It imports torch, which takes seconds, only where a driver is there."""

import ctypes
from pathlib import Path

DRIVER = "libcuda.so.1"
AMD_DRIVER = Path("/dev/kfd")


def sees_gpu() -> bool:
    """Return whether torch sees a GPU here."""
    if not loads(DRIVER) and not AMD_DRIVER.exists():
        return False
    import torch

    return torch.cuda.is_available()


def loads(library: str) -> bool:
    """Return whether the system's loader finds and loads a shared library."""
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
