"""Run jobs after the one that each depends on: in parallel, each in a process of its own, or one at a time.

The processes share the cores evenly but no lock, so that a killed one blocks no other; they end with their parent.
"""

import multiprocessing
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from pipeline.errors import UserError, describe_error, is_user_error
from pipeline.machine import available_cores, exit_with_parent, uninterrupted_children

Job = TypeVar("Job")
Report = Callable[[Any], None]
Work = Callable[[Job, Report], None]

SKIPPED = "skipped, it starts from {}"


def run_jobs(
    jobs: Mapping[str, Job],
    depends_on: Mapping[str, str],
    work: Work[Job],
    workers: int,
    progress: Callable[[str, Any], None],
) -> dict[str, str]:
    """Run `work(job, report)` for each of the named `jobs`, in `workers` processes at a time; return the failures.

    `depends_on`: {job's name: name of the job to finish before it}. `work` is pickled: pass a module-level function or
    a partial of one. Its reports are forwarded as `progress(job's name, report)`, the end of a job as None.

    A job whose error the user can fix (`is_user_error`), or whose process dies, does not stop the others; those that
    depend on it are skipped. The failures are {job's name: why it failed or was skipped}. After any other exception no
    job is started, and it is raised once the running ones have finished. An interrupt ends all processes at once.
    Raises ValueError if jobs depend on each other.
    """
    threads = max(1, available_cores() // workers)
    waiting, running = dict(jobs), dict[Connection, tuple[str, BaseProcess]]()
    failures: dict[str, str] = {}
    bug: BaseException | None = None
    try:
        while waiting or running:
            unfinished = waiting.keys() | {name for name, _ in running.values()}
            ready = [name for name in waiting if depends_on.get(name) not in unfinished]
            if not ready and not running:
                raise ValueError(f"these jobs depend on each other: {', '.join(waiting)}")
            for name in ready:
                dependency = depends_on.get(name)
                if dependency in failures:
                    del waiting[name]
                    failures[name] = SKIPPED.format(dependency)
                    progress(name, None)
                elif len(running) < workers:
                    connection, process = _start(work, waiting.pop(name), threads)
                    running[connection] = (name, process)
            readable = wait(list(running)) if running else []
            for connection in [one for one in running if one in readable]:
                kind, content = _receive(connection)
                if kind == "report":
                    progress(running[connection][0], content)
                    continue
                name, process = running.pop(connection)
                process.join()
                progress(name, None)
                if kind == "failed" and is_user_error(content):
                    failures[name] = describe_error(content)
                elif kind == "failed":
                    bug = bug or content
                    waiting.clear()
    finally:
        for _, process in running.values():
            process.terminate()
            process.join()
    if bug is not None:
        raise bug
    return failures


def run_in_turn(
    jobs: Mapping[str, Job], depends_on: Mapping[str, str], work: Work[Job], progress: Callable[[str, Any], None]
) -> dict[str, str]:
    """Run the jobs as `run_jobs` does, but in this process, one at a time in their order."""
    failures: dict[str, str] = {}
    for name, job in jobs.items():
        dependency = depends_on.get(name)
        if dependency in failures:
            failures[name] = SKIPPED.format(dependency)
        else:
            try:
                work(job, partial(progress, name))
            except (UserError, OSError) as error:
                if not is_user_error(error):
                    raise
                failures[name] = describe_error(error)
        progress(name, None)
    return failures


def _start(work: Work[Job], job: Job, threads: int) -> tuple[Connection, BaseProcess]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_run_job, args=(work, job, threads, theirs))
    with uninterrupted_children():
        process.start()
    theirs.close()
    return ours, process


def _receive(connection: Connection) -> tuple[str, Any]:
    """Return the next message (kind, content) of a process; "failed" if it died without one."""
    try:
        kind, content = connection.recv()
    except (EOFError, OSError):
        return "failed", UserError("a training process died (out of memory?): run again with fewer --jobs to resume")
    return kind, content


def _run_job(work: Work[Job], job: Job, threads: int, connection: Connection) -> None:
    """Run a job in this process, send its messages, and exit if the parent dies."""
    import torch

    torch.set_num_threads(threads)
    exit_with_parent()
    try:
        work(job, lambda report: connection.send(("report", report)))
    except Exception as error:  # noqa: BLE001  # raised again in the parent
        error.add_note(traceback.format_exc())
        connection.send(("failed", error))
    else:
        connection.send(("done", None))
