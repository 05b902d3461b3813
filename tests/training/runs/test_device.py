"""The device of a run by its name, the GPUs of parallel runs, and what a run records of its GPU."""

from types import SimpleNamespace

import pytest
import torch

from pipeline.errors import UserError
from train.runs.device import assign_gpus, choose_device
from train.runs.folder import describe_environment


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr("pipeline.machine.sees_gpu", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,3")


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(("name", "device"), [("auto", "cuda"), ("cuda", "cuda"), ("cuda:1", "cuda:1"), ("cpu", "cpu")])
def test_a_device_has_its_name(name: str, device: str) -> None:
    assert choose_device(name) == torch.device(device)


@pytest.mark.usefixtures("two_gpus")
def test_the_error_for_a_gpu_beyond_the_last_names_those_that_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    message = "^device 'cuda:2' is not available on this machine: its GPUs are cuda:0, cuda:1$"
    with pytest.raises(UserError, match=message):
        choose_device("cuda:2")
    monkeypatch.setattr("train.processes.count", lambda: 3)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UserError, match=message):
        choose_device("auto")


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("device", "processes", "gpus"),
    [
        ("auto", 1, ["0"]),
        ("auto", 2, ["0", "3"]),
        ("cuda", 5, ["0", "3", "0", "3", "0"]),
        ("cuda:1", 3, []),
        ("cpu", 3, []),
    ],
)
def test_processes_get_the_visible_gpus_in_turn(device: str, processes: int, gpus: list[str]) -> None:
    assert assign_gpus({device}, processes) == gpus


def test_without_a_gpu_none_is_assigned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.machine.sees_gpu", lambda: False)
    assert assign_gpus({"auto"}, 4) == []


def test_a_run_records_which_gpu_it_used(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(name="H200", uuid="6a3e")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    recorded = describe_environment(torch.device("cuda"), {})
    assert (recorded["device_name"], recorded["device_uuid"]) == ("H200", "GPU-6a3e")
    assert describe_environment(torch.device("cpu"), {})["device_uuid"] is None
