"""Ctrl-C in long commands: one line that says how to go on, exit code 130, and no process left behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

BIN = Path(sys.executable).parent
GRID = """
preset = "demo"
[settings]
epochs = 100
[[methods]]
name = "zero-fill"
[[methods]]
name = "modality-dropout"
"""
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small manifest `data`, its store `s.zarr` and a grid of long trainings."""
    folder = tmp_path_factory.mktemp("interrupts")
    extraction = ["mavqa-extract", "--manifest", "data", "--store", "s.zarr", "--weights", "seeded"]
    for words in (["mavqa-manifest", "synthesize", "--out", "data", "--videos", "16", "--seconds", "2"], extraction):
        subprocess.run([BIN / words[0], *words[1:]], cwd=folder, check=True, capture_output=True)
    (folder / "grid.toml").write_text(GRID)
    return folder


def interrupt(folder: Path, words: list[str], is_due: Callable[[], bool]) -> str:
    """Press Ctrl-C in the command `words` when `is_due`: all its processes receive SIGINT. Return its stderr."""
    command = [str(BIN / words[0]), *words[1:]]
    process = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 120
    while not is_due() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    children = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)
    _, shown = process.communicate(timeout=60)
    assert process.returncode == 130, shown
    _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []
    return shown


@pytest.mark.parametrize(
    ("command", "sign", "advice"),
    [
        pytest.param(
            "mavqa-manifest synthesize --videos 400 --out out",
            "out/videos/*",
            "run the same command again",
            id="synthesize",
            marks=pytest.mark.nightly,
        ),
        pytest.param(
            "mavqa-extract --manifest data --store out.zarr --weights seeded --seconds 2",
            "out.zarr/features/resnet18-map",
            "run the same command again to resume",
            id="extract",
        ),
        pytest.param(
            "mavqa-train --preset demo --manifest data --store s.zarr --out run --epochs 99",
            "run/last.safetensors",
            "run it with --resume to go on",
            id="train",
            marks=pytest.mark.nightly,
        ),
        pytest.param(
            "mavqa-sweep grid.toml --manifest data --store s.zarr --out runs --jobs 2",
            "runs/*/last.safetensors",
            "run the same command again to go on",
            id="sweep",
        ),
    ],
)
def test_ctrl_c_ends_a_command_in_one_line(dataset: Path, command: str, sign: str, advice: str) -> None:
    shown = interrupt(dataset, command.split(), lambda: any(dataset.glob(sign)))
    lines = [line for line in shown.splitlines() if line.startswith("interrupted: ")]
    assert shown.splitlines()[-1] == lines[-1]
    assert len(lines) == 1
    assert advice in lines[0]
    assert "Traceback" not in shown


STUCK = """
import sys, time
import mavqa.commands
from mavqa.__main__ import main

def load(name):
    try:
        print("loading", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        print("cleaning up", flush=True)
        if sys.argv[1] == "twice":
            time.sleep(60)
        raise

mavqa.commands.load = load
sys.argv[0] = "mavqa" if sys.argv[1] == "train" else "mavqa-train"
main()
"""


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("once", "interrupted: run the same command again\n"),
        ("train", "interrupted: run the same command again\n"),
        ("twice", "interrupted a second time: stopped at once\n"),
    ],
)
def test_ctrl_c_before_a_command_runs_and_a_second_one_are_one_line(tmp_path: Path, word: str, expected: str) -> None:
    words = [sys.executable, "-c", STUCK, word]
    process = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "loading\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "cleaning up\n"
    if word == "twice":
        process.send_signal(signal.SIGINT)
    _, shown = process.communicate(timeout=30)
    assert (process.returncode, shown) == (130, expected)


def test_a_command_in_the_background_of_a_script_ignores_ctrl_c(tmp_path: Path) -> None:
    program = STUCK.replace("time.sleep(60)", "time.sleep(1); raise SystemExit(0)")
    start = f"import signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN)\n{program}"
    process = subprocess.Popen([sys.executable, "-c", start, "once"], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "loading\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 0


def test_workers_end_with_a_killed_command(tmp_path: Path) -> None:
    words = [BIN / "mavqa-manifest", "synthesize", "--out", "data", "--videos", "400", "--workers", "2"]
    process = subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.DEVNULL)
    while not any(tmp_path.glob("data/videos/*")) and process.poll() is None:
        time.sleep(0.02)
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert (len(children) >= 2, alive) == (True, [])
