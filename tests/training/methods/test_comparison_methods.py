"""The comparison methods one by one: formulas, gradients and imputed values."""

from dataclasses import replace

import pytest
import torch
from small_avqa import small_backbone, small_batch
from torch.nn import functional as F

from pipeline.store.schema import MODALITIES
from train.data.batch import Batch
from train.data.scenarios import SAMPLED_MISSING
from train.methods import drfuse as drfuse_module
from train.methods.actionmae import SLOTS, ActionMae, TokenAutoencoder
from train.methods.constant_fill import ConstantFill
from train.methods.drfuse import DrFuse
from train.methods.prompts import MissingAwarePrompts
from train.methods.registry import make_method
from train.methods.shaspec import ShaSpec

ONE_SIDED = [("audio",), ("visual",)]


def parts_with_gradient(method) -> set[str]:
    """Return the first parts of the names of the parameters with a nonzero gradient."""
    grads = {name: p.grad for name, p in method.named_parameters()}
    return {name.split(".")[0] for name, grad in grads.items() if grad is not None and grad.abs().sum() > 0}


def backward_losses(method, batch):
    """Return the training losses of `batch` after a backward pass of the total."""
    method.zero_grad()
    losses = method.training_loss(batch)
    losses["total"].backward()
    return losses


def test_each_missing_state_is_sampled_for_a_third_of_the_questions():
    torch.manual_seed(0)
    batch = small_batch().select(torch.zeros(3000, dtype=torch.long))
    parts = batch.sample_missing()
    assert sorted(torch.cat([rows for rows, _ in parts]).tolist()) == list(range(3000))
    missing = {tuple(m for m in MODALITIES if m not in part.available): len(part) for _, part in parts}
    assert set(missing) == set(SAMPLED_MISSING)
    assert min(missing.values()) > 900


@pytest.mark.parametrize("hidden", ONE_SIDED)
def test_questions_with_a_naturally_missing_modality_are_not_sampled(hidden):
    (rows, part), *others = small_batch().without(*hidden).sample_missing()
    assert part.available == tuple(m for m in MODALITIES if m not in hidden)
    assert not others
    assert len(rows) == len(part)


# Mean fill


def test_mean_fill_is_zero_fill_with_the_training_mean():
    torch.manual_seed(0)
    method = make_method("mean-fill", small_backbone())
    batch = small_batch()
    method.training_loss(batch)
    filled = method.filling.fill_missing(batch.without("audio"))
    for name, values in batch.audio.items():
        expected = values[batch.audio_mask].float().mean(0)
        torch.testing.assert_close(filled.audio[name][0, 0], expected, rtol=1e-4, atol=1e-5)


# Constant fill


def test_constant_is_imputed_at_every_step_and_trained():
    torch.manual_seed(0)
    method, batch = ConstantFill(small_backbone()), small_batch()
    losses = backward_losses(method, batch)
    assert {"answer", "audio_missing_answer", "visual_missing_answer", "unseen"} <= losses.keys()
    assert not any(name.endswith("missing_match") for name in losses)
    assert method.get_buffer("placed")
    representation = method.backbone.encode(batch)
    for modality, constant in method.constants.items():
        assert 0 < constant.grad.abs().max() < 10
        real = representation.features[modality][representation.masks[modality]].mean(0)
        torch.testing.assert_close(constant, real)
    initial = {modality: constant.clone() for modality, constant in method.constants.items()}
    backward_losses(method, batch.select(torch.arange(2)))
    assert all(torch.equal(initial[modality], constant) for modality, constant in method.constants.items())
    torch.nn.init.normal_(method.constants["audio"])
    completed = method.impute(method.backbone.encode(batch.without("audio")), "audio")
    assert (completed.features["audio"] == method.constants["audio"]).all()


# ShaSpec


def test_missing_modality_is_imputed_by_the_shared_encoding_of_the_other():
    torch.manual_seed(0)
    method = ShaSpec(small_backbone()).eval()
    for missing, available in zip(MODALITIES, reversed(MODALITIES), strict=True):
        representation = method.backbone.encode(small_batch().without(missing))
        steps = method.backbone.steps(representation)
        fused = method._fused(representation, steps, method._shared(steps))
        assert torch.equal(fused.steps[missing], method.shared(steps[available]))
        assert torch.equal(fused.masks[missing], fused.masks[available])
        both = torch.cat((method.shared(steps[available]), method.specific[available](steps[available])), -1)
        torch.testing.assert_close(fused.steps[available], method.shared(steps[available]) + method.fusion(both))


def test_alignment_loss_is_the_l1_distance_and_domain_loss_the_cross_entropy():
    torch.manual_seed(0)
    method, batch = ShaSpec(small_backbone()), small_batch()
    representation = method.backbone.encode(batch)
    steps = method.backbone.steps(representation)
    for layer in (method.shared[-1], method.specific["audio"][-1], method.specific["visual"][-1]):
        torch.nn.init.zeros_(layer.weight)
    apart = {"audio": torch.zeros_like(steps["audio"]), "visual": torch.full_like(steps["visual"], 3.0)}
    assert method._alignment_loss(representation, apart) == 3
    assert method._alignment_loss(representation, method._shared(steps)) == 0
    with torch.no_grad():
        for sign, modality in zip((-1, 1), MODALITIES, strict=True):
            method.specific[modality][-1].bias.fill_(sign)
        method.domain.weight.copy_(torch.tensor([[-10.0], [10.0]]).expand_as(method.domain.weight))
        assert method._domain_loss(representation, steps) < 1e-3
        method.domain.weight.neg_()
        assert method._domain_loss(representation, steps) > 10


