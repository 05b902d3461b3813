"""Several pieces of work at once, each in a process of its own, begun when the piece that it builds on is done.

It knows no run and no grid. The processes share the cores evenly, share no lock, and end with their parent.
"""

import multiprocessing
import os
import threading
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from pipeline.errors import UserError

Piece = TypeVar("Piece")
Report = Callable[[Any], None]
Work = Callable[[Piece, Report], None]


def run_jobs(
    pieces: Mapping[str, Piece],
    builds_on: Mapping[str, str],
    work: Work[Piece],
    jobs: int,
    progress: Callable[[str, Any], None],
) -> None:
    """Do `work(piece, report)` for each of `pieces` by name, `jobs` at once.

    `builds_on` {name: name} holds a piece back until the other is done. `work` goes to other processes, so it must be
    a function of a module (or a partial of one); what it reports comes back to `progress` with the piece's name.
    Raises what the first failing piece raised once those under way are done, beginning no other; `UserError` where a
    process died; ValueError where pieces wait for one another. An interrupt ends all processes at once.
    """
    threads = max(1, available_cores() // jobs)
    waiting, running = dict(pieces), dict[Connection, tuple[str, BaseProcess]]()
    failure: BaseException | None = None
    try:
        while waiting or running:
            left = waiting.keys() | {name for name, _ in running.values()}
            ready = [name for name in waiting if builds_on.get(name) not in left]
            if not ready and not running:
                raise ValueError(f"these wait for one another: {', '.join(waiting)}")
            for name in ready[: jobs - len(running)]:
                connection, process = _start(work, waiting.pop(name), threads)
                running[connection] = (name, process)
            heard = wait(list(running))
            for connection in [one for one in running if one in heard]:
                kind, said = _hear(connection)
                if kind == "said":
                    progress(running[connection][0], said)
                    continue
                _, process = running.pop(connection)
                process.join()
                if kind == "failed":
                    failure = failure or said
                    waiting.clear()
    finally:
        for _, process in running.values():
            process.terminate()
            process.join()
    if failure is not None:
        raise failure


def available_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start(work: Work[Piece], piece: Piece, threads: int) -> tuple[Connection, BaseProcess]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_do, args=(work, piece, threads, theirs))
    process.start()
    theirs.close()
    return ours, process


def _hear(connection: Connection) -> tuple[str, Any]:
    """Return what a process says next; a process that fell silent before it was done has died."""
    try:
        kind, said = connection.recv()
    except (EOFError, OSError):
        return "failed", UserError("a training process died (out of memory?): run again with fewer --jobs to go on")
    return kind, said


def _do(work: Work[Piece], piece: Piece, threads: int, connection: Connection) -> None:
    """Be a process: do the piece with so many threads, report, and end if the parent is killed."""
    import torch

    torch.set_num_threads(threads)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    try:
        work(piece, lambda report: connection.send(("said", report)))
    except Exception as error:  # noqa: BLE001  # it goes on in the parent
        error.add_note(traceback.format_exc())
        connection.send(("failed", error))
    else:
        connection.send(("done", None))
