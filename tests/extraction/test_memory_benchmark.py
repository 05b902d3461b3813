"""The program that measures memory: it sees what a process and its children hold, and names a broken promise."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).resolve().parents[2] / "benchmarks" / "memory.py"
MEGABYTE = 1024**2
HOLD = "import time; held = bytearray({bytes}); held[::4096] = b'1' * len(held[::4096]); time.sleep(0.6)"


@pytest.fixture(scope="module")
def memory():
    sys.path.insert(0, str(PROGRAM.parent))
    spec = importlib.util.spec_from_file_location("benchmark_memory", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path.remove(str(PROGRAM.parent))
    return module


def test_the_peak_counts_a_process_and_its_child(memory):
    child = HOLD.format(bytes=80 * MEGABYTE)
    both = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {child!r}]); {HOLD}"
    alone = memory.peak_of(subprocess.Popen([sys.executable, "-c", HOLD.format(bytes=60 * MEGABYTE)]))
    together = memory.peak_of(subprocess.Popen([sys.executable, "-c", both.format(bytes=60 * MEGABYTE)]))
    assert 60 * MEGABYTE < alone < 100 * MEGABYTE
    assert together - alone > 75 * MEGABYTE


def test_a_run_that_fails_is_no_measurement(memory):
    with pytest.raises(RuntimeError, match="exit code 3"):
        memory.peak_of(subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"]))


def test_growth_is_judged_by_the_promise(memory, capsys):
    assert memory.judge(1000, 1100)
    assert not memory.judge(1000, 1101)
    assert capsys.readouterr().out.count("BROKEN") == 1
