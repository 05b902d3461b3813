"""Progress of long work on stderr: bars on a terminal, elsewhere a line about every 30 seconds."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

INTERVAL_SECONDS = 30.0


@dataclass
class _Task:
    """The state of one task: `done` of `total` units (None: not known yet) since `started`, with a detail as text."""

    unit: str
    started: float
    first: int = 0
    done: int = 0
    total: int | None = None
    detail: str = ""
    is_shown: bool = field(default=False)

    def describe(self, name: str, now: float) -> str:
        """Return the line of the task, such as `extract: 120/500 videos, 4.1 videos/s, 1:33 left, 2 failed`."""
        if self.total is None:
            parts = [f"{name}: {self.detail or 'starting'}", f"{_clock(now - self.started)} so far"]
            return ", ".join(parts)
        rate = (self.done - self.first) / max(now - self.started, 1e-9)
        parts = [f"{name}: {self.done:,}/{self.total:,} {self.unit}"]
        if rate:
            parts.append(f"{rate:,.1f} {self.unit}/s" if rate >= 0.1 else f"{60 * rate:,.1f} {self.unit}/min")
            parts.append(f"{_clock((self.total - self.done) / rate)} left")
        return ", ".join([*parts, *([self.detail] if self.detail else [])])


class Progress:
    """Show the progress of named tasks; use `show_progress`."""

    def __init__(self, stream: TextIO, bars: "Bars | None") -> None:
        self._stream, self._bars = stream, bars
        self._tasks: dict[str, _Task] = {}
        self._bar_ids: dict[str, Any] = {}
        self._lock = threading.Lock()

    def update(self, name: str, done: int, total: int | None, unit: str, detail: str = "") -> None:
        """Set the state of the task `name`: `done` of `total` units, None while the total is not known."""
        with self._lock:
            task = self._tasks.get(name)
            if task is None or (task.total is None and total is not None):
                task = self._tasks[name] = _Task(unit, time.monotonic(), first=done)
            task.done, task.total, task.detail = done, total, detail
            task.is_shown = False
        if self._bars is not None:
            if name not in self._bar_ids:
                self._bar_ids[name] = self._bars.add_task(name, total=total, detail="")
            self._bars.update(self._bar_ids[name], completed=done, total=total, detail=detail)

    def write(self, text: str) -> None:
        """Print a line of its own, above the bars."""
        if self._bars is not None:
            self._bars.console.print(text, markup=False, emoji=False, highlight=False)
        else:
            print(text, file=self._stream, flush=True)

    def report(self) -> None:
        """Print a line for each task that is not finished, or has changed since its last line."""
        now = time.monotonic()
        with self._lock:
            lines = []
            for name, task in self._tasks.items():
                is_finished = task.total is not None and task.done >= task.total
                if not task.is_shown and not (is_finished and task.first >= task.done):
                    lines.append(task.describe(name, now))
                task.is_shown = is_finished
        for line in lines:
            self.write(line)


@contextmanager
def show_progress() -> Iterator[Progress]:
    """Yield a `Progress` shown on stderr while the block runs; if that is no terminal, its last state is printed too."""
    stream = sys.stderr
    if stream.isatty():
        with _bars() as bars:
            yield Progress(stream, bars)
        return
    progress, is_over = Progress(stream, None), threading.Event()

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
        progress.report()


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
    return Bars(*columns, console=Console(stderr=True), transient=True)


def _clock(seconds: float) -> str:
    """Return a duration as minutes:seconds or hours:minutes:seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
