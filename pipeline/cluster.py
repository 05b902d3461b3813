"""Dask workers: a local cluster or an existing scheduler, and partitions streamed through it. It knows no feature."""

import errno
import logging
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from pipeline.failure import UserError

PARTITIONS_IN_FLIGHT_PER_WORKER = 2

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
    from distributed import Client, LocalCluster

    with (
        tempfile.TemporaryDirectory(prefix="mavqa-", ignore_cleanup_errors=True) as scratch,
        dask.config.set({"temporary-directory": scratch, "distributed.nanny.pre-spawn-environ": WORKER_ENVIRONMENT}),
        LocalCluster(
            n_workers=options.workers,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address=None,
            memory_limit=0,
            silence_logs=logging.CRITICAL,
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


def ask_first(workers: Workers, question: Callable[[], Outcome]) -> Outcome:
    """Put `question` to every worker that is there now, return the first answer; the others get ready meanwhile.

    What loading networks takes, tens of seconds, then passes on all workers at once.
    Raises `UserError` where mavqa is not installed on the scheduler or the worker.
    """
    from distributed import as_completed

    places: list[list[str] | None] = [[address] for address in workers.addresses()] or [None]
    answers = [workers.submit(question, where=place) for place in places]
    first: Outcome
    try:
        first = next(iter(as_completed(answers))).result()
    except (ModuleNotFoundError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "deserialization" not in str(error):
            raise
        cause = error.__cause__ or error
        raise UserError(
            f"the scheduler or a worker cannot load mavqa ({cause}): install it there, the same version everywhere"
        ) from None
    return first


def stream(workers: Workers, task: Callable[[Item], Outcome], items: Iterator[Item]) -> Iterator[Outcome | None]:
    """Yield the outcome of `task` for each item as it comes, None for an item whose workers died again and again.

    Few items are under way at once, so that planning a million of them needs no memory. An item whose worker died, or
    was silent for longer than the scheduler waits, is done by another.
    Raises `UserError` where a worker found the disk full, or the scheduler went away.
    """
    from distributed import CancelledError, KilledWorker, as_completed
    from distributed.comm import CommClosedError

    window = PARTITIONS_IN_FLIGHT_PER_WORKER * max(1, len(workers.addresses()))
    waiting = as_completed([workers.submit(task, item) for item in islice(items, window)])
    for future in waiting:
        try:
            outcome = future.result()
        except KilledWorker:
            outcome = None
        except (CancelledError, CommClosedError):
            raise UserError("the Dask scheduler went away: start it, and run again to go on") from None
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise UserError(f"no space left on the store's disk ({error}): free some and run again to go on") from None
        yield outcome
        for item in islice(items, 1):
            waiting.add(workers.submit(task, item))
