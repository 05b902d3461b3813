"""What a piece of work costs: its time on a device, its operations, the memory it takes, the speed that is possible."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline.machine import available_memory
from train.runs.precision import autocast, gpu_products

SECONDS_BETWEEN_SAMPLES = 0.01


def synchronize(device: torch.device) -> None:
    """Wait until all work on `device` is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def now(device: torch.device) -> float:
    """Return the time, in seconds, at which all work on `device` was done."""
    synchronize(device)
    return time.perf_counter()


@contextmanager
def computing_in(precision: str, device: torch.device) -> Iterator[None]:
    """Compute in `precision`, as a training does."""
    with gpu_products(precision), autocast(device, precision):
        yield


def count_operations(work: Callable[[], Any]) -> int:
    """Return the floating-point operations of `work`; a multiply-add is two.

    The counter misses an LSTM that oneDNN or cuDNN runs as one operation, and Fourier transforms.
    """
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def peak_speed(device: torch.device, precision: str = "float32") -> float:
    """Return the floating-point operations per second of a large matrix product, the best of ten."""
    size = 8192 if device.type == "cuda" else 2048
    matrix = torch.randn(size, size, device=device)
    taken = []
    with computing_in(precision, device):
        for _ in range(10):
            started = now(device)
            matrix @ matrix
            taken.append(now(device) - started)
    return 2 * size**3 / min(taken)


def process_bytes(entry: str) -> int:
    """Return an entry of this process' status in bytes: VmHWM, its peak memory, or RssAnon, without mapped files.

    The peak of `getrusage` would include that of the parent.
    """
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(f"{entry}:")) * 1024


@dataclass
class Memory:
    """The memory of this process, or of the GPU, in bytes: before some work and at the most during it."""

    before: int
    peak: int


@contextmanager
def measured_memory(device: torch.device) -> Iterator[Memory]:
    """Measure the memory that the work in the block takes, without files that are mapped into memory."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        memory = Memory(torch.cuda.memory_allocated(device), 0)
        yield memory
        memory.peak = torch.cuda.max_memory_allocated(device)
        return
    memory = Memory(process_bytes("RssAnon"), 0)
    is_done = threading.Event()

    def sample() -> None:
        while not is_done.wait(SECONDS_BETWEEN_SAMPLES):
            memory.peak = max(memory.peak, process_bytes("RssAnon"))

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    try:
        yield memory
    finally:
        is_done.set()
        sampler.join()


def free_bytes(device: torch.device) -> int:
    """Return the free memory of the device."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()


def scaled_bytes(memory: Memory, factor: float) -> int:
    """Return the peak memory to expect of work that is `factor` times as large; what was taken before is not scaled."""
    return round(memory.before + (memory.peak - memory.before) * factor)


def kernel_seconds(profile: Any) -> float:
    """Return the seconds in which the GPU had kernels in a `torch.profiler.profile`, without copies; 0 without one."""
    events = (event for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA)
    kernels = (event for event in events if not event.is_user_annotation and not event.name.startswith("Mem"))
    return sum(event.self_device_time_total for event in kernels) / 1e6
