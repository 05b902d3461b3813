"""The exponential moving average: its formula, its use in validation and the checkpoint, and its resume."""

import pytest
import torch
from safetensors.torch import load_file
from tiny_run import Killed, tiny_config, train
from torch import nn

from train.runs.folder import load_run
from train.runs.log import read_metrics
from train.training.ema import WeightAverage
from train.training.validation import measure_accuracy


def test_the_average_starts_at_the_first_step_and_decays_from_there():
    module = nn.Linear(1, 1, bias=False)
    average = WeightAverage(module, 0.75)
    averages = []
    for value in (8.0, 0.0, 4.0):
        nn.init.constant_(module.weight, value)
        average.update()
        averages.append(average.module.weight.item())
    assert averages == [8.0, 6.0, 5.5]
    assert module.weight.item() == 4.0


def test_buffers_are_copied_from_the_trained_module():
    module = nn.BatchNorm1d(2)
    average = WeightAverage(module, 0.9)
    module(torch.tensor([[1.0, 2.0], [3.0, 6.0]]))
    average.update()
    assert torch.equal(average.module.running_mean, module.running_mean)
    assert int(average.module.num_batches_tracked) == 1


def test_the_average_is_validated_and_saved(tmp_path, monkeypatch):
    validated = []

    def measure(method, *arguments):
        validated.append({name: values.clone() for name, values in method.state_dict().items()})
        return measure_accuracy(method, *arguments)

    monkeypatch.setattr("train.training.validation.measure_accuracy", measure)
    method, _ = train(tmp_path / "run", ema_decay=0.9, epochs=2)
    last = load_file(tmp_path / "run" / "last.safetensors")
    selected = max(number for number, row in enumerate(read_metrics(tmp_path / "run")) if row["selected"])
    assert all(torch.equal(values, validated[selected][name]) for name, values in method.state_dict().items())
    trained = [name for name, _ in method.named_parameters()]
    assert all(torch.equal(validated[1][name], last[f"average/module.{name}"]) for name in trained)
    assert not all(torch.equal(validated[1][name], last[f"model/{name}"]) for name in trained)


def test_averaging_does_not_change_the_trained_weights(tmp_path):
    train(tmp_path / "plain")
    train(tmp_path / "averaged", ema_decay=0.9)
    plain, averaged = (load_file(tmp_path / name / "last.safetensors") for name in ("plain", "averaged"))
    assert not [name for name in plain if name.startswith("average/")]
    assert all(torch.equal(values, averaged[name]) for name, values in plain.items())


@pytest.mark.parametrize("method", ["zero-fill", "prompts"])
@pytest.mark.parametrize("stop", [(2, 1), (3, 2)])
def test_a_stopped_run_resumes_to_the_average_of_an_uninterrupted_one(tmp_path, method, stop):
    def stop_training(progress):
        if (progress.epoch, progress.step) == stop and progress.validation is None:
            raise Killed

    settings = {"method": method, "training": "staged", "ema_decay": 0.9}
    train(tmp_path / "uninterrupted", **settings)
    with pytest.raises(Killed):
        train(tmp_path / "stopped", **settings, report=stop_training)
    train(tmp_path / "stopped", **settings, resume=True)
    for file in ("checkpoint.safetensors", "last.safetensors", "metrics.jsonl"):
        assert (tmp_path / "stopped" / file).read_bytes() == (tmp_path / "uninterrupted" / file).read_bytes(), file
    assert load_run(tmp_path / "stopped")[1].ema_decay == 0.9


def test_every_stage_starts_a_new_average(tmp_path, monkeypatch):
    weights = {}

    def stop_training(progress):
        if (progress.epoch, progress.step) == (2, 1) and progress.validation is None:
            raise Killed

    steps = []
    original = WeightAverage.update

    def update(self):
        original(self)
        steps.append(self)
        weights[len(steps)] = {
            n: (p.clone(), q.clone())
            for (n, p), (_, q) in zip(self.module.named_parameters(), self._trained.named_parameters(), strict=True)
        }

    monkeypatch.setattr(WeightAverage, "update", update)
    with pytest.raises(Killed):
        train(tmp_path / "run", method="rmm", training="staged", ema_decay=0.9, epochs=2, report=stop_training)
    assert len({id(average) for average in steps}) == 2
    assert all(torch.equal(averaged, trained) for averaged, trained in weights[len(steps)].values())


def test_weights_are_not_averaged_by_default():
    assert tiny_config().ema_decay == 0
