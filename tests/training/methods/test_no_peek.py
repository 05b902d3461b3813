"""No method reads what is absent: a product over the methods, the backbones and the scenarios."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from product import PRODUCT, make, predict, stored_batch
from tiny_store import SIZES, make_manifest, make_store, of_modality

from train.backbones.registry import BACKBONES, backbone_variants, make_backbone
from train.data.dataset import QuestionDataset
from train.data.feature_bank import FeatureBank
from train.data.scenarios import SCENARIOS, draw_masks
from train.interfaces import inputs_of
from train.methods.registry import METHODS, make_method, method_variants

# The other readings of methods and backbones: (method, backbone, variant).
READINGS = [
    *((name, "avst", variant) for name in METHODS for variant in method_variants(name)),
    *(("zero-fill", name, variant) for name in BACKBONES for variant in backbone_variants(name)),
]
ONE_SIDED = {"audio": "visual-missing", "visual": "audio-missing"}


@pytest.mark.parametrize(("method_name", "backbone_name", "variant"), READINGS)
@pytest.mark.parametrize("hidden", [("audio",), ("visual",)])
def test_no_reading_of_a_method_or_backbone_depends_on_what_is_absent(method_name, backbone_name, variant, hidden):
    method = make(method_name, backbone_name, variant)
    expected = predict(method, stored_batch(method, hidden))
    for value in (float("nan"), 7.0):
        assert torch.equal(predict(method, stored_batch(method, hidden, dict.fromkeys(hidden, value))), expected)


@pytest.mark.parametrize("method_name", METHODS)
@pytest.mark.parametrize("modality", ["audio", "visual"])
def test_at_a_rate_no_prediction_depends_on_the_videos_that_lose_the_modality(method_name, modality):
    found = []
    for value in (None, 0.0, 7.0):
        store, method = make_store(incomplete=False), make(method_name, "avst")
        questions = make_manifest(store).questions["test"]
        masks = draw_masks(questions, {modality: 0.5}, seed=0, unit="video").absent
        lost = sorted({store.rows[q.video_id] for q in questions if q.question_id in masks})
        assert 0 < len(lost) < len({q.video_id for q in questions})
        for name in of_modality(modality) if value is not None else ():
            store.arrays[name][lost] = value
        dataset = QuestionDataset(FeatureBank(store), make_manifest(store), "test", inputs_of(method.backbone))
        found.append(predict(method, dataset.batch(range(len(dataset)), masks=masks)))
    assert found[0].isfinite().all()
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize(("method_name", "backbone_name"), PRODUCT)
@pytest.mark.parametrize("scenario", [name for name, hidden in SCENARIOS.items() if hidden])
def test_predictions_do_not_depend_on_what_is_absent(method_name, backbone_name, scenario):
    method, hidden = make(method_name, backbone_name), SCENARIOS[scenario]
    expected = predict(method, stored_batch(method, hidden))
    assert expected.isfinite().all()
    for value in (float("nan"), 0.0, 7.0):
        changed = stored_batch(method, hidden, dict.fromkeys(hidden, value))
        assert torch.equal(predict(method, changed), expected)


@pytest.mark.parametrize(("method_name", "backbone_name"), PRODUCT)
@pytest.mark.parametrize("modality", ["audio", "visual"])
def test_predictions_do_not_depend_on_seconds_that_are_gone(method_name, backbone_name, modality):
    method = make(method_name, backbone_name)
    expected, gone = partly(method, modality)
    assert 0 < gone.sum() < gone.size
    for value in (0.0, 7.0):
        assert torch.equal(partly(method, modality, value)[0], expected)


def partly(method, modality: str, value: float | None = None) -> tuple[torch.Tensor, np.ndarray]:
    """Return predictions with a stretch of `modality` gone, whose stored values are `value`, and where it was."""
    store = make_store(incomplete=False)
    whole = QuestionDataset(FeatureBank(store), make_manifest(store), "test", inputs_of(method.backbone))
    gone = whole._there[modality] & ~whole.without_part(modality, 0.5)._there[modality]
    if value is not None:
        for name in of_modality(modality):
            for video, steps in enumerate(gone):
                store.arrays[name][video, np.array(whole.steps)[steps]] = value
    dataset = QuestionDataset(FeatureBank(store), make_manifest(store), "test", inputs_of(method.backbone))
    return predict(method, dataset.without_part(modality, 0.5).batch(range(len(dataset)))), gone[whole._videos]


@pytest.mark.parametrize(("method_name", "backbone_name"), PRODUCT)
def test_no_training_loss_depends_on_what_is_absent(method_name, backbone_name):
    if make(method_name, backbone_name).trains_on == "complete":
        pytest.skip("the loop gives it no question that lacks a modality")
    for hidden in (("audio",), ("visual",)):
        totals = []
        for change in (None, dict.fromkeys(hidden, float("nan")), dict.fromkeys(hidden, 7.0)):
            batch = stored_batch(make(method_name, backbone_name), hidden, change)
            twin = make(method_name, backbone_name).train()
            torch.manual_seed(2)
            parts = [twin.training_loss(part)["total"] for _, part in batch.split_by_presence()]
            totals.append(torch.stack(parts))
        assert totals[0].isfinite().all()
        assert torch.equal(totals[0], totals[1])
        assert torch.equal(totals[0], totals[2])


@pytest.mark.parametrize(("method_name", "backbone_name"), PRODUCT)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_batch_of_one_equals_its_row_and_permutation_permutes(method_name, backbone_name, scenario):
    method = make(method_name, backbone_name)
    batch = stored_batch(method, SCENARIOS[scenario])
    expected = predict(method, batch)
    alone = torch.cat([predict(method, batch.select(torch.tensor([row]))) for row in range(len(batch))])
    torch.testing.assert_close(alone, expected, rtol=1e-4, atol=1e-5)
    order = torch.arange(len(batch)).flip(0)
    torch.testing.assert_close(predict(method, batch.select(order)), expected[order], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("method_name", "backbone_name"), PRODUCT)
@pytest.mark.parametrize("present", ["audio", "visual"])
def test_what_is_present_is_read(method_name, backbone_name, present):
    if method_name == "reference":
        pytest.skip("the question-only reference reads neither")
    method = make(method_name, backbone_name)
    batch = stored_batch(method, SCENARIOS[ONE_SIDED[present]])
    swapped = replace(batch, **{present: {n: v.flip(0) for n, v in batch.features(present).items()}})
    assert not torch.allclose(predict(method, swapped), predict(method, batch))


@pytest.mark.parametrize(("method_name", "backbone_name"), PRODUCT)
def test_a_mixed_batch_is_answered_row_by_row(method_name, backbone_name):
    method, store = make(method_name, backbone_name), make_store()
    dataset = QuestionDataset(FeatureBank(store), make_manifest(store), "train", inputs_of(method.backbone))
    masks = {"5-audio": ("audio",), "6-audio": ("visual",), "7-audio": ("audio", "visual")}
    mixed = dataset.batch(range(20), masks=masks)
    assert len(list(mixed.split_by_presence())) == 4
    alone = torch.cat([predict(method, dataset.batch([row], masks=masks)) for row in range(20)])
    torch.testing.assert_close(predict(method, mixed), alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("inputs", ["question", "audio,question", "visual,question"])
def test_references_never_read_what_is_not_among_their_inputs(inputs):
    torch.manual_seed(0)
    method = make_method("reference", make_backbone("avst", SIZES), inputs=inputs).eval()
    expected = predict(method, stored_batch(method, ()))
    for modality in ("audio", "visual"):
        same = torch.equal(predict(method, stored_batch(method, (), {modality: 7.0})), expected)
        assert same == (modality not in inputs)


def test_noise_on_real_features_as_the_release_evaluates_is_found_out():
    # Its "visual missing" is the real picture with noise of 0.7 on it: replacing the picture changes the answers.
    method = make("zero-fill", "avst")

    def released_answers(change: dict[str, float] | None) -> torch.Tensor:
        batch = stored_batch(method, (), change)
        torch.manual_seed(5)
        noisy = {name: values + 0.7 * torch.randn_like(values) for name, values in batch.visual.items()}
        return predict(method, replace(batch, visual=noisy))

    assert torch.equal(released_answers(None), released_answers(None))
    assert not torch.equal(released_answers({"visual": 7.0}), released_answers(None))
