"""Run jobs after the one that each depends on: in parallel, by processes that each run several, or in this process.

The processes share no lock, so that a killed one blocks no other; they end with their parent.
"""

import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, Self, TypeVar

from pipeline.errors import Stopped, UserError, describe_error, is_user_error
from pipeline.machine import exit_with_parent, uninterrupted_children
from train.training.stopping import StopSignal

Job = TypeVar("Job")
Report = Callable[[Any], None]
Work = Callable[[Job, Report], None]
Progress = Callable[[str, Any], None]
Environment = Mapping[str, str]
# Of a worker: "report" with its content, or of the end of a job "done", or "failed" with the exception.
Message = tuple[str, Any]

SKIPPED = "skipped, it starts from {}"
DIED = "a training process died (out of memory?): run again with fewer --jobs to resume"
# How often SIGTERM is looked for, and how long jobs may take to end after it.
POLL_SECONDS, STOP_SECONDS = 1.0, 120.0


def run_jobs(
    jobs: Mapping[str, Job],
    depends_on: Mapping[str, str],
    work: Work[Job],
    environments: Sequence[Environment],
    progress: Progress,
) -> dict[str, str]:
    """Run `work(job, report)` for each of the named `jobs` in processes with these `environments`; return the failures.

    `depends_on`: {job's name: name of the job to finish before it}. `work` is pickled: pass a module-level function or
    a partial of one. A process runs one job after another, so `work` may keep what it has opened. `environments`: of
    each process, the environment variables that differ from those of this one. The reports of a job are forwarded as
    `progress(job's name, report)`, its end as None.

    A job whose error the user can fix (`is_user_error`), or whose process dies, does not stop the others; those that
    depend on it are skipped, and the next one gets a new process. The failures are {job's name: why it failed or was
    skipped}. After any other exception no job is started, and it is raised once the running ones have finished.
    SIGTERM is passed on to the running ones, and `Stopped` is raised when they have ended, after two minutes at the
    latest. An interrupt ends all processes at once. Raises ValueError if jobs depend on each other.
    """
    waiting, failures = dict(jobs), dict[str, str]()
    raised: BaseException | None = None
    with StopSignal() as stop, stop.deferred(), _Workers(work, environments) as workers:
        while waiting or workers.running:
            if stop.is_set:
                waiting.clear()
                workers.stop()
            for name in _list_ready(waiting, depends_on, workers.running):
                dependency = depends_on.get(name)
                if dependency in failures:
                    del waiting[name]
                    failures[name] = SKIPPED.format(dependency)
                    progress(name, None)
                elif workers.idle:
                    workers.start(name, waiting.pop(name))
            for name, (kind, content) in workers.receive():
                progress(name, content if kind == "report" else None)
                if kind == "failed" and is_user_error(content):
                    failures[name] = describe_error(content)
                elif kind == "failed":
                    raised = raised or content
                    waiting.clear()
    if raised is not None:
        raise raised
    return failures


def run_in_turn(
    jobs: Mapping[str, Job], depends_on: Mapping[str, str], work: Work[Job], progress: Progress
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


def _list_ready(waiting: Mapping[str, Any], depends_on: Mapping[str, str], running: Mapping[str, Any]) -> list[str]:
    """Return the jobs whose dependency has ended. Raises ValueError if no job can ever start."""
    ready = [name for name in waiting if depends_on.get(name) not in waiting.keys() | running.keys()]
    if waiting and not ready and not running:
        raise ValueError(f"these jobs depend on each other: {', '.join(waiting)}")
    return ready


class _Worker(Generic[Job]):
    """A process that runs one job after another. It is started for the first one, and again if it has died since."""

    connection: Connection

    def __init__(self, work: Work[Job], environment: Environment) -> None:
        self._arguments = (work, environment)
        self._process: BaseProcess | None = None

    @property
    def is_alive(self) -> bool:
        return self._process is not None and self._process.is_alive()

    def start(self, job: Job) -> None:
        if not self.is_alive:
            self._start_process()
        with suppress(OSError):  # the process has just died, which `receive` returns
            self.connection.send(job)

    def receive(self) -> Message:
        """Return the next message of the process; "failed" if it died without one. A failure ends the process."""
        try:
            kind, content = self.connection.recv()
        except (EOFError, OSError):
            kind, content = "failed", UserError(DIED)
        if kind == "failed":  # what failed, such as a GPU, may be of no use to another job
            self.kill()
        return kind, content

    def terminate(self) -> None:
        if self._process is not None:
            self._process.terminate()

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()

    def _start_process(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_run_worker, args=(*self._arguments, theirs))
        with uninterrupted_children():
            self._process.start()
        theirs.close()


class _Workers(Generic[Job]):
    """The idle workers, and the running ones by the name of their job. After its block none of them has a process."""

    def __init__(self, work: Work[Job], environments: Sequence[Environment]) -> None:
        self.idle = [_Worker(work, environment) for environment in environments]
        self.running: dict[str, _Worker[Job]] = {}
        self._stopped_at: float | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._kill()

    def start(self, name: str, job: Job) -> None:
        """Start a job in an idle worker, one with a process if there is one."""
        worker = max(self.idle, key=lambda idle: idle.is_alive)
        self.idle.remove(worker)
        self.running[name] = worker
        worker.start(job)

    def receive(self) -> list[tuple[str, Message]]:
        """Return messages of running jobs by name; wait for them, but not longer than `POLL_SECONDS`."""
        names = {worker.connection: name for name, worker in self.running.items()}
        readable = wait(list(names), POLL_SECONDS) if names else []
        messages = []
        for name in [name for connection, name in names.items() if connection in readable]:
            message = self.running[name].receive()
            if message[0] != "report":
                self.idle.append(self.running.pop(name))
            messages.append((name, message))
        return messages

    def stop(self) -> None:
        """At the first call, send SIGTERM to the running processes; `STOP_SECONDS` later, kill those that are left."""
        if self._stopped_at is None:
            self._stopped_at = time.monotonic()
            for worker in self.running.values():
                worker.terminate()
        elif time.monotonic() > self._stopped_at + STOP_SECONDS:
            self._kill()

    def _kill(self) -> None:
        for worker in [*self.idle, *self.running.values()]:
            worker.kill()


def _run_worker(work: Work[Job], environment: Environment, connection: Connection) -> None:
    """Run the jobs that are sent to this process, send their messages, and exit if the parent dies."""
    os.environ.update(environment)
    exit_with_parent()
    with suppress(EOFError):  # of the parent, which has ended
        while True:
            _run_job(work, connection.recv(), connection)


def _run_job(work: Work[Job], job: Job, connection: Connection) -> None:
    try:
        work(job, lambda report: connection.send(("report", report)))
    except (Exception, Stopped) as error:  # noqa: BLE001  # raised again in the parent
        error.add_note(traceback.format_exc())
        connection.send(("failed", error))
    else:
        connection.send(("done", None))
