"""The benchmark of training by several processes."""

import re
import subprocess
import sys
from pathlib import Path

import paths
import pytest


@pytest.mark.nightly
def test_two_processes_are_timed_beside_one(tmp_path: Path) -> None:
    chosen = ["--method", "zero-fill", "--batch-size", "2", "--steps", "1", "--rounds", "1", "--device", "cpu"]
    command = [sys.executable, "benchmarks/processes.py", *chosen, "--videos", "16", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=paths.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rates = re.findall(r"^(\d) processes: ([\d.]+), ([\d.]+) times one$", done.stdout, re.MULTILINE)
    assert [count for count, _, _ in rates] == ["1", "2"]
    assert all(float(rate) > 0 for _, rate, _ in rates)
    assert rates[0][2] == "1.00"
