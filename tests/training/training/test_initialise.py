"""The initialisation of a run: whitened inputs, and the backbone of another run."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_run import Killed, tiny_config, train
from tiny_store import make_manifest, make_store

from pipeline.errors import UserError
from train.data.dataset import QuestionDataset
from train.data.feature_bank import FeatureBank
from train.interfaces import inputs_of
from train.networks.layers import LEAST_VARIANCE, InputWhitening
from train.runs.folder import build_method, read_tensors, write_tensors
from train.training.fit import measure_sizes
from train.training.initialise import start_from, whiten_inputs


def test_whitened_inputs_have_mean_0_and_a_ridge_regularised_covariance():
    store = make_store(videos=60)
    maps = store.arrays["resnet18-map"].astype(np.float32) * 3 + 7
    mixing = np.eye(16, dtype=np.float32) + 0.3
    store.arrays["resnet18-map"] = np.einsum("vtchw,cd->vtdhw", maps, mixing)
    dataset, backbone = _dataset(store)
    whiten_inputs(backbone, dataset, {})
    _, rows = np.unique([q.video_id for q in dataset.questions], return_index=True)
    batch = dataset.batch(rows)
    whitened = backbone.input_whitening["resnet18-map"](batch.visual["resnet18-map"])[batch.visual_mask]
    channels = whitened.movedim(1, -1).flatten(0, -2).double()
    assert channels.mean(0).abs().max() < 1e-4
    raw = batch.visual["resnet18-map"][batch.visual_mask].movedim(1, -1).flatten(0, -2).double()
    raw_correlation = raw.T.corrcoef()
    ridge = torch.linalg.solve(raw_correlation + LEAST_VARIANCE * torch.eye(16, dtype=torch.float64), raw_correlation)
    torch.testing.assert_close(channels.T.cov(correction=0), ridge, atol=1e-4, rtol=0)
    correlation = torch.tensor([torch.stack((a, b)).corrcoef()[0, 1] for a, b in zip(raw.T, channels.T, strict=True)])
    assert (correlation > 0.3).all()


def test_a_direction_of_small_variance_is_not_amplified():
    whitening = InputWhitening(2)
    whitening.set(torch.zeros(2), torch.tensor([[1.0, 1.0], [1.0, 1.0]]) + 1e-7 * torch.eye(2))
    equal, opposite = whitening(torch.tensor([[[1.0, 1.0]], [[1e-4, -1e-4]]]))
    assert equal.abs().max() < 1
    assert opposite.abs().max() < 1e-2


def test_whitening_is_the_same_with_the_channel_as_the_last_axis():
    covariance = torch.tensor([[2.0, 0.5], [0.5, 1.0]])
    values = torch.randn(3, 4, 2, 5)
    first, last = InputWhitening(2), InputWhitening(2, axis=-1)
    for whitening in (first, last):
        whitening.set(torch.tensor([0.3, -0.2]), covariance)
    torch.testing.assert_close(first(values), last(values.mT).mT)


def test_features_are_whitened_only_with_the_setting_whiten(tmp_path):
    plain, _ = train(tmp_path / "plain", epochs=1, whiten=False)
    whitened, _ = train(tmp_path / "whitened", epochs=1, whiten=True)
    values = torch.randn(2, 3, 8)
    assert torch.equal(plain.backbone.input_whitening["vggish"](values), values)
    assert not torch.equal(whitened.backbone.input_whitening["vggish"](values), values)


def test_a_run_starts_with_the_whitening_of_the_run_in_start_from(tmp_path):
    first, _ = train(tmp_path / "first", epochs=1, whiten=True)
    second, _ = train(tmp_path / "second", epochs=1, whiten=True, start_from="first")
    values = torch.randn(2, 3, 8)
    expected = first.backbone.input_whitening["vggish"](values)
    assert torch.equal(second.backbone.input_whitening["vggish"](values), expected)


def test_a_run_starts_with_the_backbone_of_the_run_in_start_from(tmp_path):
    first, _ = train(tmp_path / "first", epochs=2)
    second, _ = train(tmp_path / "second", epochs=1, learning_rate=1e-12, start_from="first")
    for name, values in first.backbone.state_dict().items():
        torch.testing.assert_close(second.backbone.state_dict()[name], values, atol=1e-6, rtol=0)


GROUNDED = ("audio_stem.", "spatial_grounding.", "match_head.")


def start_of(run: Path, seed: int) -> tuple[set[str], dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return the parameters of a tiny AVST that start from `run`, and its backbone before and after the start."""
    config, store = tiny_config(), make_store(videos=60)
    torch.manual_seed(seed)
    sizes = measure_sizes(config, make_manifest(store), FeatureBank(store))
    method = build_method(config.model_copy(update={"sizes": sizes}))
    initial = {name: values.clone() for name, values in method.backbone.state_dict().items()}
    loaded = start_from(method, run, whiten=True)
    return {name.removeprefix("backbone.") for name in loaded}, initial, method.backbone.state_dict()


@pytest.mark.parametrize("version", ["current", "before the record"])
def test_only_the_parameters_that_pre_training_trained_are_loaded(tmp_path: Path, version: str):
    pretrained, _ = train(tmp_path / "pairs", epochs=2, objective="grounding", resume=True)
    if version != "current":
        for file in ("checkpoint.safetensors", "last.safetensors"):
            tensors, facts = read_tensors(tmp_path / "pairs" / file)
            del facts["trained"]
            write_tensors(tmp_path / "pairs" / file, tensors, facts)
    loaded, initial, started = start_of(tmp_path / "pairs", seed=5)
    assert loaded == {name for name, _ in pretrained.backbone.named_parameters() if name.startswith(GROUNDED)}
    assert len(loaded) == 14
    for name, values in started.items():
        is_loaded = name in loaded or name.startswith("input_whitening.")
        expected = pretrained.backbone.state_dict()[name] if is_loaded else initial[name]
        assert torch.equal(values, expected), name


