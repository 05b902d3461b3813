"""Dask workers: a local cluster or an existing scheduler, and items streamed through it."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from itertools import islice
from typing import Any, TypeVar

from pipeline.errors import UserError
from pipeline.machine import uninterrupted_children

PARTITIONS_IN_FLIGHT_PER_WORKER = 2

# How often the list of workers is read, and after how many lost workers or seconds without one a run gives up.
REFRESH_SECONDS = 1.0
LOST_BEFORE_ANSWER = 4
SECONDS_WITHOUT_WORKERS = 60.0

# By default Dask makes malloc return every freed page at once; the page faults cost a third of the networks' time.
WORKER_ENVIRONMENT = {"OMP_NUM_THREADS": 1, "MKL_NUM_THREADS": 1, "OPENBLAS_NUM_THREADS": 1}

# Only this machine reaches local workers.
HOST = "127.0.0.1"

# The name of a GPU in 'dask worker --resources "GPU=1"'.
GPU = "GPU"

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")

_TASK_LOCK = threading.Lock()


@dataclass(frozen=True)
class ClusterOptions:
    """Where to run: a number of local worker processes, or a scheduler's address.

    A task on a scheduler takes one unit of the resource `label` ("" for none), so that each GPU has one model.
    `wait_seconds`: how long to wait for the first worker of a scheduler. Local workers share the `gpus` in turn, each
    seeing a single one; they are values of CUDA_VISIBLE_DEVICES.
    """

    workers: int = 1
    scheduler: str | None = None
    label: str = ""
    wait_seconds: float = 60.0
    gpus: tuple[str, ...] = ()


@dataclass(frozen=True)
class Workers:
    """The workers that tasks may run on: a Dask client of their cluster, and the resource that tasks require."""

    client: Any
    label: str = ""

    def addresses(self) -> list[str]:
        """Return the addresses of the connected workers that offer the resource."""
        known = self.client.scheduler_info(n_workers=-1)["workers"]
        return [address for address, worker in known.items() if not self.label or worker["resources"].get(self.label)]

    def submit(self, task: Callable[..., Any], *arguments: Any, where: list[str] | None = None) -> Any:
        """Return the future of `task(*arguments)` on one of the workers, or on one of the addresses `where`."""
        resources = {self.label: 1} if self.label else None
        return self.client.submit(_run_exclusively, task, *arguments, pure=False, workers=where, resources=resources)


def _run_exclusively(task: Callable[..., Outcome], *arguments: Any) -> Outcome:
    """Run one task at a time in this process, whose threads share one set of networks and decoders."""
    with _TASK_LOCK:
        return task(*arguments)


@contextmanager
def connect(options: ClusterOptions) -> Iterator[Workers]:
    """Yield the workers of a local cluster, which is closed after the block, or of the given scheduler.

    Raises `UserError` if no scheduler answers, if it has another version of mavqa, if it has no workers or none that
    offers the resource, or if it would wait forever for a worker that hangs.
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
            f"{named} never drops a worker that hangs (its distributed.scheduler.worker-ttl is null): "
            "start it with DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL='60 s'"
        )
    try:
        client.run_on_scheduler(_version_check())
        client.wait_for_workers(1, timeout=options.wait_seconds)
    except metadata.PackageNotFoundError as error:
        raise UserError(f"{named} runs without {error.name}: install the same version of mavqa everywhere") from None
    except TimeoutError:
        raise UserError(f"{named} has no workers: start some with 'dask worker {options.scheduler}'") from None
    workers = Workers(client, options.label)
    if not workers.addresses():
        raise UserError(
            f"no worker of {named} offers the resource {options.label}: start one for each GPU with 'dask worker "
            f'{options.scheduler} --nthreads 1 --resources "{options.label}=1"\', or pass --device cpu'
        )
    return workers


@contextmanager
def _local_client(options: ClusterOptions) -> Iterator[Any]:
    import dask
    from distributed import Client

    with (
        dask.config.set({"distributed.nanny.pre-spawn-environ": WORKER_ENVIRONMENT}),
        _local_cluster(options) as cluster,
        Client(cluster) as client,
    ):
        yield client


def _local_cluster(options: ClusterOptions) -> Any:
    from distributed import Nanny, Scheduler, SpecCluster

    common = {"nthreads": 1, "memory_limit": 0, "host": HOST, "silence_logs": logging.CRITICAL}
    workers = {
        number: {"cls": Nanny, "options": {**common, "env": environment}}
        for number, environment in enumerate(_worker_environments(options))
    }
    scheduler = {"cls": Scheduler, "options": {"port": 0, "host": HOST, "dashboard": False}}
    try:
        with uninterrupted_children():
            return SpecCluster(workers, scheduler, silence_logs=logging.CRITICAL)
    except RuntimeError as error:
        raise UserError(
            f"the {options.workers} local workers do not start ({error}): memory may be short, pass fewer --workers"
        ) from None


