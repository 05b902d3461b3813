"""The device of a run, and the GPUs of runs in parallel."""

import os
from collections.abc import Collection
from itertools import cycle, islice

import torch

from pipeline.errors import UserError
from pipeline.machine import visible_gpus
from train import processes


def choose_device(name: str) -> torch.device:
    """Return the device `name`; "auto" is CUDA if it is available, else the CPU.

    Raises `UserError` if the name is unknown, or the device is not available.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device {name!r} is unknown: pass auto, cpu or cuda") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device {name!r} is not supported: pass auto, cpu or cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device {name!r} is not available on this machine: pass --device cpu")
    if device == torch.device("cuda"):
        device = torch.device(_own_gpu())
    gpus = range(torch.cuda.device_count())
    if device.type == "cuda" and device.index not in (None, *gpus):
        names = ", ".join(f"cuda:{index}" for index in gpus)
        raise UserError(f"device '{device}' is not available on this machine: its GPUs are {names}")
    return device


def assign_gpus(devices: Collection[str], count: int) -> list[str]:
    """Return the GPU of each of `count` runs in parallel, in turn, as the value of its CUDA_VISIBLE_DEVICES.

    `devices`: the names of the devices of the runs. [] if those are CPUs, or name a GPU, as "cuda:2" does.
    """
    return list(islice(cycle(visible_gpus()), count)) if set(devices) <= {"auto", "cuda"} else []


def _own_gpu() -> str:
    """Return the GPU of this process, of several on this machine its own one."""
    return f"cuda:{os.environ['LOCAL_RANK']}" if processes.count() > 1 else "cuda"
