"""Progress of long work on stderr: bars on a terminal, elsewhere a line about every 30 seconds."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

INTERVAL_SECONDS = 30.0
# Shorter tasks have no line at their end.
SHORTEST_SECONDS = 1.0


@dataclass
class _Task:
    """One task: `done` of `total` units at the time `updated`, `first` of them when it `started`.

    `total` is None until it is known.
    """

    unit: str
    started: float
    updated: float
    first: int
    done: int
    total: int | None
    detail: str = ""

    @property
    def is_due(self) -> bool:
        """Whether the task is under way; its last line is printed by `finish`."""
        return self.total is None or self.done < self.total

    def describe(self, name: str, now: float) -> str:
        """Return a line such as `extract: 120/500 videos, 4.1 videos/s, 1:33 left, 2 failed`."""
        taken = now - self.started
        if self.total is None:
            return f"{name}: {self.detail or 'starting'}, {_clock(taken)} so far"
        parts = [f"{name}: {self.done:,}/{self.total:,} {self.unit}"]
        rate = (self.done - self.first) / max(taken, 1e-9)
        if self.done >= self.total:
            parts[0] += f" in {_clock(self.updated - self.started)}"
        elif rate:
            parts.append(f"{rate:,.1f} {self.unit}/s" if rate >= 0.1 else f"{60 * rate:,.1f} {self.unit}/min")
            parts.append(f"{_clock((self.total - self.done) / rate)} left")
        else:
            parts.append(f"{_clock(taken)} so far")
        return ", ".join([*parts, *([self.detail] if self.detail else [])])


class Progress:
    """The progress of named tasks. `bars`: show it as bars; None: as lines on `stream`, one per call of `report`."""

    def __init__(self, stream: TextIO, bars: "Bars | None" = None) -> None:
        self._stream, self._bars = stream, bars
        self._tasks: dict[str, _Task] = {}
        self._bar_ids: dict[str, Any] = {}
        self._lock = threading.Lock()

    def update(self, name: str, done: int, total: int | None, unit: str, detail: str = "") -> None:
        """Set the state of the task `name`: `done` of `total` units, None while the total is not known."""
        with self._lock:
            task, now = self._tasks.get(name), time.monotonic()
            if task is None or (task.total is None and total is not None):
                task = self._tasks[name] = _Task(unit, now, now, done, done, total)
            task.updated, task.done, task.total, task.detail = now, done, total, detail
        if self._bars is not None:
            if name not in self._bar_ids:
                self._bar_ids[name] = self._bars.add_task(name, total=total, detail="")
            self._bars.update(self._bar_ids[name], completed=done, total=total, detail=detail)

    def finish(self, name: str) -> None:
        """Print the last line of the task `name`, if it has a total, is not finished yet and was not short."""
        with self._lock:
            task = self._tasks.pop(name, None)
        now = time.monotonic()
        if task is None or task.total is None or self._bars is not None:
            return
        if now - task.started >= SHORTEST_SECONDS:
            self.write(task.describe(name, now))

    def write(self, text: str) -> None:
        """Print a line of its own, above the bars."""
        if self._bars is not None:
            self._bars.console.print(text, markup=False, emoji=False, highlight=False)
        else:
            print(text, file=self._stream, flush=True)

    def report(self) -> None:
        """Print a line for each task that is under way, also if it has not changed: a silent command looks hung."""
        with self._lock:
            due = {name: task for name, task in self._tasks.items() if task.is_due}
        for name, task in due.items():
            self.write(task.describe(name, time.monotonic()))

    def finish_all(self) -> None:
        """Print the last line of every task."""
        for name in list(self._tasks):
            self.finish(name)


@contextmanager
def show_progress() -> Iterator[Progress]:
    """Yield a `Progress` shown on stderr while the block runs; lines also have the state at the end of the block."""
    if sys.stderr.isatty():
        with _bars() as bars:
            yield Progress(sys.stderr, bars)
        return
    progress, is_over = Progress(sys.stderr), threading.Event()

    def report_regularly() -> None:
        while not is_over.wait(INTERVAL_SECONDS):
            progress.report()

    thread = threading.Thread(target=report_regularly, daemon=True)
    thread.start()
    try:
        yield progress
    finally:
        is_over.set()
        thread.join()
        progress.finish_all()


@contextmanager
def show_task(name: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a function of (done, total) that shows the progress of a single task, in units such as "videos"."""
    with show_progress() as progress:
        yield lambda done, total: progress.update(name, done, total, unit)


def _bars() -> "Bars":
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[detail]}"),
    )
    return Bars(*columns, console=Console(stderr=True))


def _clock(seconds: float) -> str:
    """Return a duration as minutes:seconds or hours:minutes:seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