def _worker_environments(options: ClusterOptions) -> list[dict[str, str]]:
    """Return the environment variables of each local worker that are its own."""
    gpus = options.gpus
    return [{"CUDA_VISIBLE_DEVICES": gpus[n % len(gpus)]} if gpus else {} for n in range(options.workers)]


def query_workers(workers: Workers, task: Callable[[], Outcome]) -> Outcome:
    """Run `task` on every worker that joins and return the first answer.

    The other workers load their networks meanwhile, which takes tens of seconds.
    Raises `UserError` if a worker has another version of mavqa, if workers repeatedly die before they answer, or if no
    worker is left and none joins.
    """
    from distributed import KilledWorker, as_completed

    futures: dict[str, Any] = {}
    answers = as_completed()
    lost, last_seen = 0, time.monotonic()
    while True:
        connected = set(workers.addresses())
        gone = futures.keys() - connected
        for address in gone:
            futures.pop(address).cancel()
        for address in connected - futures.keys():
            check = workers.client.submit(_version_check(), pure=False, workers=[address])
            futures[address] = workers.submit(_run_after, check, task, where=[address])
            answers.add(futures[address])
        lost, last_seen = lost + len(gone), time.monotonic() if connected else last_seen
        if lost >= max(LOST_BEFORE_ANSWER, len(connected)) or time.monotonic() - last_seen > SECONDS_WITHOUT_WORKERS:
            raise _lost_workers_error(lost)
        answer = _next_done(answers)
        if answer is None or answer not in futures.values():
            continue
        try:
            first: Outcome = _result(answer)
        except KilledWorker:
            raise _lost_workers_error(lost + 1) from None
        except metadata.PackageNotFoundError as error:
            raise UserError(
                f"a worker runs without {error.name}: install the same version of mavqa everywhere"
            ) from None
        return first


def _version_check() -> Callable[[], None]:
    """Return a function that raises `PackageNotFoundError` where this version of mavqa is not installed.

    It is local because Dask then sends its code: a process without mavqa could not import it.
    """
    own = metadata.version("mavqa")

    def check() -> None:
        if own not in {found.version for found in metadata.distributions(name="mavqa")}:
            raise metadata.PackageNotFoundError(f"mavqa {own}")

    return check


def _run_after(check: None, task: Callable[[], Outcome]) -> Outcome:
    """Run `task` on a worker that passed the check: one that cannot import mavqa dies of such a task."""
    return task()


def _lost_workers_error(lost: int) -> UserError:
    return UserError(
        f"no worker answers, {lost} died before answering: give each more memory (about 3 GB) or start fewer, and "
        "install the same version of mavqa everywhere; their logs have the details"
    )


def stream(workers: Workers, task: Callable[[Item], Outcome], items: Iterator[Item]) -> Iterator[Outcome | None]:
    """Yield the outcome of `task` for each item as it finishes, None for an item whose workers died repeatedly.

    A few items per connected worker are submitted at a time, so that a million items need no memory and workers that
    join later get their share. If a worker dies, or is silent for longer than the scheduler waits, its item is run on
    another worker. Raises `UserError` if the scheduler disappears.
    """
    from distributed import KilledWorker, as_completed

    waiting = as_completed()
    submitted = window = 0
    refresh_at = time.monotonic()
    while True:
        if time.monotonic() >= refresh_at:
            window = PARTITIONS_IN_FLIGHT_PER_WORKER * max(1, len(workers.addresses()))
            refresh_at = time.monotonic() + REFRESH_SECONDS
        for item in islice(items, max(0, window - submitted)):
            waiting.add(workers.submit(task, item))
            submitted += 1
        if not submitted:
            return
        future = _next_done(waiting)
        if future is None:
            continue
        submitted -= 1
        try:
            outcome = _result(future)
        except KilledWorker:
            outcome = None
        yield outcome


def _next_done(waiting: Any) -> Any:
    """Return a finished future of `waiting`, or None if there is none after `REFRESH_SECONDS`."""
    with waiting.thread_condition:
        waiting.thread_condition.wait_for(waiting.has_ready, REFRESH_SECONDS)
    return next(waiting) if waiting.has_ready() else None


def _result(future: Any) -> Any:
    """Return the result of a finished task, or raise its error; a lost scheduler is a `UserError`."""
    from distributed import CancelledError
    from distributed.comm import CommClosedError

    try:
        return future.result()
    except (CancelledError, CommClosedError):
        raise UserError("the Dask scheduler disappeared: start it, and run again to resume") from None