def test_a_pre_training_without_a_record_of_its_parameters_is_an_error(tmp_path: Path):
    train(tmp_path / "pairs", epochs=1, objective="grounding")
    tensors, _ = read_tensors(tmp_path / "pairs" / "checkpoint.safetensors")
    write_tensors(tmp_path / "pairs" / "checkpoint.safetensors", tensors, {"epoch": 1})
    (tmp_path / "pairs" / "last.safetensors").unlink()
    with pytest.raises(UserError, match=r"pairs: what it trained is not recorded, train or import it again$"):
        start_of(tmp_path / "pairs", seed=5)


def test_parameters_of_all_stages_and_of_the_start_are_trained_after_a_resume(tmp_path: Path):
    def stop(progress):
        if progress.epoch == 2 and progress.validation is not None:
            raise Killed

    train(tmp_path / "first", epochs=1, objective="grounding")
    settings = {"method": "prompts", "training": "staged", "epochs": 3, "start_from": "first"}
    with pytest.raises(Killed):
        train(tmp_path / "second", **settings, report=stop)
    train(tmp_path / "second", **settings, resume=True)
    loaded, _, started = start_of(tmp_path / "second", seed=5)
    assert loaded == {name for name in started if not name.startswith("input_whitening.")}


def test_a_reference_gives_only_the_parts_that_its_inputs_reach(tmp_path: Path):
    train(tmp_path / "question", epochs=1, inputs="question")
    loaded, _, _ = start_of(tmp_path / "question", seed=5)
    assert {name.split(".")[0] for name in loaded} == {"question_encoder", "fusion", "classifier"}


@pytest.mark.parametrize("first", [{"objective": "grounding"}, {"inputs": "question"}])
def test_a_frozen_backbone_needs_a_run_that_trained_all_of_it(tmp_path: Path, first: dict[str, str]):
    train(tmp_path / "part", epochs=1, **first)
    with pytest.raises(UserError, match=r"trains on a frozen backbone, of which .*part trained only a part: start"):
        train(tmp_path / "second", epochs=1, method="prompts", start_from="part")
    assert not (tmp_path / "second").exists()
    train(tmp_path / "whole", epochs=1)
    train(tmp_path / "second", epochs=1, method="prompts", start_from="whole")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"heads": 4}, "heads = 2, not 4"),
        ({"backbone": "baseline"}, "backbone = 'avst', not 'baseline'"),
        ({"map_size": 4}, "map_size = 2, not 4"),
    ],
)
def test_a_start_with_other_settings_of_the_backbone_is_an_error(tmp_path: Path, settings: dict, message: str):
    train(tmp_path / "first", epochs=1)
    with pytest.raises(UserError, match=f"cannot start from .*first: it was trained with {message}"):
        train(tmp_path / "second", epochs=1, start_from="first", **settings)
    assert not (tmp_path / "second").exists()


@pytest.mark.parametrize(("whiten", "problem"), [(True, "not whitened; pass --set whiten=false"), (False, "whitened;")])
def test_whitening_that_only_one_of_both_runs_has_is_an_error(tmp_path: Path, whiten: bool, problem: str):
    train(tmp_path / "first", epochs=1, whiten=not whiten)
    with pytest.raises(UserError, match=f"first with whiten = {whiten}: it was trained on inputs that are {problem}"):
        train(tmp_path / "second", epochs=1, whiten=whiten, start_from="first")
    assert not (tmp_path / "second").exists()


def test_a_run_cannot_start_from_a_stopped_one_until_that_is_finished(tmp_path: Path):
    def stop(progress):
        if progress.validation is not None:
            raise Killed

    with pytest.raises(Killed):
        train(tmp_path / "half", epochs=2, report=stop)
    half = tmp_path / "half"
    expected = rf"half: it was stopped after 1 of 2 epochs, finish it first \(mavqa-train --resume --out {half}\)$"
    with pytest.raises(UserError, match=expected):
        train(tmp_path / "second", epochs=1, start_from="half")
    assert not (tmp_path / "second").exists()
    train(half, epochs=2, resume=True)
    train(tmp_path / "second", epochs=1, start_from="half")


def test_a_run_may_read_other_time_steps_than_the_run_that_it_starts_from(tmp_path: Path):
    train(tmp_path / "first", epochs=1)
    _, config = train(tmp_path / "second", epochs=1, start_from="first", time_steps=2)
    assert config.time_steps == 2


@pytest.mark.parametrize("name", ["nothing", "other"])
def test_starting_from_a_missing_or_corrupt_run_is_an_error(tmp_path: Path, name: str):
    train(tmp_path / "other", epochs=1, channels=16, map_size=4, heads=4, inputs="question")
    (tmp_path / "other" / "checkpoint.safetensors").write_bytes(b"corrupt")
    with pytest.raises(UserError, match=r"missing|corrupt|cannot start"):
        train(tmp_path / "second", epochs=1, start_from=name)


def _dataset(store):
    manifest, bank, config = make_manifest(store), FeatureBank(store), tiny_config()
    sizes = measure_sizes(config, manifest, bank)
    backbone = build_method(config.model_copy(update={"sizes": sizes})).backbone
    return QuestionDataset(bank, manifest, "train", inputs_of(backbone, config.map_size)), backbone
