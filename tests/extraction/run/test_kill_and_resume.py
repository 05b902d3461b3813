"""A run killed at any moment and resumed leaves the same bytes as one that was never stopped."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import paths
import pytest
from run_toys import STEPS, contents, run_toys

# Calls of a step beyond the first; the tenth of "index" is between the states of two features.
LATER = (("create", 2), ("values", 5), ("state", 2), ("resize", 5), ("index", 10), ("index", 13))
DRIVER = paths.EXTRACTION / "run_toys.py"


def modified(store: Path) -> dict[Path, int]:
    """Return {file: time of its last write} without metadata, which every run consolidates again."""
    return {p: p.stat().st_mtime_ns for p in store.rglob("*") if p.is_file() and p.name != "zarr.json"}


@pytest.fixture(scope="module")
def uninterrupted(toy_manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    store = tmp_path_factory.mktemp("uninterrupted") / "store.zarr"
    assert run_toys(toy_manifest, store).is_complete
    return contents(store)


def start(*arguments: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, str(DRIVER), *map(str, arguments)], cwd=paths.ROOT)


def test_several_decoder_processes_give_the_bytes_of_one(
    toy_manifest: Path, uninterrupted: dict[str, str], tmp_path: Path
) -> None:
    assert run_toys(toy_manifest, tmp_path / "store.zarr", decoding_processes=3).is_complete
    assert contents(tmp_path / "store.zarr") == uninterrupted


# What is on disk after a step is there before the next one, too.
@pytest.mark.parametrize("when", ["before", pytest.param("after", marks=pytest.mark.nightly)])
@pytest.mark.parametrize(("step", "count"), [*((step, 1) for step in STEPS), *LATER])
def test_killed_at_a_named_step_and_resumed_gives_the_same_bytes(
    step: str, count: int, when: str, toy_manifest: Path, uninterrupted: dict[str, str], tmp_path: Path
) -> None:
    store = tmp_path / "store.zarr"
    assert start(toy_manifest, store, step, when, count).wait() == -signal.SIGKILL
    assert contents(store) != uninterrupted
    run_toys(toy_manifest, store)
    assert contents(store) == uninterrupted


def test_killed_between_the_seal_and_the_consolidated_metadata_gives_the_same_bytes(
    toy_manifest: Path, uninterrupted: dict[str, str], tmp_path: Path
) -> None:
    store = tmp_path / "store.zarr"
    assert start(toy_manifest, store, "consolidate", "before", 6).wait() == -signal.SIGKILL
    document = json.loads((store / "zarr.json").read_text())
    assert "seal" in document["attributes"]
    assert "consolidated_metadata" not in document
    run_toys(toy_manifest, store)
    assert contents(store) == uninterrupted


def test_killed_at_five_random_moments_and_resumed_gives_the_same_bytes(
    toy_manifest: Path, uninterrupted: dict[str, str], tmp_path: Path
) -> None:
    store = tmp_path / "store.zarr"
    moments = random.Random(5)
    for _ in range(5):
        process = start(toy_manifest, store)
        while not store.exists() and process.poll() is None:
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 1.5))
        process.kill()
        process.wait()
    run_toys(toy_manifest, store)
    assert contents(store) == uninterrupted


def test_a_second_run_extracts_nothing_and_changes_no_byte(
    toy_manifest: Path, uninterrupted: dict[str, str], tmp_path: Path
) -> None:
    store = tmp_path / "store.zarr"
    run_toys(toy_manifest, store)
    before = modified(store)
    summary = run_toys(toy_manifest, store)
    assert summary.extracted == 0
    assert contents(store) == uninterrupted
    assert before == modified(store)
