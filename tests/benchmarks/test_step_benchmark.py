"""The benchmark of the training step, with a network of a few lines in place of the released one."""

import re
import sys
import time
from pathlib import Path

import pytest
import torch
import training
from cost import Memory


@pytest.mark.nightly
def test_our_step_is_measured_and_profiled(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["training.py", "--batch-sizes", "1", "--rounds", "1", "--variants", "recommended"])
    monkeypatch.setattr(training, "peak_memory", lambda *arguments: Memory(0, 1_500_000_000))
    assert training.main() == 0
    printed = capsys.readouterr().out
    row = re.search(r"recommended +([\d.]+) +([\d.]+) +([\d.]+) +\d+% +1\.5", printed)
    assert row is not None, printed
    assert 0.1 < float(row[2]) < 0.4  # TFLOP
    assert re.search(r"aten::convolution_backward +\d+ +[\d.]+%", printed)


def test_a_way_is_left_out_if_a_smaller_batch_says_that_it_does_not_fit() -> None:
    smaller = 4, Memory(1, 5)
    assert training.find_excess(None, 16, 0) == 0
    assert training.find_excess(smaller, 16, 17) == 0
    assert training.find_excess(smaller, 16, 16) == 17


def test_turns_end_at_the_deadline_but_each_way_has_one() -> None:
    taken = []
    steps = {way: lambda way=way: taken.append(way) for way in ("official", "released")}
    times = training.take_turns(steps, 3, time.monotonic() + 60)
    assert {way: len(seconds) for way, seconds in times.items()} == {"official": 3, "released": 3}
    assert sorted(taken[:2]) == ["official", "released"]
    assert [len(seconds) for seconds in training.take_turns(steps, 3, time.monotonic() - 1).values()] == [1, 1]


@pytest.mark.parametrize(("precision", "is_equal"), [("float32", False), ("bfloat16", True)])
def test_outputs_are_equal_to_the_precision(
    precision: str, is_equal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    released = torch.nn.Linear(4, 1)
    monkeypatch.setattr(training, "load_released", lambda *arguments: released)
    monkeypatch.setattr(training, "make_method", lambda *arguments: torch.nn.Linear(4, 1))
    monkeypatch.setattr(training, "copy_weights", lambda ours, theirs: ours.load_state_dict(theirs.state_dict()))
    monkeypatch.setattr(training, "make_batch", lambda *arguments: torch.ones(1, 4))
    monkeypatch.setattr(training, "our_loss", lambda model, batch: 1.001 * model(batch).square().sum())
    monkeypatch.setattr(training, "released_loss", lambda model, batch: model(batch).square().sum())
    torch.nn.init.ones_(released.weight)
    torch.nn.init.zeros_(released.bias)
    assert training.print_differences(Path(), precision, torch.device("cpu")) == is_equal
    assert f"equal outputs: {'held' if is_equal else 'BROKEN'}" in capsys.readouterr().out


def test_noise_and_sampled_steps_are_fixed_for_the_comparison() -> None:
    with training.without_noise():
        assert not torch.randn(2, 3).any()
        assert not torch.randn_like(torch.ones(4)).any()
        assert torch.randint(0, 10, (3,)).tolist() == [2, 2, 2]
    assert torch.randn(100).std() > 0.5


def test_the_released_loss_adds_answers_matches_and_the_networks_own_losses() -> None:
    batch = training.make_batch(2, torch.device("cpu"))
    matches, answers = torch.zeros(2 * training.STEPS, 2), torch.zeros(2, training.ANSWERS)
    outputs = dict.fromkeys(("out_qa", "out_qa_ap", "out_qa_vp"), answers)
    for kind in ("out_match_{}", "visual_match_{}_ap", "visual_match_{}_vp"):
        outputs |= {kind.format(sign): matches for sign in ("posi", "nega")}

    def network(*inputs: torch.Tensor) -> tuple:
        return outputs, torch.tensor(1.0), torch.tensor(2.0), torch.tensor(4.0)

    expected = 7 + 3 * (torch.tensor(float(training.ANSWERS)).log() + 0.5 * torch.tensor(2.0).log())
    torch.testing.assert_close(training.released_loss(network, batch), expected)


def test_modules_that_a_step_does_not_use_are_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "net_grd_avst").mkdir()
    (tmp_path / "net_grd_avst" / "net_avst.py").write_text(
        "from ema_pytorch import EMA\nfrom pytorch_fid.inception import InceptionV3\nfrom visual_net import resnet18\n"
        "from torch import nn\n\n\nclass AVQA_Fusion_Net(nn.Module):\n    def __init__(self, args):\n"
        "        super().__init__()\n        self.images = resnet18(pretrained=True)\n"
        "        self.steps = args.time_step\n"
    )
    monkeypatch.setattr("sys.path", list(sys.path))
    network = training.load_released(tmp_path, torch.device("cpu"))
    assert network.training
    assert network.steps == training.STEPS
