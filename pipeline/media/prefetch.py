"""Prefetch: several decoder processes decode ahead of the consumer; results arrive in the order of the items."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import TypeVar

Decoder = TypeVar("Decoder")
Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


def prefetch(
    decoders: Sequence[Decoder], work: Callable[[Decoder, Item], Outcome], items: Sequence[Item]
) -> Iterator[Outcome]:
    """Yield `work(decoder, item)` in the order of the items; each decoder runs one item at a time, in its own thread.

    At most as many items as there are decoders are started and not yet yielded. A single decoder runs on demand in the
    calling thread, so that decoding and the consumer alternate on one core.
    """
    if len(decoders) == 1:
        yield from (work(decoders[0], item) for item in items)
        return
    idle: SimpleQueue[Decoder] = SimpleQueue()
    for decoder in decoders:
        idle.put(decoder)

    def run(item: Item) -> Outcome:
        decoder = idle.get()
        try:
            return work(decoder, item)
        finally:
            idle.put(decoder)

    with ThreadPoolExecutor(len(decoders)) as threads:
        started: deque[Future[Outcome]] = deque()
        for item in items:
            if len(started) == len(decoders):
                outcome = started.popleft().result()
                started.append(threads.submit(run, item))
                yield outcome
            else:
                started.append(threads.submit(run, item))
        while started:
            yield started.popleft().result()
