"""Fill values of plain backbones: zeros, noise per question, the mean of the training steps."""

import pytest
import torch
from tiny_store import SIZES, make_manifest, make_store

from train.backbones.registry import make_backbone
from train.data.batch import Batch
from train.data.dataset import QuestionDataset
from train.data.feature_bank import FeatureBank
from train.interfaces import inputs_of
from train.methods.filling import Filling
from train.methods.registry import make_method


def complete_batch(rows=range(6, 14)) -> Batch:
    store = make_store()
    dataset = QuestionDataset(
        FeatureBank(store), make_manifest(store), "train", inputs_of(make_backbone("avst", SIZES))
    )
    return dataset.batch(rows, torch.Generator().manual_seed(0))


def make_filling(fill: str) -> Filling:
    return Filling(make_backbone("avst", SIZES), fill)


def test_missing_modality_is_filled_with_zeros_at_the_steps_of_the_other():
    batch = complete_batch().without("audio")
    filled = make_filling("zeros").fill_missing(batch)
    assert filled.audio["vggish"].shape == (8, 4, 8)
    assert not filled.audio["vggish"].any()
    assert torch.equal(filled.audio_mask, batch.visual_mask)
    assert filled.negatives is None
    assert filled.visual is batch.visual


def test_if_both_modalities_are_missing_every_step_is_filled():
    filled = make_filling("zeros").fill_missing(complete_batch().without("audio", "visual"))
    assert filled.audio_mask.all()
    assert filled.visual_mask.all()
    assert filled.visual["resnet18-map"].shape == (8, 4, 16, 4, 4)


def test_complete_batch_is_unchanged():
    batch = complete_batch()
    assert make_filling("zeros").fill_missing(batch) is batch


def test_noise_depends_on_the_question_not_on_the_batch():
    batch, filling = complete_batch().without("visual"), make_filling("randn")
    noise = filling.fill_missing(batch).visual["resnet18-map"]
    alone = filling.fill_missing(batch.select(torch.tensor([5]))).visual["resnet18-map"]
    assert torch.equal(alone[0], noise[5])
    assert not torch.equal(noise[0], noise[1])
    assert abs(float(noise.std()) - 1) < 0.05


def test_mean_is_over_all_training_steps():
    filling, batches = make_filling("mean"), [complete_batch(range(4, 8)), complete_batch(range(8, 14))]
    for batch in batches:
        filling.update_mean(batch)
    steps = torch.cat([batch.audio["vggish"][batch.audio_mask] for batch in batches])
    assert len(steps) < 10 * 4
    filled = filling.fill_missing(complete_batch().without("audio"))
    torch.testing.assert_close(filled.audio["vggish"][3, 2], steps.mean(0))


@pytest.mark.parametrize("fill", ["zeros", "randn", "mean"])
def test_zero_fill_answers_every_scenario_with_every_fill(fill):
    method = make_method("zero-fill", make_backbone("avst", SIZES), missing_fill=fill).eval()
    for hidden in ((), ("audio",), ("visual",), ("audio", "visual")):
        assert method.predict(complete_batch().without(*hidden)).isfinite().all()


def test_modality_dropout_removes_each_modality_from_a_third_of_the_questions():
    method = make_method("modality-dropout", make_backbone("avst", SIZES))
    encoded = []
    original = method.backbone.encode
    method.backbone.encode = lambda batch: (encoded.append(batch), original(batch))[1]
    batch = complete_batch(range(4, 24))
    torch.manual_seed(0)
    for _ in range(30):
        method.training_loss(batch)
    filled = {
        m: sum(len(b) for b in encoded if not next(iter(b.features(m).values())).any()) for m in ("audio", "visual")
    }
    assert sum(len(b) for b in encoded) == 600
    assert abs(filled["audio"] - 200) < 45
    assert abs(filled["visual"] - 200) < 45
    assert {b.negatives is None for b in encoded if next(iter(b.features("audio").values())).any()} >= {False}
