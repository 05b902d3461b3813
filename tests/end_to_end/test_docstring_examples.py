"""The examples in the docstrings of the public names, on a small dataset, store and run."""

import doctest
import subprocess
import sys
from pathlib import Path

import pytest

import mavqa
from mavqa import functions

BIN = Path(sys.executable).parent


@pytest.mark.slow
def test_the_examples_of_the_docstrings_run(tmp_path, monkeypatch):
    def run(*words: str) -> None:
        subprocess.run([BIN / words[0], *words[1:]], cwd=tmp_path, check=True, capture_output=True)

    run("mavqa-manifest", "synthesize", "--out", "data", "--videos", "16", "--seconds", "2")
    run("mavqa-extract", "--manifest", "data", "--store", "store.zarr", "--weights", "seeded", "--seconds", "2")
    trained = ("--method", "zero-fill", "--epochs", "1", "--out", "runs/zero-fill")
    run("mavqa-train", "--manifest", "data", "--store", "store.zarr", "--preset", "demo", *trained)
    monkeypatch.chdir(tmp_path)
    for module in (mavqa, functions):
        found = doctest.testmod(module)
        assert found.attempted
        assert not found.failed
