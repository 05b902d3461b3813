"""What a run starts from: inputs of one scale where it asks for it, and the backbone of another run."""

from pathlib import Path

import numpy as np
import pytest
import torch
from test_fit import tiny_config, train
from tiny_store import make_manifest, make_store

from pipeline.failure import UserError
from train.dataset import QuestionDataset
from train.features import FeatureBank
from train.run_folder import build_method
from train.starting import standardise_inputs


def test_standardised_inputs_have_mean_0_and_deviation_1_over_the_training_videos():
    store = make_store(videos=60)
    store.arrays["resnet18-map"] = (store.arrays["resnet18-map"] * 3 + 7).astype(np.float32)
    manifest, bank = make_manifest(store), FeatureBank(store)
    config = tiny_config()
    backbone = build_method(config.model_copy(update={"sizes": _sizes(config, manifest, bank)})).backbone
    dataset = QuestionDataset(bank, manifest, "train", backbone, config.map_size)
    standardise_inputs(backbone, dataset, {})
    _, rows = np.unique([q.video_id for q in dataset.questions], return_index=True)
    batch = dataset.batch(rows)
    scaled = backbone.input_scales["resnet18-map"](batch.visual["resnet18-map"])[batch.visual_mask]
    assert scaled.mean((0, 2, 3)).abs().max() < 1e-4
    varying = backbone.input_scales["resnet18-map"].deviation > 0.02
    assert varying.any()
    torch.testing.assert_close(scaled.std((0, 2, 3))[varying], torch.ones(int(varying.sum())), atol=0.02, rtol=0)


def test_a_run_that_does_not_ask_for_it_takes_features_as_they_are(tmp_path):
    plain, _ = train(tmp_path / "plain", epochs=1, standardise=False)
    scaled, _ = train(tmp_path / "scaled", epochs=1, standardise=True)
    assert not plain.backbone.input_scales["vggish"].mean.any()
    assert scaled.backbone.input_scales["vggish"].mean.any()


def test_a_run_starts_with_the_backbone_of_the_run_beside_it(tmp_path):
    first, _ = train(tmp_path / "first", epochs=2)
    second, _ = train(tmp_path / "second", epochs=1, learning_rate=1e-12, start_from="first")
    for name, values in first.backbone.state_dict().items():
        torch.testing.assert_close(second.backbone.state_dict()[name], values, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["nothing", "other"])
def test_a_run_to_start_from_that_is_missing_or_other_is_refused(tmp_path: Path, name: str):
    train(tmp_path / "other", epochs=1, channels=16, map_size=4, heads=4, inputs="question")
    (tmp_path / "other" / "checkpoint.safetensors").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"missing|damaged|cannot start"):
        train(tmp_path / "second", epochs=1, start_from=name)


def _sizes(config, manifest, bank):
    from train.fit import measure_sizes

    return measure_sizes(config, manifest, bank)
