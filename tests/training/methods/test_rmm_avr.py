"""The methods rmm, avr and rmm-avr: their inputs, losses, gradients and predictions."""

from dataclasses import replace

import pytest
import torch
from small_avqa import ANSWERS, small_backbone, small_batch
from torch.nn import functional as F

from pipeline.store.schema import MODALITIES
from train.data.batch import Batch
from train.data.scenarios import OTHER
from train.interfaces import SupportsStages
from train.methods.avr import Avr
from train.methods.constant_fill import ConstantFill
from train.methods.rmm import Rmm
from train.methods.rmm_avr import RmmAvr

SIZES = {"steps": 3, "dim": 8, "stem_kernel": 3}
VARIANTS = ("paper", "released", "recommended")
BUILDERS = {
    "rmm": lambda variant, **more: Rmm(small_backbone(), variant=variant, slots=5, **more),
    "avr": lambda variant, **more: Avr(small_backbone(), variant=variant, **SIZES, **more),
    "rmm-avr": lambda variant, **more: RmmAvr(small_backbone(), variant=variant, slots=5, **SIZES, **more),
}
EVERY = [(name, variant) for name in BUILDERS for variant in VARIANTS]
PRESENCES = [(), ("audio",), ("visual",), ("audio", "visual")]


def build(name: str, variant: str = "recommended", **more):
    """Return a method whose refinement is not the identity, as after training."""
    torch.manual_seed(3)
    method = BUILDERS[name](variant, **more)
    if hasattr(getattr(method, "refiner", None), "read"):
        torch.nn.init.normal_(method.refiner.read.weight, std=0.2)
    return method


def with_nan(batch: Batch, *modalities: str) -> Batch:
    """Return `batch` with NaN as the features of `modalities` and False in their masks."""
    changes = {}
    for modality in modalities:
        stored = batch.features(modality)
        changes[modality] = {name: torch.full_like(values, torch.nan) for name, values in stored.items()}
        changes[f"{modality}_mask"] = torch.zeros_like(batch.mask(modality))
    return replace(batch, **changes)


def predict_parts(method, batch: Batch) -> torch.Tensor:
    logits = torch.zeros(len(batch), ANSWERS)
    with torch.no_grad():
        for rows, part in batch.split_by_presence():
            logits[rows] = method.predict(part)
    return logits


@pytest.mark.parametrize(("name", "variant"), EVERY)
@pytest.mark.parametrize("missing", PRESENCES)
def test_predictions_do_not_change_when_the_missing_modality_is_replaced(name, variant, missing):
    method, batch = build(name, variant).eval(), small_batch()
    expected = predict_parts(method, batch.without(*missing))
    assert expected.isfinite().all()
    assert torch.equal(predict_parts(method, with_nan(batch, *missing)), expected)


@pytest.mark.parametrize(("name", "variant"), EVERY)
@pytest.mark.parametrize("missing", MODALITIES)
def test_predictions_change_with_the_available_modality(name, variant, missing):
    method, batch = build(name, variant).eval(), small_batch()
    available = "visual" if missing == "audio" else "audio"
    flipped = {name: values.flip(0) for name, values in batch.features(available).items()}
    with torch.no_grad():
        before = method.predict(batch.without(missing))
        after = method.predict(replace(batch, **{available: flipped}).without(missing))
    assert (before - after).abs().amax(1).min() > 0


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("missing", PRESENCES)
def test_a_prediction_is_the_same_alone_and_in_a_batch(name, missing):
    method, batch = build(name).eval(), small_batch().without(*missing)
    with torch.no_grad():
        together = method.predict(batch)
        alone = torch.cat([method.predict(batch.select(torch.tensor([row]))) for row in range(len(batch))])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", BUILDERS)
def test_complete_questions_are_answered_by_the_plain_backbone(name):
    method, batch = build(name).eval(), small_batch()
    with torch.no_grad():
        expected = method.backbone.answer(method.backbone.encode(batch)).logits
        assert torch.equal(method.predict(batch), expected)


@pytest.mark.parametrize("name", BUILDERS)
def test_if_both_modalities_are_missing_nothing_is_imputed(name, monkeypatch):
    method, batch = build(name).eval(), small_batch().without(*MODALITIES)
    for part in ("memory", "refiner"):
        if hasattr(method, part):
            delattr(method, part)
    with torch.no_grad():
        assert method.predict(batch).shape == (6, ANSWERS)


