"""Whether a GPU is available. torch, whose import takes seconds, is imported only if a driver is installed."""

import ctypes
from pathlib import Path

DRIVER = "libcuda.so.1"
AMD_DRIVER = Path("/dev/kfd")


def sees_gpu() -> bool:
    """Return whether torch sees a GPU on this machine."""
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
