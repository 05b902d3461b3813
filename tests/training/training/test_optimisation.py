"""The optimiser's step: accumulation, clipping, warm-up, weight decay, precision, and losses that are not finite."""

import math

import numpy as np
import pytest
import torch
from product import PRODUCT, make
from tiny_run import tiny_config, train
from tiny_store import make_manifest, make_store

from pipeline.errors import UserError
from train.data.dataset import QuestionDataset
from train.data.feature_bank import FeatureBank
from train.evaluation.predict import predict
from train.interfaces import inputs_of
from train.methods.zero_fill import ZeroFill
from train.runs.log import read_metrics
from train.runs.precision import gpu_products
from train.training.optimisation import make_optimiser, set_rate, take_step

CPU = torch.device("cpu")


def dataset_of(method):
    store = make_store(incomplete=False, videos=60)
    return QuestionDataset(FeatureBank(store), make_manifest(store), "train", inputs_of(method.backbone))


def step_on(batches, method_name="zero-fill", backbone="avst", **settings):
    """Return the method, the losses of its batches and its gradients after one step on `batches` (rows of each)."""
    method = make(method_name, backbone).train()
    for module in method.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif isinstance(module, torch.nn.MultiheadAttention):
            module.dropout = 0.0
    config, dataset = tiny_config(**settings), dataset_of(method)
    optimiser = make_optimiser(config, method)
    sizes = list(map(len, batches))
    losses, _ = take_step(method, optimiser, map(dataset.batch, batches), sizes, config, CPU)
    gradients = {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}
    return method, losses, gradients


def test_accumulated_batches_have_the_gradient_of_one_batch_of_their_questions():
    rows = np.arange(12)
    _, [whole], expected = step_on([rows])
    _, parts, gradients = step_on([rows[:5], rows[5:8], rows[8:]])
    assert [part.questions for part in parts] == [5, 3, 4]
    mean = sum(part.losses["total"] * part.questions for part in parts) / 12
    assert mean == pytest.approx(whole.losses["total"], abs=1e-6)
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, atol=1e-6, rtol=1e-4)


def test_a_training_that_accumulates_takes_a_step_for_each_group_of_batches(tmp_path):
    steps = []
    train(tmp_path / "run", epochs=1, batch_size=8, report=lambda progress: steps.append(progress.step))
    grouped = []
    report = grouped.append
    train(tmp_path / "grouped", epochs=1, batch_size=8, accumulate=3, report=lambda progress: report(progress.step))
    assert max(grouped) == math.ceil(max(steps) / 3) < max(steps)


@pytest.mark.parametrize("clip_norm", [None, 0.01])
def test_the_gradient_is_clipped_to_the_norm(clip_norm):
    _, _, gradients = step_on([np.arange(8)], clip_norm=clip_norm)
    norm = torch.stack([gradient.square().sum() for gradient in gradients.values()]).sum().sqrt()
    assert (norm <= 0.0101) == (clip_norm is not None)


def test_weights_decay_by_the_rate_times_the_decay():
    without, _, _ = step_on([np.arange(8)], learning_rate=0.1)
    decayed, _, _ = step_on([np.arange(8)], learning_rate=0.1, weight_decay=0.5)
    start = make("zero-fill", "avst")
    for name, values in start.named_parameters():
        difference = dict(decayed.named_parameters())[name] - dict(without.named_parameters())[name]
        is_trained = not torch.equal(dict(without.named_parameters())[name], values)
        torch.testing.assert_close(difference, -0.05 * values * is_trained, atol=1e-6, rtol=1e-4)


RATES = [(0, 0.25, 0.125), (0, 1.0, 0.5), (1, 0.5, 0.75), (1, 1.0, 1.0), (2, 0.1, 0.1), (4, 1, 0.01)]


@pytest.mark.parametrize(("epoch", "share", "rate"), RATES)
def test_the_rate_rises_over_the_warm_up_and_falls_in_steps(epoch, share, rate):
    config = tiny_config(learning_rate=1.0, warmup_epochs=2.0, decay_epochs=2, decay_factor=0.1)
    optimiser = make_optimiser(config, torch.nn.Linear(1, 1))
    assert set_rate(optimiser, config, epoch, share) == pytest.approx(rate)
    assert [group["lr"] for group in optimiser.param_groups] == pytest.approx([rate])