def test_every_part_of_shaspec_gets_a_gradient():
    torch.manual_seed(0)
    method = ShaSpec(small_backbone())
    losses = backward_losses(method, small_batch())
    assert {"answer", "alignment", "domain", "unseen", "total"} <= losses.keys()
    expected = losses["answer"] + losses["unseen"] + 0.1 * losses["alignment"] + 0.02 * losses["domain"]
    torch.testing.assert_close(losses["total"], expected)
    assert parts_with_gradient(method) >= {"shared", "specific", "fusion", "domain", "unseen", "backbone"}


# ActionMAE


@pytest.mark.parametrize("available", [("audio", "question"), ("visual", "question"), SLOTS])
def test_decoder_reads_available_tokens_in_their_own_slots(available):
    torch.manual_seed(0)
    network = TokenAutoencoder(16, heads=2).eval()
    recorded = {}
    network.decoder.register_forward_pre_hook(lambda module, arguments: recorded.update(decoded=arguments[0]))
    network.encoder.register_forward_hook(lambda module, arguments, output: recorded.update(encoded=output))
    predicted = network({slot: torch.randn(3, 16) for slot in available})
    assert tuple(predicted) == SLOTS
    memories = len(network.memory)
    for slot in SLOTS:
        code = network.slot_codes["decoder"][SLOTS.index(slot)]
        token = recorded["decoded"][:, memories + SLOTS.index(slot)] - code
        if slot in available:
            expected = recorded["encoded"][:, memories + available.index(slot)]
        else:
            expected = network.mask_token.expand(3, -1)
        torch.testing.assert_close(token, expected)


def test_slots_are_distinguished_by_their_embeddings():
    torch.manual_seed(0)
    network = TokenAutoencoder(16, heads=2).eval()
    token, question = torch.randn(2, 3, 16)
    as_audio = network({"audio": token, "question": question})["question"]
    as_visual = network({"visual": token, "question": question})["question"]
    assert not torch.allclose(as_audio, as_visual)


def test_actionmae_learns_to_predict_the_removed_steps(monkeypatch):
    torch.manual_seed(0)
    method, batch = ActionMae(small_backbone(), heads=2), small_batch()
    every = torch.arange(len(batch))
    monkeypatch.setattr(Batch, "sample_missing", lambda batch: [(every, batch.without("audio"))])
    optimiser = torch.optim.Adam(method.autoencoder.parameters(), lr=3e-3)
    errors = []
    for _ in range(60):
        optimiser.zero_grad()
        loss = method.training_loss(batch)["reconstruction"]
        loss.backward()
        optimiser.step()
        errors.append(loss.item())
    assert errors[0] > 0.8  # the targets have unit variance
    assert errors[-1] < 0.5 * errors[0]


def test_reconstruction_target_of_actionmae_is_the_real_step_without_gradient(monkeypatch):
    torch.manual_seed(0)
    method, batch = ActionMae(small_backbone(), heads=2).eval(), small_batch()
    visual_mask = batch.visual_mask.clone()
    visual_mask[0, 1:] = False
    batch = replace(batch, visual_mask=visual_mask)
    real = method._real_steps(batch)
    assert not any(values.requires_grad for values in real.values())
    monkeypatch.setattr(Batch, "sample_missing", lambda batch: [(torch.arange(len(batch)), batch.without("visual"))])
    losses = method.training_loss(batch)
    representation = method.backbone.encode(batch.without("visual"))
    _, predicted = method._completed(representation, "visual")
    audio_mask = representation.masks["audio"]
    assert (audio_mask & ~visual_mask).sum() > 0  # steps without visual features have no target
    target = F.layer_norm(real["visual"][audio_mask & visual_mask], (predicted.shape[-1],))
    torch.testing.assert_close(losses["reconstruction"], F.mse_loss(predicted[audio_mask & visual_mask], target))


def test_actionmae_answers_complete_questions_with_the_plain_backbone():
    torch.manual_seed(0)
    method, batch = ActionMae(small_backbone(), heads=2).eval(), small_batch()
    assert torch.equal(method.predict(batch), method.backbone.answer(method.backbone.encode(batch)).logits)


# DrFuse


def test_shared_vectors_are_fused_to_the_logit_of_their_mean_probability():
    first, second = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0)) * 3
    mean = (first.sigmoid() + second.sigmoid()) / 2
    torch.testing.assert_close(drfuse_module._mean_probability([first, second]), mean.logit(), rtol=1e-4, atol=1e-4)
    assert drfuse_module._mean_probability([first]) is first


