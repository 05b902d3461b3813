"""Dask workers: a local cluster or an existing scheduler, and partitions streamed through it. It knows no feature."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from pipeline.errors import UserError

PARTITIONS_IN_FLIGHT_PER_WORKER = 2

# Workers come and go while a run waits for them.
LOOK_AGAIN_SECONDS = 1.0
LOST_BEFORE_AN_ANSWER = 4
SECONDS_WITHOUT_WORKERS = 60.0

# Dask has malloc give every freed page back at once, which costs the networks a third of their time in page faults.
WORKER_ENVIRONMENT = {"OMP_NUM_THREADS": 1, "MKL_NUM_THREADS": 1, "OPENBLAS_NUM_THREADS": 1}

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


# What the owners of a cluster call a GPU in 'dask worker --resources "GPU=1"'.
GPU = "GPU"

_ONE_TASK = threading.Lock()


@dataclass(frozen=True)
class ClusterOptions:
    """Where to run: so many local worker processes, or a scheduler's address.

    A task on that scheduler takes one unit of the resource `label` ("" for none), so that one model stands per GPU.
    A scheduler that has no worker yet is given `wait_seconds` to get one.
    """

    workers: int = 1
    scheduler: str | None = None
    label: str = ""
    wait_seconds: float = 60.0


@dataclass(frozen=True)
class Workers:
    """The workers that tasks may run on: a Dask client of their cluster, and the label that they must offer."""

    client: Any
    label: str = ""

    def addresses(self) -> list[str]:
        """Return the workers that are there now and offer the label."""
        known = self.client.scheduler_info(n_workers=-1)["workers"]
        return [where for where, worker in known.items() if not self.label or worker["resources"].get(self.label)]

    def submit(self, task: Callable[..., Any], *arguments: Any, where: list[str] | None = None) -> Any:
        """Return the future of `task(*arguments)` on one of the workers, or of those at the addresses `where`."""
        resources = {self.label: 1} if self.label else None
        return self.client.submit(_alone, task, *arguments, pure=False, workers=where, resources=resources)


def _alone(task: Callable[..., Outcome], *arguments: Any) -> Outcome:
    """Run `task` while no other runs in this process, whose threads share one set of networks and one decoder."""
    with _ONE_TASK:
        return task(*arguments)


@contextmanager
def connect(options: ClusterOptions) -> Iterator[Workers]:
    """Yield the workers of a local cluster, which ends with the block, or of the scheduler that was named.

    Raises `UserError` where no scheduler answers, where it has no workers or none that offers the label, and where it
    would wait for a worker that hangs for ever.
    """
    if options.scheduler:
        from distributed.utils import silence_logging_cmgr

        with silence_logging_cmgr(logging.CRITICAL), _client_of(options.scheduler) as client:
            yield _existing_workers(client, options)
        return
    with _local_client(options) as client:
        yield Workers(client)


def offers_label(scheduler: str, label: str) -> bool:
    """Return whether a worker of the scheduler at that address offers the resource `label`."""
    with _client_of(scheduler) as client:
        return bool(Workers(client, label).addresses())


def _client_of(scheduler: str) -> Any:
    from distributed import Client

    try:
        return Client(scheduler, timeout="10s")
    except (OSError, ValueError) as error:
        raise UserError(f"no Dask scheduler answers at {scheduler} ({error}): check --scheduler") from None


def _existing_workers(client: Any, options: ClusterOptions) -> Workers:
    named = f"the scheduler at {options.scheduler}"
    if client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.worker_ttl) is None:
        raise UserError(
            f"{named} never gives up a worker that hangs (its distributed.scheduler.worker-ttl is null): "
            "start it with DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL='60 s'"
        )
    try:
        client.wait_for_workers(1, timeout=options.wait_seconds)
    except TimeoutError:
        raise UserError(f"{named} has no workers: start some with 'dask worker {options.scheduler}'") from None
    workers = Workers(client, options.label)
    if not workers.addresses():
        raise UserError(
            f"no worker of {named} offers the resource {options.label}: start one for each GPU with 'dask worker "
            f'{options.scheduler} --nthreads 1 --resources "{options.label}=1"\', or give --device cpu'
        )
    return workers


@contextmanager
def _local_client(options: ClusterOptions) -> Iterator[Any]:
    import dask
    from distributed import Client

    with (
        dask.config.set({"distributed.nanny.pre-spawn-environ": WORKER_ENVIRONMENT}),
        _local_cluster(options.workers) as cluster,
        Client(cluster) as client,
    ):
        yield client


def _local_cluster(workers: int) -> Any:
    from distributed import LocalCluster

    try:
        return LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address=None,
            memory_limit=0,
            silence_logs=logging.CRITICAL,
        )
    except RuntimeError as error:
        raise UserError(
            f"the {workers} local workers do not start ({error}): the machine may lack memory, give fewer --workers"
        ) from None


def ask_workers(workers: Workers, question: Callable[[], Outcome]) -> Outcome:
    """Put `question` to every worker as it comes, return the first answer; the others get ready meanwhile.

    What loading networks takes, tens of seconds, then passes on all workers at once.
    Raises `UserError` where mavqa is not installed on the scheduler or the worker, where workers die again and again
    before they answer, and where none is left and none comes.
    """
    from distributed import KilledWorker, as_completed

    asked: dict[str, Any] = {}
    answers = as_completed()
    lost, seen = 0, time.monotonic()
    while True:
        here = set(workers.addresses())
        gone = asked.keys() - here
        for address in gone:
            asked.pop(address).cancel()
        for address in here - asked.keys():
            asked[address] = workers.submit(question, where=[address])
            answers.add(asked[address])
        lost, seen = lost + len(gone), time.monotonic() if here else seen
        if lost >= max(LOST_BEFORE_AN_ANSWER, len(here)) or time.monotonic() - seen > SECONDS_WITHOUT_WORKERS:
            raise _lost_workers(lost)
        answer = _next_done(answers)
        if answer is None or answer not in asked.values():
            continue
        try:
            first: Outcome = _result(answer)
        except KilledWorker:
            raise _lost_workers(lost + 1) from None
        except (ImportError, AttributeError, RuntimeError) as error:
            if not _is_of_loading(error):
                raise
            cause = error.__cause__ or error
            raise UserError(
                f"the scheduler or a worker cannot load mavqa ({cause}): install it there, the same version everywhere"
            ) from None
        return first


def _lost_workers(lost: int) -> UserError:
    return UserError(
        f"no worker answers, {lost} died before they did: give each more memory (about 3 GB) or start fewer, and "
        "install the same version of mavqa everywhere; their logs tell more"
    )


def _is_of_loading(error: Exception) -> bool:
    """Return whether a task could not be unpickled, rather than failed."""
    if isinstance(error, RuntimeError):
        return "deserialization" in str(error)
    return isinstance(error, ModuleNotFoundError) or str(error).startswith("Can't get attribute")


def stream(workers: Workers, task: Callable[[Item], Outcome], items: Iterator[Item]) -> Iterator[Outcome | None]:
    """Yield the outcome of `task` for each item as it comes, None for an item whose workers died again and again.

    Few items are under way at once for each worker that is there, so that planning a million of them needs no memory
    and workers that come late get their share. An item whose worker died, or was silent for longer than the scheduler
    waits, is done by another.
    Raises `UserError` where the scheduler went away.
    """
    from distributed import KilledWorker, as_completed

    waiting = as_completed()
    under_way = window = 0
    look_again = time.monotonic()
    while True:
        if time.monotonic() >= look_again:
            window = PARTITIONS_IN_FLIGHT_PER_WORKER * max(1, len(workers.addresses()))
            look_again = time.monotonic() + LOOK_AGAIN_SECONDS
        for item in islice(items, max(0, window - under_way)):
            waiting.add(workers.submit(task, item))
            under_way += 1
        if not under_way:
            return
        future = _next_done(waiting)
        if future is None:
            continue
        under_way -= 1
        try:
            outcome = _result(future)
        except KilledWorker:
            outcome = None
        yield outcome


def _next_done(waiting: Any) -> Any:
    """Return one of the futures `waiting` that is done, or None where it is time to look at the workers again."""
    with waiting.thread_condition:
        waiting.thread_condition.wait_for(waiting.has_ready, LOOK_AGAIN_SECONDS)
    return next(waiting) if waiting.has_ready() else None


def _result(future: Any) -> Any:
    """Return what a task that is done returned; raise what it raised, as `UserError` what the user can mend."""
    from distributed import CancelledError
    from distributed.comm import CommClosedError

    try:
        return future.result()
    except (CancelledError, CommClosedError):
        raise UserError("the Dask scheduler went away: start it, and run again to go on") from None