@pytest.mark.parametrize(("name", "variant"), EVERY)
def test_every_parameter_gets_a_gradient(name, variant):
    method = build(name, variant)
    method.training_loss(small_batch())["total"].backward()
    assert [n for n, p in method.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("name", BUILDERS)
def test_only_the_constants_get_a_gradient_if_both_modalities_are_missing(name):
    method, batch = build(name), small_batch()
    method.training_loss(batch.without(*MODALITIES))["total"].backward()
    with_gradient = {n for n, p in method.named_parameters() if p.grad is not None and p.grad.any()}
    assert with_gradient == {f"unseen.constants.vectors.{m}" for m in MODALITIES}
    assert all(p.requires_grad for p in method.parameters())


@pytest.mark.parametrize(("name", "variant"), EVERY)
@pytest.mark.parametrize("missing", MODALITIES)
def test_questions_with_one_modality_are_trained_on_with_the_other_imputed(name, variant, missing):
    method = build(name, variant)
    losses = method.training_loss(small_batch().without(missing))
    # Without the visual modality there are no negatives.
    matched = {"audio_missing_match"} if missing == "audio" and variant != "recommended" else set()
    assert set(losses) == {"unseen", f"{missing}_missing_answer", "total"} | matched
    assert losses["total"].isfinite()
    assert method.trains_on == "all"


@pytest.mark.parametrize(("name", "variant"), EVERY)
def test_missing_steps_leave_losses_and_predictions_finite(name, variant):
    batch = small_batch(3, audio_steps=torch.tensor([4, 1, 3]), visual_steps=torch.tensor([2, 4, 1]))
    method = build(name, variant)
    total = method.training_loss(batch)["total"]
    total.backward()
    assert total.isfinite()
    assert all(p.grad.isfinite().all() for p in method.parameters())
    for missing in PRESENCES:
        assert predict_parts(method.eval(), batch.without(*missing)).isfinite().all()


@pytest.mark.parametrize("name", BUILDERS)
def test_first_stage_trains_only_the_backbone(name):
    method = build(name)
    assert isinstance(method, SupportsStages)
    first, second = method.stages()
    assert first.share + second.share == 1
    method.enter(first.name)
    losses = method.training_loss(small_batch())
    assert set(losses) == {"unseen", "answer", "match", "total"}
    losses["total"].backward()
    assert all(n.startswith(first.trains) for n, p in method.named_parameters() if p.grad is not None)
    assert set(method.training_loss(small_batch().without("audio"))) == {"unseen", "total"}
    method.enter(second.name)
    assert "audio_missing_answer" in method.training_loss(small_batch())


def test_total_loss_is_equation_8(monkeypatch):
    method, batch = build("rmm-avr", "paper", recall_weight=0.5, refine_weight=2.0), small_batch()
    method.refiner.eval()  # a reverse chain without noise
    diffusion = method.refiner.diffusion
    step, noise = torch.arange(24) % 3, torch.randn(24, 16, 3, 3)
    monkeypatch.setattr(diffusion, "loss", lambda clean: diffusion.loss_at(clean, step, noise))
    total = method.training_loss(batch)["total"]

    real = method.backbone.encode(batch)
    flat = {m: real.features[m].flatten(0, 1) for m in MODALITIES}
    question = real.question.repeat_interleave(4, 0)
    recalled = {m: method.memory.recall(m, flat[OTHER[m]], question) for m in MODALITIES}
    expected = method.unseen.loss(method.backbone, real, batch.answer)
    completed = [real]
    for missing in MODALITIES:
        refined = method.refiner.refine(*({**flat, missing: recalled[missing]}[m] for m in MODALITIES))
        features = {m: values.unflatten(0, (6, 4)) for m, values in zip(MODALITIES, refined, strict=True)}
        completed.append(replace(real, features=features))
        expected += 0.5 * (recalled[missing] - flat[missing]).square().mean()
    for representation in completed:
        answer = method.backbone.answer(representation)
        expected += F.cross_entropy(answer.logits, batch.answer) + answer.losses["match"]
    joint = method.refiner._joined(flat["audio"], flat["visual"])
    alpha_bar = diffusion.alpha_bar[step][:, None, None, None]
    noisy = alpha_bar.sqrt() * joint + (1 - alpha_bar).sqrt() * noise
    expected += 2 * (diffusion.network(noisy, step) - noise).square().mean()
    torch.testing.assert_close(total, expected)


@pytest.mark.parametrize(("name", "variant"), EVERY)
@pytest.mark.parametrize("choice", [None, True, False])
def test_imputed_pairs_have_a_match_loss_in_the_variants_of_equation_8_or_by_choice(name, variant, choice):
    losses = build(name, variant, match_imputed=choice).training_loss(small_batch())
    matched = {"match"} | {f"{m}_missing_match" for m in MODALITIES if (choice is None or choice)}
    expected = matched if choice or (choice is None and variant != "recommended") else {"match"}
    assert {loss for loss in losses if loss.endswith("match")} == expected


@pytest.mark.parametrize("choice", [True, False])
def test_the_control_can_be_trained_by_either_rule(choice):
    losses = ConstantFill(small_backbone(), match_imputed=choice).training_loss(small_batch())
    assert {f"{m}_missing_match" for m in MODALITIES} & losses.keys() == (
        {f"{m}_missing_match" for m in MODALITIES} if choice else set()
    )


@pytest.mark.parametrize(
    ("options", "loss", "factors"),
    [
        # The elements of a step: 16 of audio, 16 x 3 x 3 of visual; of the joint map 16 x 3 x 3.
        ({"recall_error": "sum"}, "rmmr", (1 / 16, 1 / (16 * 9))),
        ({"refine_error": "sum"}, "ave", (1 / (16 * 9),)),
    ],
)
def test_the_reductions_of_equations_3_and_7_are_choices(options, loss, factors):
    values = []
    for chosen in ({}, options):
        method = build("rmm-avr", "paper", **chosen)
        torch.manual_seed(0)
        values.append(method.training_loss(small_batch())[loss].item())
    assert min(factors) * (1 - 1e-5) <= values[0] / values[1] <= max(factors) * (1 + 1e-5)


class FarPrediction(torch.nn.Module):
    def forward(self, x, step):
        return torch.full_like(x, -100.0)


@pytest.mark.parametrize("name", ["avr", "rmm-avr"])
def test_estimates_are_clamped_by_choice(name):
    assert not build(name, "paper", clamp=False).refiner.settings.clamp
    method = build(name, "recommended", clamp=True).eval()
    assert method.refiner.settings.clamp
    method = build(name, "paper", clamp=True).eval()
    method.refiner.diffusion.network = FarPrediction()
    refined = method.refiner.diffusion.reverse(torch.randn(2, 16, 3, 3), clamp=True)
    assert (refined == 1).all()
    audio, visual = method.refiner.refine(torch.randn(2, 16), torch.randn(2, 16, 3, 3))
    for found, expected in zip((audio, visual), method.refiner._read(refined), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", ["avr", "rmm-avr"])
def test_schedule_and_join_are_choices(name):
    betas = {one: build(name, "paper", schedule=one).refiner.diffusion.betas for one in ("ddpm", "cosine")}
    torch.testing.assert_close(betas["ddpm"], torch.tensor([1e-4, 0.01005, 0.02]))
    assert betas["cosine"][-1] > 0.9
    joined = {one: build(name, "paper", join=one).refiner for one in ("learned", "concatenated")}
    assert hasattr(joined["learned"], "join")
    assert not hasattr(joined["concatenated"], "join")


@pytest.mark.parametrize("name", ["rmm", "rmm-avr"])
def test_the_start_of_the_slots_is_a_choice(name):
    for placed in (True, False):
        method = build(name, "paper", placed=placed).train()
        before = method.memory.slots["audio"].clone()
        method.training_loss(small_batch())
        assert torch.equal(method.memory.slots["audio"], before) != placed


def test_released_variant_ties_the_four_refined_features_to_the_real_ones():
    method, batch = build("rmm-avr", "released"), small_batch()
    method.refiner.eval()
    losses = method.training_loss(batch)
    representation = method.backbone.encode(batch)
    expected = 0
    for missing, available in (("audio", "visual"), ("visual", "audio")):
        flat = {m: representation.features[m].flatten(0, 1) for m in MODALITIES}
        question = representation.question.repeat_interleave(4, 0)
        recalled = {**flat, missing: method.memory.recall(missing, flat[available], question)}
        refined = method.refiner.refine(recalled["audio"], recalled["visual"])
        expected += sum(F.mse_loss(r, flat[m]) for m, r in zip(MODALITIES, refined, strict=True))
    torch.testing.assert_close(losses["tied"], expected)


@pytest.mark.parametrize(("variant", "is_refined"), [("paper", True), ("recommended", True), ("released", False)])
def test_backbone_gets_the_refined_available_modality_except_in_the_released_variant(variant, is_refined):
    method, batch = build("rmm-avr", variant).eval(), small_batch().without("audio")
    representation = method.backbone.encode(batch)
    refined = method._refined(representation, {"audio": torch.randn(6, 4, 16)})["audio"]
    completed = method._completed(representation, "audio", refined)
    assert torch.equal(completed.features["audio"], refined["audio"])
    assert torch.equal(completed.features["visual"], representation.features["visual"]) != is_refined


@pytest.mark.parametrize("name", BUILDERS)
def test_overfits_a_small_batch_in_every_scenario(name):
    method, batch = build(name), small_batch(3)
    optimiser = torch.optim.Adam(method.parameters(), 1e-2)
    for _ in range(30):
        optimiser.zero_grad()
        method.training_loss(batch)["total"].backward()
        optimiser.step()
    method.eval()
    for missing in ((), ("audio",), ("visual",)):
        assert torch.equal(predict_parts(method, batch.without(*missing)).argmax(1), batch.answer)
