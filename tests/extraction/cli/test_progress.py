"""Progress without a terminal: which lines are printed, and what they say."""

import io
import sys
import time

import pytest

from pipeline.cli import progress as module
from pipeline.cli.progress import Progress, show_progress, show_task


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still at 100 s until the test sets it."""
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_a_line_has_done_total_rate_time_left_and_detail(clock):
    stream = io.StringIO()
    progress = Progress(stream)
    progress.update("extract", 0, None, "videos", "starting workers")
    clock[0] = 105
    progress.report()
    progress.update("extract", 1_000, 4_000, "videos")  # resumed: 1,000 were done before
    clock[0] = 205
    progress.update("extract", 1_200, 4_000, "videos", "2 failed")
    progress.report()
    clock[0] = 225
    progress.report()  # nothing has changed: the rate falls
    clock[0] = 5_205
    progress.update("extract", 4_000, 4_000, "videos", "2 failed")
    clock[0] = 6_000
    progress.finish("extract")
    progress.finish("extract")
    progress.update("encode", 70, 70, "questions")
    progress.finish("encode")  # too short for a line
    assert stream.getvalue().splitlines() == [
        "extract: starting workers, 0:05 so far",
        "extract: 1,200/4,000 videos, 2.0 videos/s, 23:20 left, 2 failed",
        "extract: 1,200/4,000 videos, 1.7 videos/s, 28:00 left, 2 failed",
        "extract: 4,000/4,000 videos in 1:25:00, 2 failed",
    ]


def test_slow_work_has_its_rate_per_minute(clock):
    stream = io.StringIO()
    progress = Progress(stream)
    progress.update("sweep", 0, 4, "runs")
    clock[0] = 130
    progress.report()
    clock[0] = 220
    progress.update("sweep", 1, 4, "runs")
    progress.report()
    assert stream.getvalue() == "sweep: 0/4 runs, 0:30 so far\nsweep: 1/4 runs, 0.5 runs/min, 6:00 left\n"


def test_lines_come_while_the_work_goes_on_and_at_its_end(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(module, "INTERVAL_SECONDS", 0.05)
    monkeypatch.setattr(module, "SHORTEST_SECONDS", 0.0)
    with show_progress() as progress:
        progress.update("verify", 1, 3, "rows")
        deadline = time.monotonic() + 20
        while "verify: 1/3" not in stream.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert stream.getvalue().count("verify: 1/3 rows") == 1
        progress.write("a note")
        progress.update("verify", 3, 3, "rows")
    assert stream.getvalue().splitlines()[-2:] == ["a note", "verify: 3/3 rows in 0:00"]


def test_work_that_fails_shows_how_far_it_came(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(module, "SHORTEST_SECONDS", 0.0)

    def fail() -> None:
        with show_task("hash", "videos") as progress:
            progress(2, 5)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert stream.getvalue().startswith("hash: 2/5 videos")


def test_a_terminal_shows_bars_and_notes(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    with show_progress() as progress:
        progress.update("extract", 1, 2, "videos", "1 failed")
        progress.write("[a note]")
        progress.update("extract", 2, 2, "videos", "1 failed")
    shown = stream.getvalue()
    assert "[a note]" in shown
    assert "2/2" in shown
    assert "1 failed" in shown
