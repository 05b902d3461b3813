"""Two processes train the weights of one, and answer every question once."""

import json
import os
import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import numpy as np
import paths
import pytest
from safetensors.torch import load_file
from several_processes import RUNS

from pipeline.errors import UserError
from train import processes
from train.runs.folder import read_environment, read_tensors
from train.runs.log import read_metrics

SCRIPT = paths.TRAINING / "several_processes.py"


def start(folder: Path, rank: int, count: int, port: int) -> subprocess.Popen:
    launched = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    variables = {name: str(value) for name, value in launched.items()}
    path = os.pathsep.join([str(paths.TRAINING), str(paths.ROOT), str(paths.ROOT / "tests")])
    environment = {**os.environ, **variables, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    return subprocess.Popen([sys.executable, SCRIPT, folder], env=environment)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    """The folders of one process and of two."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = [start(two, 0, 2, port), start(two, 1, 2, port), start(one, 0, 1, port)]
    assert [process.wait(timeout=300) for process in started] == [0, 0, 0]
    return one, two


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_have_the_losses_of_one(folders, name):
    alone, together = (read_metrics(folder / name) for folder in folders)
    for expected, found in zip(alone, together, strict=True):
        assert found["losses"].keys() == expected["losses"].keys()
        for loss, value in expected["losses"].items():
            assert found["losses"][loss] == pytest.approx(value, abs=1e-5), loss
    weights = [load_file(folder / name / "checkpoint.safetensors") for folder in folders]
    for tensor, values in weights[0].items():
        np.testing.assert_allclose(weights[1][tensor], values, atol=1e-4, err_msg=tensor)
    assert [read_environment(folder / name)["processes"] for folder in folders] == [1, 2]


@pytest.mark.parametrize("name", RUNS)
def test_all_processes_have_the_same_weights_and_answers(folders, name):
    one, two = folders
    first, second = ((two / f"{name}-{rank}.txt").read_text() for rank in (0, 1))
    assert first == second
    answers = [json.loads((folder / f"{name}-0.txt").read_text().rpartition(" ")[0]) for folder in folders]
    assert len(answers[0]) == len(answers[1])
    assert np.mean(np.array(answers[0]) == np.array(answers[1])) > 0.95
    assert not list(one.glob(f"{name}-1.txt"))


def test_a_signal_to_one_process_stops_all_after_the_same_step_and_they_resume_to_the_same_bytes(folders):
    _, two = folders
    assert {path.name for path in (two / "stopped").glob("stopped-*")} == {"stopped-0.txt", "stopped-1.txt"}
    for file in ("checkpoint.safetensors", "last.safetensors", "metrics.jsonl"):
        contents = [(two / part / "zero-fill" / file).read_bytes() for part in ("stopped", "uninterrupted")]
        assert contents[0] == contents[1], file
    _, facts = read_tensors(two / "stopped" / "zero-fill" / "last.safetensors")
    assert [row["epoch"] for row in facts["metrics"]] == [1, 2]


def test_rows_are_divided_evenly_in_order_and_few_are_taken_by_all(monkeypatch):
    monkeypatch.setattr(processes, "count", lambda: 3)
    for rows in range(20):
        parts = []
        for rank in range(3):
            monkeypatch.setattr(processes, "rank", lambda rank=rank: rank)
            parts.append(range(rows)[processes.own_part(rows)])
        counted = sum(len(part) * processes.weight(rows) for part in parts)
        assert counted == pytest.approx(rows)
        if rows >= 3:
            assert [row for part in parts for row in part] == list(range(rows))
            assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_values_of_all_processes_are_put_back_in_order(monkeypatch):
    values = list(range(11))
    monkeypatch.setattr(processes, "count", lambda: 3)
    monkeypatch.setattr(processes, "collect", lambda own: [values[rank::3] for rank in range(3)])
    assert processes.interleave(values[::3]) == values


def test_the_end_of_another_process_is_one_line(monkeypatch):
    def gather(*arguments):
        raise RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer")

    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr("torch.distributed.all_gather_object", gather)
    with pytest.raises(UserError, match="another process of the training has ended"), processes._naming_ended():
        processes.wait()


@pytest.fixture
def second_is_missing(monkeypatch):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": probe.getsockname()[1]}
    for name, value in {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 2, **address}.items():
        monkeypatch.setenv(name, str(value))


def test_processes_that_do_not_join_are_named(second_is_missing, monkeypatch):
    monkeypatch.setattr(processes, "LONGEST_START", timedelta(seconds=0.2))
    with pytest.raises(UserError, match="the 2 processes of WORLD_SIZE did not join"), processes.joined():
        pass


def test_a_command_that_runs_in_one_process_is_refused_in_several(second_is_missing):
    with pytest.raises(UserError, match="mavqa-sweep runs in one process, 2 were started"):
        processes.check_alone("mavqa-sweep")
