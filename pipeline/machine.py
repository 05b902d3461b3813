"""The cores and the GPU of this machine. torch, whose import takes seconds, is imported only if there is a driver."""

import ctypes
import os
from pathlib import Path

DRIVER = "libcuda.so.1"
AMD_DRIVER = Path("/dev/kfd")


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