def test_divergence_is_the_jensen_shannon_divergence():
    first, second = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(1))
    one, two = (torch.stack((x.sigmoid(), 1 - x.sigmoid())) for x in (first, second))
    middle = (one + two) / 2
    expected = sum((p * (p / middle).log()).sum(0) for p in (one, two)).mean() / 2
    torch.testing.assert_close(drfuse_module._divergence(first, second), expected)
    assert drfuse_module._divergence(first, first).abs() < 1e-6
    far = torch.full((2, 3), 200.0, requires_grad=True)
    drfuse_module._divergence(far, -far).backward()
    assert far.grad.isfinite().all()


def test_ranking_loss_is_the_excess_weight_of_the_vector_with_the_larger_error():
    answer = torch.tensor([0])
    heads = {"audio": torch.tensor([[9.0, 0.0]]), "visual": torch.tensor([[0.0, 9.0]])}
    ordered = {"audio": torch.tensor([0.8]), "visual": torch.tensor([0.2])}
    swapped = {"audio": torch.tensor([0.2]), "visual": torch.tensor([0.8])}
    assert drfuse_module._ranking_loss(ordered, heads, answer) == 0
    torch.testing.assert_close(drfuse_module._ranking_loss(swapped, heads, answer), torch.tensor(0.6))
    assert drfuse_module._ranking_loss(swapped, heads, torch.tensor([-1])) == 0
    twice = [{name: torch.cat((v, v)) for name, v in values.items()} for values in (swapped, heads)]
    with_unknown = drfuse_module._ranking_loss(*twice, torch.tensor([0, -1]))
    torch.testing.assert_close(with_unknown, torch.tensor(0.6))


@pytest.mark.parametrize("hidden", [(), *ONE_SIDED])
def test_attention_weights_are_over_the_available_vectors(hidden):
    torch.manual_seed(0)
    method = DrFuse(small_backbone()).eval()
    representation = method.backbone.encode(small_batch().without(*hidden))
    vectors, _ = method._vectors(representation)
    _, weights = method._answer(representation.question, vectors)
    assert set(weights) == {"shared", *MODALITIES} - set(hidden)
    torch.testing.assert_close(sum(weights.values()), torch.ones(len(representation.question)))


def test_every_part_of_drfuse_gets_a_gradient_but_only_the_constant_if_both_modalities_are_missing():
    torch.manual_seed(0)
    method = DrFuse(small_backbone())
    losses = backward_losses(method, small_batch())
    assert {"aligned", "ranking", "shared_answer"} <= losses.keys()
    assert {f"{m}_{loss}" for m in MODALITIES for loss in ("answer", "disentangled")} <= losses.keys()
    torch.testing.assert_close(losses["total"], sum(loss for name, loss in losses.items() if name != "total"))
    parts = {"shared", "distinct", "projection", "query", "key", "value", "answer_layer", "heads", "unseen"}
    assert parts_with_gradient(method) >= parts | {"backbone"}
    backward_losses(method, small_batch().without(*MODALITIES))
    assert parts_with_gradient(method) == {"unseen"}


def test_disentangled_loss_is_1_if_the_distinct_vector_equals_the_shared_one():
    torch.manual_seed(0)
    method, batch = DrFuse(small_backbone()).eval(), small_batch().without("audio")
    initial = method._losses(batch)["visual_disentangled"]
    method.distinct["visual"] = torch.nn.Sequential(method.shared["visual"], method.projection)
    torch.testing.assert_close(method._losses(batch)["visual_disentangled"], torch.tensor(1.0))
    assert initial < 0.9


# Prompts


def test_only_prompts_and_answer_layers_get_a_gradient_after_the_first_stage():
    torch.manual_seed(0)
    method = MissingAwarePrompts(small_backbone())
    backward_losses(method, small_batch())
    assert parts_with_gradient(method.backbone) == {"fusion", "classifier"}
    assert all(prompt.grad.abs().sum() > 0 for prompt in method.prompts.values())
    assert all(parameter.requires_grad for parameter in method.parameters())


def test_each_state_has_its_own_prompts_initialised_with_one_row_of_ones():
    method = MissingAwarePrompts(small_backbone()).eval()
    for prompts in method.prompts.values():
        for state in range(3):
            assert (prompts[state, state] == 1).all()
            assert prompts[state].sum() == prompts.shape[-1]
    batch = small_batch()
    before = [method.predict(batch.without(*hidden)) for hidden in SAMPLED_MISSING]
    with torch.no_grad():
        for prompts in method.prompts.values():
            prompts[1].normal_(std=3)
    after = [method.predict(batch.without(*hidden)) for hidden in SAMPLED_MISSING]
    assert [torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [True, False, True]


def test_first_stage_of_prompts_trains_the_plain_backbone():
    torch.manual_seed(0)
    method = MissingAwarePrompts(small_backbone())
    method.enter("backbone")
    backward_losses(method, small_batch())
    assert parts_with_gradient(method) == {"backbone", "unseen"}
    backward_losses(method, small_batch().without("audio"))
    assert parts_with_gradient(method) == {"unseen"}
    method.enter("prompts")
    backward_losses(method, small_batch())
    assert "prompts" in parts_with_gradient(method)
