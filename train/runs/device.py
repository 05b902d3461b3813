"""The device of a run."""

import os

import torch

from pipeline.errors import UserError
from train import processes


def choose_device(name: str) -> torch.device:
    """Return the device `name`; "auto" is CUDA if it is available, else the CPU.

    Raises `UserError` if the name is unknown or CUDA is requested but not available.
    """
    if name == "auto":
        return torch.device(_own_gpu() if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device {name!r} is unknown: pass auto, cpu or cuda") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device {name!r} is not supported: pass auto, cpu or cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device {name!r} is not available on this machine: pass --device cpu")
    return torch.device(_own_gpu()) if device == torch.device("cuda") else device


def _own_gpu() -> str:
    """Return the GPU of this process, of several on this machine its own one."""
    return f"cuda:{os.environ['LOCAL_RANK']}" if processes.count() > 1 else "cuda"
