"""The program that measures memory: it sees what a process and its children hold, and names a broken promise."""

import subprocess
import sys

import memory
import pytest

MEGABYTE = 1024**2
HOLD = "import time; held = bytearray({bytes}); held[::4096] = b'1' * len(held[::4096]); time.sleep(0.6)"


def test_the_peak_counts_a_process_and_its_child():
    child = HOLD.format(bytes=80 * MEGABYTE)
    both = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {child!r}]); {HOLD}"
    alone = memory.peak_of(subprocess.Popen([sys.executable, "-c", HOLD.format(bytes=60 * MEGABYTE)]))
    together = memory.peak_of(subprocess.Popen([sys.executable, "-c", both.format(bytes=60 * MEGABYTE)]))
    assert 60 * MEGABYTE < alone < 100 * MEGABYTE
    assert together - alone > 75 * MEGABYTE


def test_a_run_that_fails_is_no_measurement():
    with pytest.raises(RuntimeError, match="exit code 3"):
        memory.peak_of(subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"]))


def test_growth_is_judged_by_the_promise(capsys):
    assert memory.judge(1000, 1100)
    assert not memory.judge(1000, 1101)
    assert capsys.readouterr().out.count("BROKEN") == 1
