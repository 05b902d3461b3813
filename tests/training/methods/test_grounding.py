"""Grounding pre-training: it learns to match pairs, answers no questions, and runs start from it."""

import numpy as np
import pytest
import torch
from tiny_run import train
from tiny_store import make_manifest, make_store

from pipeline.errors import UserError
from train.data.feature_bank import FeatureBank
from train.data.scenarios import load_masks
from train.evaluation.evaluate_run import evaluate_run
from train.interfaces import Matches
from train.methods.grounding import GroundingPretraining
from train.runs.log import best_validation, read_metrics


def paired_store():
    """Return a store in which the visual class of each video is its audio class, so that pairs can be classified."""
    store = make_store(videos=90, incomplete=False)
    maps = store.arrays["resnet18-map"]
    maps[np.arange(90), :, store.truth["visual"]] -= 2
    maps[np.arange(90), :, store.truth["audio"]] += 2
    return store


def test_learns_to_match_audio_and_frames(tmp_path):
    settings = {"epochs": 12, "decay_epochs": 12, "learning_rate": 1e-2, "batch_size": 6, "objective": "grounding"}
    method, _ = train(tmp_path / "run", paired_store(), **settings)
    accuracy = best_validation(tmp_path / "run")["pairs"]
    # A third of the negatives are from videos of the same class and cannot be classified: at most 5/6 are correct.
    assert 72 < accuracy <= 92
    with pytest.raises(TypeError, match="answers no questions: start a run from it"):
        method.predict(None)


def test_each_complete_video_counts_once(tmp_path):
    reports = []
    train(tmp_path / "run", objective="grounding", epochs=1, batch_size=1, report=reports.append)
    # 36 training videos; audio is missing in one and visual in another.
    assert reports[0].steps == 34


@pytest.mark.parametrize("modality", ["audio", "visual"])
def test_videos_that_lost_a_modality_are_not_trained_on(tmp_path, monkeypatch, modality):
    batches = []
    original = GroundingPretraining.training_loss
    monkeypatch.setattr(
        GroundingPretraining, "training_loss", lambda self, batch: (batches.append(batch), original(self, batch))[1]
    )
    settings = {"objective": "grounding", "epochs": 1, "missing_rates": {modality: 0.5}, "unit": "video"}
    train(tmp_path / "run", **settings)
    hidden = load_masks(tmp_path / "run" / "masks-train.json").absent
    trained = [question for batch in batches for question in batch.question_id]
    assert all(batch.available == ("audio", "visual") for batch in batches)
    assert not set(trained) & set(hidden)
    assert 10 < len(trained) < 25


def test_resumes_to_the_same_weights(tmp_path):
    uninterrupted, _ = train(tmp_path / "uninterrupted", objective="grounding", epochs=3)

    def stop(progress):
        if progress.epoch == 2 and progress.validation is not None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "resumed", objective="grounding", epochs=3, report=stop)
    resumed, _ = train(tmp_path / "resumed", objective="grounding", epochs=3, resume=True)
    for name, values in uninterrupted.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], values), name
    assert read_metrics(tmp_path / "resumed") == read_metrics(tmp_path / "uninterrupted")


def test_a_run_starts_from_pre_training_which_cannot_be_evaluated(tmp_path):
    store = make_store(videos=60)
    manifest, bank = make_manifest(store), FeatureBank(store)
    first, _ = train(tmp_path / "pairs", store, objective="grounding", epochs=1)
    second, _ = train(tmp_path / "second", store, epochs=1, learning_rate=1e-12, start_from="pairs")
    stem = "audio_stem.layers.0.weight"
    torch.testing.assert_close(second.backbone.state_dict()[stem], first.backbone.state_dict()[stem])
    with pytest.raises(UserError, match="pre-training"):
        evaluate_run(tmp_path / "pairs", manifest, bank)


def test_a_stopped_run_resumes_without_the_run_that_it_started_from(tmp_path):
    train(tmp_path / "pairs", objective="grounding", epochs=1)

    def stop(progress):
        if progress.validation is not None:
            raise KeyboardInterrupt

    settings = {"epochs": 2, "learning_rate": 1e-12, "start_from": "pairs"}
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", report=stop, **settings)
    data = (tmp_path / "run" / "data.json").read_bytes()
    (tmp_path / "pairs" / "checkpoint.safetensors").unlink()
    train(tmp_path / "run", resume=True, **settings)
    assert (tmp_path / "run" / "data.json").read_bytes() == data


def test_loss_is_over_both_kinds_of_pairs_at_the_available_steps():
    sure, unsure = torch.tensor([-9.0, 9.0]), torch.zeros(2)
    positive, negative = torch.stack([sure, unsure])[None], torch.stack([-sure, sure])[None]
    mask = torch.tensor([[True, False]])
    assert Matches(positive, negative, mask).loss() < 1e-6
    assert Matches(positive, negative, mask).count_correct() == 2
    both = Matches(positive, negative, torch.ones(1, 2, dtype=torch.bool))
    assert float(both.loss()) == pytest.approx((np.log(2) + 18) / 4, rel=1e-4)
    assert both.count_correct() == 2
