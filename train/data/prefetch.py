"""Results computed ahead of their use, by threads, in the order of their items."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


# One by one, between copies of features, small computations take six times as long.
GROUP = 32


def in_groups(items: Iterator[Item]) -> Iterator[Item]:
    """Yield `items`, of which `GROUP` at a time are taken."""
    while group := list(islice(items, GROUP)):
        yield from group


def compute_ahead(
    work: Callable[[Item], Result], items: Iterable[Item], workers: int, ahead: int = 2
) -> Iterator[Result]:
    """Yield `work(item)` of each item, in order; `workers` threads compute up to `ahead` results per thread in advance.

    Items are taken from `items` by the calling thread, so that what they are drawn from has the same state whatever the
    number of workers. With 0 workers the calling thread computes each result when it is asked for.
    """
    if workers == 0:
        yield from map(work, items)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="prefetch")
    pending: deque[Future[Result]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(work, item))
            if len(pending) > ahead * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
