"""Prefetched outcomes are in order, no more are started than there are decoders, and errors are raised."""

import threading
import time

import pytest

from pipeline.media.prefetch import prefetch


class Watch:
    """Work that takes longer for early items, and counts the items in progress."""

    def __init__(self, is_slow: bool = True) -> None:
        self.started: list[tuple[str, int]] = []
        self.running = self.max_running = 0
        self._is_slow, self._lock = is_slow, threading.Lock()

    def __call__(self, decoder: str, item: int) -> tuple[str, int]:
        with self._lock:
            self.started.append((decoder, item))
            self.running += 1
            self.max_running = max(self.max_running, self.running)
        time.sleep(0.02 / (1 + item) if self._is_slow else 0)
        with self._lock:
            self.running -= 1
        return decoder, item


def test_outcomes_come_in_order_though_later_items_are_faster():
    watch = Watch()
    outcomes = list(prefetch("abc", watch, range(10)))
    assert [item for _, item in outcomes] == list(range(10))
    assert {decoder for decoder, _ in outcomes} == set("abc")
    assert 1 < watch.max_running <= 3


def test_a_decoder_has_one_item_at_a_time():
    busy: set[str] = set()

    def work(decoder: str, item: int) -> int:
        assert decoder not in busy
        busy.add(decoder)
        time.sleep(0.002)
        busy.remove(decoder)
        return item

    assert list(prefetch("abcd", work, range(40))) == list(range(40))


def test_no_more_items_are_started_than_there_are_decoders():
    watch = Watch(is_slow=False)
    outcomes = prefetch("abc", watch, range(100))
    for taken in range(1, 20):
        next(outcomes)
        time.sleep(0.005)
        assert len(watch.started) <= taken + 3
    outcomes.close()


def test_a_single_decoder_runs_in_this_thread_and_on_demand():
    threads = []
    outcomes = prefetch("a", lambda decoder, item: threads.append(threading.current_thread()), range(3))
    assert threads == []
    next(outcomes)
    assert threads == [threading.current_thread()]


@pytest.mark.parametrize("decoders", ["a", "abc"])
def test_errors_are_raised_at_the_position_of_their_item(decoders):
    def work(decoder: str, item: int) -> int:
        if item == 2:
            raise RuntimeError("item 2")
        return item

    outcomes = prefetch(decoders, work, range(5))
    assert [next(outcomes), next(outcomes)] == [0, 1]
    with pytest.raises(RuntimeError, match="item 2"):
        next(outcomes)


def test_no_items_have_no_outcomes():
    assert list(prefetch("abc", Watch(), ())) == []
