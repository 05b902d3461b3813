"""The memory benchmark: the peak includes child processes, and a broken promise is reported."""

import subprocess
import sys

import memory
import pytest

MEGABYTE = 1024**2
ALLOCATE = "import time; block = bytearray({bytes}); block[::4096] = b'1' * len(block[::4096]); time.sleep(0.6)"


def test_the_peak_includes_child_processes():
    child = ALLOCATE.format(bytes=80 * MEGABYTE)
    both = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {child!r}]); {ALLOCATE}"
    alone = memory.measure_peak(subprocess.Popen([sys.executable, "-c", ALLOCATE.format(bytes=60 * MEGABYTE)]))
    together = memory.measure_peak(subprocess.Popen([sys.executable, "-c", both.format(bytes=60 * MEGABYTE)]))
    assert 60 * MEGABYTE < alone < 100 * MEGABYTE
    assert together - alone > 75 * MEGABYTE


def test_a_failed_run_raises():
    with pytest.raises(RuntimeError, match="exit code 3"):
        memory.measure_peak(subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"]))


def test_growth_is_compared_with_the_promise(capsys):
    assert memory.print_promise(1000, 1100)
    assert not memory.print_promise(1000, 1101)
    assert capsys.readouterr().out.count("BROKEN") == 1
