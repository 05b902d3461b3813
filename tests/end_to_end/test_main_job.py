"""The main job through its commands, small: videos, store, models, report; killed and resumed; two at a time."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.inspection.verify import verify_store
from pipeline.store.reader import open_store

BIN = Path(sys.executable).parent
GRID = """
preset = "demo"
[settings]
epochs = 1
[[methods]]
name = "question-only"
inputs = "question"
[[methods]]
name = "zero-fill"
[[methods]]
name = "rmm-avr"
start_from = "zero-fill"
"""
pytestmark = pytest.mark.slow


def start(*words: object) -> subprocess.Popen[str]:
    command = [str(BIN / str(words[0])), *map(str, words[1:])]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def run(*words: object, code: int = 0) -> str:
    process = start(*words)
    out, err = process.communicate()
    assert process.returncode == code, err
    return err if code else out


def extraction(data: Path, store: Path) -> tuple[object, ...]:
    options = ("--features", "resnet18-map,tokens", "--weights", "seeded", "--seconds", 2, "--workers", 2)
    return ("mavqa-extract", "--manifest", data, "--store", store, *options)


def contents(store: Path) -> dict[str, str]:
    files = (path for path in store.rglob("*") if path.is_file() and path.suffix != ".partial")
    return {str(path.relative_to(store)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "data"
    run("mavqa-manifest", "synthesize", "--out", folder, "--videos", 24, "--seconds", 2)
    return folder


def assert_parallel_jobs_give_the_same_losses(folder: Path, data: Path, store: Path) -> None:
    places = ("--out", folder / "two" / "runs", "--evaluation", folder / "two" / "evaluation.json")
    options = (*places, "--jobs", 2, "--tracker", "csv")
    run("mavqa-sweep", folder / "grid.toml", "--manifest", data, "--store", store, *options)
    for name in json.loads((folder / "two" / "evaluation.json").read_text()):
        one, two = (
            json.loads((runs / name / "metrics.jsonl").read_text())["losses"]
            for runs in (folder / "runs", folder / "two" / "runs")
        )
        assert two == pytest.approx(one, rel=1e-3), name
        assert (folder / "two" / "runs" / name / "steps.csv").exists()


def test_videos_become_a_store_models_and_a_report(data: Path, tmp_path: Path) -> None:
    store, runs = tmp_path / "store.zarr", tmp_path / "runs"
    shown = run("mavqa-extract", "--manifest", data, "--store", store, "--weights", "seeded", "--seconds", 2, "--json")
    document = json.loads(shown)
    assert document["extracted"] == 24
    assert document["features"]["vggish"]["failed"] == 0
    assert document["features"]["vggish"]["absent"] > 0
    assert verify_store(open_store(store)) == []
    (tmp_path / "grid.toml").write_text(GRID)
    run("mavqa-sweep", tmp_path / "grid.toml", "--manifest", data, "--store", store, "--out", runs)
    evaluation = json.loads((runs / "evaluation.json").read_text())
    assert set(evaluation) == {"question-only-seed0", "zero-fill-seed0", "rmm-avr-seed0"}
    for found in evaluation.values():
        assert {"complete", "audio-missing", "visual-missing", "both-missing"} <= set(found["scenarios"])
        assert found["floors"]["template_majority"] > 0
        assert found["floors"]["question_only"] is not None
    complete = {name: found["scenarios"]["complete"]["questions"] for name, found in evaluation.items()}
    assert len(set(complete.values())) == 1
    config = json.loads((runs / "rmm-avr-seed0" / "config.json").read_text())
    assert (config["manifest"], config["store"]) == (str(data), str(store))
    again = json.loads(run("mavqa-evaluate", runs / "rmm-avr-seed0", "--json"))
    assert again["scenarios"]["complete"] == evaluation["rmm-avr-seed0"]["scenarios"]["complete"]
    assert_parallel_jobs_give_the_same_losses(tmp_path, data, store)
    run("mavqa-report", runs, "--out", tmp_path / "report")
    assert "rmm-avr" in (tmp_path / "report" / "index.html").read_text()


@pytest.mark.nightly
def test_a_run_killed_with_active_workers_resumes_to_the_same_bytes(data: Path, tmp_path: Path) -> None:
    expected, killed = tmp_path / "expected.zarr", tmp_path / "killed.zarr"
    run(*extraction(data, expected))
    process = start(*extraction(data, killed))
    deadline = time.monotonic() + 120
    while not list(killed.glob("features/resnet18-map/values/c.*.0.0.0.0")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert contents(killed) != contents(expected)
    run(*extraction(data, killed))
    assert contents(killed) == contents(expected)


@pytest.mark.nightly
def test_a_second_run_on_a_store_in_use_is_refused(data: Path, tmp_path: Path) -> None:
    store = tmp_path / "store.zarr"
    first = start(*extraction(data, store))
    deadline = time.monotonic() + 120
    while not (store / "zarr.json").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    refused = run(*extraction(data, store), code=2)
    assert "another run" in refused
    first.communicate()
    assert first.returncode == 0


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("mavqa-extract", "--dataset", "music-avqa", "--weights", "seeded"), "mavqa-manifest build"),
        (("mavqa-train", "--backbone", "avst"), "music-avqa"),
        (("mavqa-inspect", "stores/nothing.zarr"), "no feature store"),
        (("mavqa-evaluate", "runs/nothing"), "runs/nothing"),
    ],
)
def test_a_missing_input_is_named_with_what_to_do(
    words: tuple[str, ...], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shown = run(*words, code=2)
    assert expected in shown
    assert "Traceback" not in shown
    assert list(tmp_path.iterdir()) == []
