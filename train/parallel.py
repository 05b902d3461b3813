"""Several pieces of work at once, each in a process of its own, begun when the piece that it builds on is done.

It knows no run and no grid. The processes share the cores evenly and end with their parent.
"""

import multiprocessing
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from pipeline.failure import UserError

Piece = TypeVar("Piece")
Report = Callable[[Any], None]

_said: Any = None


def work_through(
    pieces: Mapping[str, Piece],
    builds_on: Mapping[str, str],
    work: Callable[[Piece, Report], None],
    jobs: int,
    progress: Callable[[str, Any], None],
) -> None:
    """Do `work(piece, report)` for each of `pieces` by name, `jobs` at once.

    `builds_on` {name: name} holds a piece back until the other is done. `work` goes to other processes, so it must be
    a function of a module (or a partial of one); what it reports comes back to `progress` with the piece's name.
    Raises what a piece raised, after the pieces under way are done, and `UserError` where a process died.
    """
    context = multiprocessing.get_context("spawn")
    said = context.SimpleQueue()
    listener = threading.Thread(target=_pass_on, args=(said, progress))
    listener.start()
    try:
        with ProcessPoolExecutor(jobs, context, _begin, (said, max(1, available_cores() // jobs))) as pool:
            _feed(pool, pieces, builds_on, work)
    except BrokenProcessPool:
        raise UserError("a training process died (out of memory?): run again with fewer --jobs to go on") from None
    finally:
        said.put(None)
        listener.join()


def _feed(
    pool: ProcessPoolExecutor,
    pieces: Mapping[str, Piece],
    builds_on: Mapping[str, str],
    work: Callable[[Piece, Report], None],
) -> None:
    """Hand each piece to `pool` once nothing that it builds on is left; raise the first error, beginning no more."""
    waiting, running = dict(pieces), dict[Future[None], str]()
    while waiting or running:
        left = waiting.keys() | set(running.values())
        for name in [name for name in waiting if builds_on.get(name) not in left]:
            running[pool.submit(_do, work, name, waiting.pop(name))] = name
        done, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in done:
            del running[future]
            if future.exception():
                pool.shutdown(wait=False, cancel_futures=True)
            future.result()


def available_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _begin(said: Any, threads: int) -> None:
    """Prepare a process: its threads, its way to report, and its end if the parent is killed."""
    import torch

    global _said  # a pool hands its processes nothing but what a module remembers
    _said = said
    torch.set_num_threads(threads)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _do(work: Callable[[Piece, Report], None], name: str, piece: Piece) -> None:
    work(piece, lambda report: _said.put((name, report)))


def _pass_on(said: Any, progress: Callable[[str, Any], None]) -> None:
    """Hand on what the processes say until None comes; a full pipe would make them wait."""
    while (heard := said.get()) is not None:
        progress(*heard)
