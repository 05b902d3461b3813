"""Several decoding children at work ahead of the one that eats: what they give comes in order. It decodes nothing."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import TypeVar

Child = TypeVar("Child")
Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


def prefetch(
    children: Sequence[Child], work: Callable[[Child, Item], Outcome], items: Sequence[Item]
) -> Iterator[Outcome]:
    """Yield `work(child, item)` in the order of the items; each child has one item at a time, in a thread of its own.

    At most as many outcomes as there are children are begun and not yet taken. A single child works when it is asked,
    in this thread: decoding and what follows it then take turns on one core.
    """
    if len(children) == 1:
        yield from (work(children[0], item) for item in items)
        return
    free: SimpleQueue[Child] = SimpleQueue()
    for child in children:
        free.put(child)

    def take_turn(item: Item) -> Outcome:
        child = free.get()
        try:
            return work(child, item)
        finally:
            free.put(child)

    with ThreadPoolExecutor(len(children)) as threads:
        begun: deque[Future[Outcome]] = deque()
        for item in items:
            if len(begun) == len(children):
                outcome = begun.popleft().result()
                begun.append(threads.submit(take_turn, item))
                yield outcome
            else:
                begun.append(threads.submit(take_turn, item))
        while begun:
            yield begun.popleft().result()