def test_parameters_with_a_rate_of_their_own_follow_the_schedule_of_the_run():
    method = torch.nn.ModuleDict({"prompts": torch.nn.Linear(1, 1), "other": torch.nn.Linear(1, 1)})
    method.learning_rates = {"prompts.": 0.5}
    config = tiny_config(learning_rate=0.01, warmup_epochs=1.0, decay_epochs=1, decay_factor=0.1)
    optimiser = make_optimiser(config, method)
    assert set_rate(optimiser, config, 0, 0.5) == pytest.approx(0.005)
    set_rate(optimiser, config, 1, 1.0)
    rates = {id(p): group["lr"] for group in optimiser.param_groups for p in group["params"]}
    assert len(rates) == 4
    for name, parameter in method.named_parameters():
        assert rates[id(parameter)] == pytest.approx(0.05 if name.startswith("prompts.") else 0.001), name


def test_the_rates_of_a_training_are_those_of_its_steps(tmp_path):
    rates = []
    settings = {"epochs": 2, "batch_size": 8, "warmup_epochs": 1.0, "learning_rate": 1e-3}
    train(tmp_path / "run", **settings, report=lambda progress: rates.append((progress.step, progress.rate)))
    steps = max(step for step, _ in rates)
    assert rates[:steps] == [(step, pytest.approx(1e-3 * step / steps)) for step in range(1, steps + 1)]
    assert [row["learning_rate"] for row in read_metrics(tmp_path / "run")] == [pytest.approx(1e-3)] * 2


def test_the_questions_of_a_loss_that_is_not_finite_are_named(tmp_path, monkeypatch):
    loss = ZeroFill.training_loss

    def infinite(self, batch):
        return {name: math.inf * value for name, value in loss(self, batch).items()}

    monkeypatch.setattr(ZeroFill, "training_loss", infinite)
    with pytest.raises(UserError, match=r"the loss of questions '\d.*' and \d+ others is not finite") as error:
        train(tmp_path / "run", batch_size=100)
    questions = {q.question_id for q in make_manifest(make_store(videos=60)).questions["train"]}
    named = [word.strip("',") for word in str(error.value).split("questions ")[1].split(" and ")[0].split()]
    assert len(set(named)) == 16
    assert set(named) <= questions


def test_the_questions_of_a_gradient_that_is_not_finite_are_named_before_anything_is_saved(tmp_path, monkeypatch):
    loss = ZeroFill.training_loss

    def steep(self, batch):
        losses = loss(self, batch)
        (weights, *_) = self.parameters()
        return {**losses, "total": losses["total"] + (0 * weights.sum()).sqrt()}

    monkeypatch.setattr(ZeroFill, "training_loss", steep)
    with pytest.raises(UserError, match=r"the gradient of the loss of questions '\d.*' is not finite"):
        train(tmp_path / "run", save_minutes=1e-9)
    assert not (tmp_path / "run" / "last.safetensors").exists()


# Every method, and every backbone.
HALF_PRECISION = [(m, b) for m, b in PRODUCT if b == "avst" or m == "rmm-avr"]


@pytest.mark.parametrize(("method", "backbone"), HALF_PRECISION)
def test_bfloat16_gives_the_loss_of_float32_within_a_hundredth(method, backbone):
    rows = np.arange(8)
    torch.manual_seed(3)
    _, [exact], expected = step_on([rows], method, backbone)
    torch.manual_seed(3)
    _, [rounded], gradients = step_on([rows], method, backbone, precision="bfloat16")
    assert rounded.losses["total"] == pytest.approx(exact.losses["total"], rel=1e-2)
    assert rounded.losses != exact.losses
    assert gradients.keys() == expected.keys()
    assert all(gradient.dtype == torch.float32 and gradient.isfinite().all() for gradient in gradients.values())


def test_a_training_in_bfloat16_learns_and_is_resumed_and_answered_in_float32(tmp_path):
    train(tmp_path / "run", epochs=1, precision="bfloat16", method="rmm")
    method, _ = train(tmp_path / "run", epochs=2, precision="bfloat16", method="rmm", resume=True)
    assert all(parameter.dtype == torch.float32 for parameter in method.parameters())


def flags():
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
def test_tf32_is_on_only_while_a_training_chose_it(tmp_path, precision):
    before, seen, answering = flags(), set(), set()
    method = make("zero-fill", "avst")
    dataset = dataset_of(method)
    train(tmp_path / "run", epochs=1, precision=precision, report=lambda progress: seen.add(flags()))
    assert seen == {(True, True) if precision == "tf32" else (False, False)}
    assert flags() == before
    with gpu_products(precision):
        predict(method, dataset, np.arange(4), {}, 2, CPU, on_batch=lambda count: answering.add(flags()))
    assert answering == {(False, False)}
