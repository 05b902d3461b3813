"""Grounding pre-training: it learns to tell pairs apart, answers nothing, and runs start from it."""

import numpy as np
import pytest
import torch
from tiny_run import tiny_config, train
from tiny_store import make_manifest, make_store

from pipeline.errors import UserError
from train.data.feature_bank import FeatureBank
from train.evaluation.evaluate_run import claim_data, evaluate_run
from train.interfaces import Matches
from train.runs.log import best_validation, read_metrics


def paired_store():
    """Return a store in which a video shows what it sounds like, so that pairs can be told apart."""
    store = make_store(videos=90, incomplete=False)
    maps = store.arrays["resnet18-map"]
    maps[np.arange(90), :, store.truth["visual"]] -= 2
    maps[np.arange(90), :, store.truth["audio"]] += 2
    return store


def test_learns_which_sound_belongs_to_which_picture(tmp_path):
    settings = {"epochs": 12, "decay_epochs": 12, "learning_rate": 1e-2, "batch_size": 6, "objective": "grounding"}
    method, _ = train(tmp_path / "run", paired_store(), **settings)
    told = best_validation(tmp_path / "run")
    # A third of the negatives come from videos of the same class: nobody can tell those, so 5/6 is the most.
    assert 72 < told["pairs"] <= 92
    with pytest.raises(TypeError, match="answers no question"):
        method.predict(None)


def test_each_complete_video_counts_once(tmp_path):
    seen = []
    train(tmp_path / "run", objective="grounding", epochs=1, batch_size=1, report=seen.append)
    # 36 training videos, of which one lacks sound and one the picture.
    assert seen[0].steps == 34


def test_resumes_to_the_same_weights(tmp_path):
    whole, _ = train(tmp_path / "whole", objective="grounding", epochs=3)

    def stop(progress):
        if progress.epoch == 2 and progress.validation is not None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "part", objective="grounding", epochs=3, report=stop)
    resumed, _ = train(tmp_path / "part", objective="grounding", epochs=3, resume=True)
    for name, values in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], values), name
    assert read_metrics(tmp_path / "part") == read_metrics(tmp_path / "whole")


def test_a_run_starts_from_it_and_it_is_never_evaluated(tmp_path):
    store = make_store(videos=60)
    manifest, bank = make_manifest(store), FeatureBank(store)
    claim_data(tmp_path / "pairs", tiny_config(objective="grounding"), manifest, bank)
    first, _ = train(tmp_path / "pairs", store, objective="grounding", epochs=1)
    second, _ = train(tmp_path / "second", store, epochs=1, learning_rate=1e-12, start_from="pairs")
    stem = "audio_stem.layers.0.weight"
    torch.testing.assert_close(second.backbone.state_dict()[stem], first.backbone.state_dict()[stem])
    with pytest.raises(UserError, match="pre-training"):
        evaluate_run(tmp_path / "pairs", manifest, bank)


def test_the_loss_counts_both_kinds_of_pairs_where_they_are_real():
    sure, unsure = torch.tensor([-9.0, 9.0]), torch.zeros(2)
    positive, negative = torch.stack([sure, unsure])[None], torch.stack([-sure, sure])[None]
    mask = torch.tensor([[True, False]])
    assert Matches(positive, negative, mask).loss() < 1e-6
    assert Matches(positive, negative, mask).count_correct() == 2
    both = Matches(positive, negative, torch.ones(1, 2, dtype=torch.bool))
    assert float(both.loss()) == pytest.approx((np.log(2) + 18) / 4, rel=1e-4)
    assert both.count_correct() == 2
