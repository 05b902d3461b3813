"""Dask workers: a local cluster or an existing scheduler, and partitions streamed through it. It knows no feature."""

import errno
import logging
import tempfile
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


@dataclass(frozen=True)
class ClusterOptions:
    """Where to run: so many local worker processes (threads where `processes` is False), or a scheduler's address."""

    workers: int = 1
    scheduler: str | None = None
    processes: bool = True


@contextmanager
def connect(options: ClusterOptions) -> Iterator[Any]:
    """Yield a Dask client of a local cluster, which ends with the block, or of the scheduler that was named."""
    import dask
    from distributed import Client, LocalCluster

    if options.scheduler:
        try:
            client = Client(options.scheduler, timeout="10s")
        except (OSError, ValueError) as error:
            raise UserError(f"no Dask scheduler answers at {options.scheduler} ({error}): check --scheduler") from None
        with client:
            yield client
        return
    with (
        tempfile.TemporaryDirectory(prefix="mavqa-", ignore_cleanup_errors=True) as scratch,
        dask.config.set({"temporary-directory": scratch, "distributed.nanny.pre-spawn-environ": WORKER_ENVIRONMENT}),
        LocalCluster(
            n_workers=options.workers,
            threads_per_worker=1,
            processes=options.processes,
            host="127.0.0.1",
            dashboard_address=None,
            memory_limit=0,
            silence_logs=logging.CRITICAL,
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


def ask_first(client: Any, question: Callable[[], Outcome]) -> Outcome:
    """Put `question` to every worker that is there now, return the first answer; the others get ready meanwhile.

    What loading networks takes, tens of seconds, then passes on all workers at once.
    """
    from distributed import as_completed

    workers = list(client.scheduler_info()["workers"])
    places: list[list[str] | None] = [[worker] for worker in workers] or [None]
    answers = [client.submit(question, workers=place, pure=False) for place in places]
    first: Outcome = next(iter(as_completed(answers))).result()
    return first


def stream(client: Any, task: Callable[[Item], Outcome], items: Iterator[Item]) -> Iterator[Outcome | None]:
    """Yield the outcome of `task` for each item as it comes, None for an item whose workers died again and again.

    Few items are under way at once, so that planning a million of them needs no memory.
    Raises `UserError` where a worker found the disk full.
    """
    from distributed import KilledWorker, as_completed

    def submit(item: Item) -> Any:
        return client.submit(task, item, pure=False)

    window = PARTITIONS_IN_FLIGHT_PER_WORKER * max(1, len(client.scheduler_info()["workers"]))
    waiting = as_completed([submit(item) for item in islice(items, window)])
    for future in waiting:
        try:
            outcome = future.result()
        except KilledWorker:
            outcome = None
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise UserError(f"no space left on the store's disk ({error}): free some and run again to go on") from None
        yield outcome
        for item in islice(items, 1):
            waiting.add(submit(item))
