"""Children work ahead of the one that takes, in order, never more than there are, and errors come out."""

import threading
import time

import pytest

from pipeline.media.prefetch import prefetch


class Watch:
    """Work that takes longer for early items and knows how much of it is under way."""

    def __init__(self, is_slow: bool = True) -> None:
        self.begun: list[tuple[str, int]] = []
        self.together = self.most = 0
        self._is_slow, self._lock = is_slow, threading.Lock()

    def __call__(self, child: str, item: int) -> tuple[str, int]:
        with self._lock:
            self.begun.append((child, item))
            self.together += 1
            self.most = max(self.most, self.together)
        time.sleep(0.02 / (1 + item) if self._is_slow else 0)
        with self._lock:
            self.together -= 1
        return child, item


def test_outcomes_come_in_order_though_later_items_are_faster():
    watch = Watch()
    found = list(prefetch("abc", watch, range(10)))
    assert [item for _, item in found] == list(range(10))
    assert {child for child, _ in found} == set("abc")
    assert 1 < watch.most <= 3


def test_a_child_has_one_item_at_a_time():
    busy: set[str] = set()

    def work(child: str, item: int) -> int:
        assert child not in busy
        busy.add(child)
        time.sleep(0.002)
        busy.remove(child)
        return item

    assert list(prefetch("abcd", work, range(40))) == list(range(40))


def test_no_more_is_begun_than_there_are_children():
    watch = Watch(is_slow=False)
    outcomes = prefetch("abc", watch, range(100))
    for taken in range(1, 20):
        next(outcomes)
        time.sleep(0.005)
        assert len(watch.begun) <= taken + 3
    outcomes.close()


def test_one_child_works_in_this_thread_and_only_when_asked():
    threads = []
    outcomes = prefetch("a", lambda child, item: threads.append(threading.current_thread()), range(3))
    assert threads == []
    next(outcomes)
    assert threads == [threading.current_thread()]


@pytest.mark.parametrize("children", ["a", "abc"])
def test_what_work_raises_comes_out_where_its_item_stands(children):
    def work(child: str, item: int) -> int:
        if item == 2:
            raise RuntimeError("item 2")
        return item

    outcomes = prefetch(children, work, range(5))
    assert [next(outcomes), next(outcomes)] == [0, 1]
    with pytest.raises(RuntimeError, match="item 2"):
        next(outcomes)


def test_nothing_gives_nothing():
    assert list(prefetch("abc", Watch(), ())) == []
