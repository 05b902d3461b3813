"""No method reads a missing modality: a product over the methods, the backbones and the scenarios."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from product import PRODUCT, make, predict, stored_batch
from tiny_store import SIZES, make_manifest, make_store, of_modality

from train.backbones.registry import BACKBONES, backbone_variants, make_backbone
from train.data.dataset import QuestionDataset
from train.data.feature_bank import FeatureBank
from train.data.scenarios import SCENARIOS, sample_masks
from train.interfaces import inputs_of
from train.methods.registry import METHODS, make_method, method_variants

# The variants of methods and backbones: (method, backbone, variant).
VARIANTS = [
    *((name, "avst", variant) for name in METHODS for variant in method_variants(name)),
    *(("zero-fill", name, variant) for name in BACKBONES for variant in backbone_variants(name)),
]
ONE_SIDED = {"audio": "visual-missing", "visual": "audio-missing"}


@pytest.mark.parametrize(("method_name", "backbone_name", "variant"), VARIANTS)
@pytest.mark.parametrize("hidden", [("audio",), ("visual",)])
def test_predictions_of_no_variant_depend_on_the_missing_modality(method_name, backbone_name, variant, hidden):
    method = make(method_name, backbone_name, variant)
    expected = predict(method, stored_batch(method, hidden))
    for value in (float("nan"), 7.0):
        assert torch.equal(predict(method, stored_batch(method, hidden, dict.fromkeys(hidden, value))), expected)


@pytest.mark.parametrize("method_name", METHODS)
@pytest.mark.parametrize("modality", ["audio", "visual"])
def test_predictions_at_a_missing_rate_do_not_depend_on_the_masked_features(method_name, modality):
    predictions = []
    for value in (None, 0.0, 7.0):
        store, method = make_store(incomplete=False), make(method_name, "avst")
        questions = make_manifest(store).questions["test"]
        masks = sample_masks(questions, {modality: 0.5}, seed=0, unit="video").absent
        masked = sorted({store.rows[q.video_id] for q in questions if q.question_id in masks})
        assert 0 < len(masked) < len({q.video_id for q in questions})
        for name in of_modality(modality) if value is not None else ():
            store.arrays[name][masked] = value
        dataset = QuestionDataset(FeatureBank(store), make_manifest(store), "test", inputs_of(method.backbone))
        predictions.append(predict(method, dataset.batch(range(len(dataset)), masks=masks)))
    assert predictions[0].isfinite().all()
    assert torch.equal(predictions[0], predictions[1])
    assert torch.equal(predictions[0], predictions[2])


@pytest.mark.parametrize(("method_name", "backbone_name"), PRODUCT)
@pytest.mark.parametrize("scenario", [name for name, hidden in SCENARIOS.items() if hidden])
def test_predictions_do_not_depend_on_the_missing_modality(method_name, backbone_name, scenario):
    method, hidden = make(method_name, backbone_name), SCENARIOS[scenario]
    expected = predict(method, stored_batch(method, hidden))
    assert expected.isfinite().all()
    for value in (float("nan"), 0.0, 7.0):
        changed = stored_batch(method, hidden, dict.fromkeys(hidden, value))
        assert torch.equal(predict(method, changed), expected)


@pytest.mark.parametrize(("method_name", "backbone_name"), PRODUCT)
@pytest.mark.parametrize("modality", ["audio", "visual"])
def test_predictions_do_not_depend_on_removed_steps(method_name, backbone_name, modality):
    method = make(method_name, backbone_name)
    expected, removed = predict_without_part(method, modality)
    assert 0 < removed.sum() < removed.size
    for value in (0.0, 7.0):
        assert torch.equal(predict_without_part(method, modality, value)[0], expected)


def predict_without_part(method, modality: str, value: float | None = None) -> tuple[torch.Tensor, np.ndarray]:
    """Return predictions with half the steps of `modality` removed, and the mask of the removed steps.

    `value`: overwrites the stored values of the removed steps.
    """
    store = make_store(incomplete=False)
    complete = QuestionDataset(FeatureBank(store), make_manifest(store), "test", inputs_of(method.backbone))
    removed = complete._available[modality] & ~complete.without_part(modality, 0.5)._available[modality]
    if value is not None:
        for name in of_modality(modality):
            for video, steps in enumerate(removed):
                store.arrays[name][video, np.array(complete.steps)[steps]] = value
    dataset = QuestionDataset(FeatureBank(store), make_manifest(store), "test", inputs_of(method.backbone))
    return predict(method, dataset.without_part(modality, 0.5).batch(range(len(dataset)))), removed[complete._videos]


@pytest.mark.parametrize(("method_name", "backbone_name"), PRODUCT)
def test_training_losses_do_not_depend_on_the_missing_modality(method_name, backbone_name):
    if make(method_name, backbone_name).trains_on == "complete":
        pytest.skip("trained on complete questions only")
    for hidden in (("audio",), ("visual",)):
        totals = []
        for change in (None, dict.fromkeys(hidden, float("nan")), dict.fromkeys(hidden, 7.0)):
            batch = stored_batch(make(method_name, backbone_name), hidden, change)
            method = make(method_name, backbone_name).train()
            torch.manual_seed(2)
            parts = [method.training_loss(part)["total"] for _, part in batch.split_by_presence()]
            totals.append(torch.stack(parts))
        assert totals[0].isfinite().all()
        assert torch.equal(totals[0], totals[1])
        assert torch.equal(totals[0], totals[2])


@pytest.mark.parametrize(("method_name", "backbone_name"), PRODUCT)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_predictions_do_not_depend_on_the_batch_or_its_order(method_name, backbone_name, scenario):
    method = make(method_name, backbone_name)
    batch = stored_batch(method, SCENARIOS[scenario])
    expected = predict(method, batch)
    alone = torch.cat([predict(method, batch.select(torch.tensor([row]))) for row in range(len(batch))])
    torch.testing.assert_close(alone, expected, rtol=1e-4, atol=1e-5)
    order = torch.arange(len(batch)).flip(0)
    torch.testing.assert_close(predict(method, batch.select(order)), expected[order], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("method_name", "backbone_name"), PRODUCT)
@pytest.mark.parametrize("available", ["audio", "visual"])
def test_predictions_depend_on_the_available_modality(method_name, backbone_name, available):
    if method_name == "reference":
        pytest.skip("the question-only reference reads neither modality")
    method = make(method_name, backbone_name)
    batch = stored_batch(method, SCENARIOS[ONE_SIDED[available]])
    swapped = replace(batch, **{available: {n: v.flip(0) for n, v in batch.features(available).items()}})
    assert not torch.allclose(predict(method, swapped), predict(method, batch))


@pytest.mark.parametrize(("method_name", "backbone_name"), PRODUCT)
def test_predictions_of_a_mixed_batch_equal_those_of_its_rows(method_name, backbone_name):
    method, store = make(method_name, backbone_name), make_store()
    dataset = QuestionDataset(FeatureBank(store), make_manifest(store), "train", inputs_of(method.backbone))
    masks = {"5-audio": ("audio",), "6-audio": ("visual",), "7-audio": ("audio", "visual")}
    mixed = dataset.batch(range(20), masks=masks)
    assert len(list(mixed.split_by_presence())) == 4
    alone = torch.cat([predict(method, dataset.batch([row], masks=masks)) for row in range(20)])
    torch.testing.assert_close(predict(method, mixed), alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("inputs", ["question", "audio,question", "visual,question"])
def test_references_read_their_inputs_only(inputs):
    torch.manual_seed(0)
    method = make_method("reference", make_backbone("avst", SIZES), inputs=inputs).eval()
    expected = predict(method, stored_batch(method, ()))
    for modality in ("audio", "visual"):
        is_unchanged = torch.equal(predict(method, stored_batch(method, (), {modality: 7.0})), expected)
        assert is_unchanged == (modality not in inputs)


def test_the_released_evaluation_with_noise_on_real_features_is_detected():
    # Its "visual missing" is real features with noise of standard deviation 0.7: replacing them changes the answers.
    method = make("zero-fill", "avst")

    def released_answers(change: dict[str, float] | None) -> torch.Tensor:
        batch = stored_batch(method, (), change)
        torch.manual_seed(5)
        noisy = {name: values + 0.7 * torch.randn_like(values) for name, values in batch.visual.items()}
        return predict(method, replace(batch, visual=noisy))

    assert torch.equal(released_answers(None), released_answers(None))
    assert not torch.equal(released_answers({"visual": 7.0}), released_answers(None))
