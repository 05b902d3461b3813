"""The cores, the GPU and the signals of this machine.

torch, whose import takes seconds, is imported only if there is a driver of a GPU.
"""

import ctypes
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from pathlib import Path

DRIVER = "libcuda.so.1"
VIDEO_DRIVER = "libnvcuvid.so.1"
VIDEO_DRIVER_REMEDY = (
    "install the driver's decoding library (libnvidia-decode), or start the container with "
    "NVIDIA_DRIVER_CAPABILITIES=compute,utility,video"
)
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


def visible_gpus() -> tuple[str, ...]:
    """Return, for each GPU that torch sees, the value of CUDA_VISIBLE_DEVICES that makes it the only visible one."""
    if not sees_gpu():
        return ()
    import torch

    count = torch.cuda.device_count()
    # The variable may end with invalid entries, which hide all GPUs after them.
    names = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count)))).split(",")
    return tuple(name.strip() for name in names[:count])


def loads(library: str) -> bool:
    """Return whether the system's loader finds and loads a shared library."""
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


@contextmanager
def uninterrupted_children() -> Iterator[None]:
    """Block SIGINT while child processes are started in the block; they and their own children never receive it.

    Ctrl-C in a terminal is sent to all processes of a command. The parent alone handles it, after the block, and ends
    its children.
    """
    # Starting the tracker later would unblock the signal.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def exit_with_parent() -> None:
    """Exit this worker process at once when the process that started it has ended, however that was."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait_and_exit() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait_and_exit, daemon=True).start()


def available_memory() -> int:
    """Return the bytes of memory that this process can take without swapping; a container's limit counts."""
    import psutil

    free = psutil.virtual_memory().available
    group = Path("/sys/fs/cgroup")
    with suppress(OSError, ValueError, KeyError):  # ValueError: "max" without a limit
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        facts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        free = min(free, limit - used + int(facts["file"]))  # the page cache is given back when needed
    return max(0, free)
