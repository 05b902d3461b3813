from dataclasses import replace

import pytest
import torch
from small_avqa import CHANNELS, small_backbone, small_batch
from torch.nn import functional as F

from train.methods.avr import REFINE_VARIANTS, AudioVisualRefiner, Avr, DiffusionSizes, NoiseFill

VARIANTS = list(REFINE_VARIANTS)
SMALL = DiffusionSizes(steps=3, dim=8, stem_kernel=3)


def small_refiner(variant: str = "recommended", shapes=None, sizes: DiffusionSizes = SMALL, **changes):
    torch.manual_seed(0)
    settings = replace(REFINE_VARIANTS[variant], **changes)
    return AudioVisualRefiner(shapes or {"audio": (6,), "visual": (8, 3, 3)}, sizes=sizes, settings=settings)


def small_pair(rows: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(rows, 6), torch.rand(rows, 8, 3, 3)


def small_avr(variant: str) -> Avr:
    return Avr(small_backbone(), variant=variant, steps=3, dim=8, stem_kernel=3)


def test_has_as_many_parameters_as_released():
    refiner = AudioVisualRefiner({"audio": (512,), "visual": (512, 14, 14)})
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in refiner.named_children()}
    assert counts == {"join": 524_800, "read": 525_312, "diffusion": 4_685_120, "moments": 0}


def test_join_equals_a_convolution_over_the_repeated_audio_vector_and_the_map():
    refiner, (audio, visual) = small_refiner(), small_pair()
    repeated = audio[:, :, None, None].expand(-1, -1, 3, 3)
    expected = refiner.join(torch.cat((repeated, visual), 1))
    torch.testing.assert_close(refiner._joined(audio, visual), expected)


@pytest.mark.parametrize("readout", ["mean", "corner"])
def test_read_equals_a_convolution_split_into_audio_and_visual(readout):
    refiner, joint = small_refiner("paper", readout=readout), torch.randn(4, 8, 3, 3)
    audio, visual = refiner._read(joint)
    expected = refiner.read(joint)
    vector = expected[:, :6].mean((2, 3)) if readout == "mean" else expected[:, :6, 0, 0]
    torch.testing.assert_close(audio, vector)
    torch.testing.assert_close(visual, expected[:, 6:])


def test_released_variant_is_the_released_sampler_between_two_convolutions():
    refiner, (audio, visual) = small_refiner("released").train(), small_pair()
    joint = refiner.join(torch.cat((audio[:, :, None, None].expand(-1, -1, 3, 3), visual), 1))
    noises = refiner.diffusion.sample_noises(joint)
    end = refiner.read((refiner.diffusion.reverse(joint, noises=noises, clamp=True) + 1) / 2)
    refined = refiner.refine(audio, visual, noises=noises)
    torch.testing.assert_close(refined[0], end[:, :6, 0, 0])
    torch.testing.assert_close(refined[1], end[:, 6:])


def test_untrained_recommended_variant_is_the_identity_on_corrected_modalities():
    refiner, (audio, visual) = small_refiner(), small_pair()
    both = refiner.refine(audio, visual)
    assert torch.equal(both[0], audio)
    assert torch.equal(both[1], visual)
    visual_only = refiner.refine(audio, visual, corrected=("visual",))
    assert not visual_only[0].any()
    assert torch.equal(visual_only[1], visual)


@pytest.mark.parametrize("variant", VARIANTS)
def test_trained_refinement_depends_on_both_modalities(variant):
    refiner, (audio, visual) = small_refiner(variant).eval(), small_pair()
    torch.nn.init.normal_(refiner.read.weight)
    base = refiner.refine(audio, visual)
    for changed in (refiner.refine(audio.flip(1), visual), refiner.refine(audio, visual.flip(1))):
        for before, after in zip(base, changed, strict=True):
            assert not torch.allclose(before, after, atol=1e-4)


def test_schedule_keeps_the_signal_at_the_middle_step_but_not_at_the_last():
    kept = small_refiner(sizes=DiffusionSizes(steps=10, dim=8)).diffusion.alpha_bar
    assert kept[9].sqrt().item() < 0.01
    assert kept[4].sqrt().item() == pytest.approx(0.5**0.5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_evaluation_is_deterministic_and_training_adds_noise_only_in_stochastic_variants(variant):
    refiner, (audio, visual) = small_refiner(variant), small_pair()
    torch.nn.init.normal_(refiner.read.weight)
    first, second = refiner.train().refine(audio, visual), refiner.refine(audio, visual)
    assert torch.equal(first[0], second[0]) != REFINE_VARIANTS[variant].stochastic
    refiner.eval()
    assert torch.equal(refiner.refine(audio, visual)[0], refiner.refine(audio, visual)[0])


def test_joint_maps_are_scaled_to_unit_variance_by_the_running_moments():
    refiner = small_refiner()
    audio, visual = 3 * torch.randn(400, 6) + 1, 5 * torch.rand(400, 8, 3, 3)
    for _ in range(30):
        refiner.loss(audio, visual)
    scaled = refiner._scaled(refiner._joined(audio, visual)).movedim(1, -1).flatten(0, 2)
    torch.testing.assert_close(scaled.mean(0), torch.zeros(8), atol=0.05, rtol=0)
    torch.testing.assert_close(scaled.std(0), torch.ones(8), atol=0.1, rtol=0)
    updates = int(refiner.moments.updates)
    refiner.eval().loss(audio, visual)
    assert int(refiner.moments.updates) == updates


def test_diffusion_loss_gives_no_gradient_to_the_features_in_the_recommended_variant_only():
    for variant, has_gradient in (("paper", True), ("released", True), ("recommended", False)):
        audio, visual = small_pair()
        refiner = small_refiner(variant)
        refiner.loss(audio.requires_grad_(), visual).backward()
        assert (audio.grad is not None) == has_gradient
        assert (refiner.join.weight.grad is not None) == has_gradient


def test_joint_map_may_be_narrower_and_visual_features_may_be_a_vector():
    refiner = small_refiner("paper", {"audio": (6,), "visual": (8,)}, replace(SMALL, width=5))
    audio, visual = refiner.refine(torch.randn(4, 6), torch.randn(4, 8))
    assert (audio.shape, visual.shape) == ((4, 6), (4, 8))
    assert refiner.join.weight.shape == (5, 14, 1, 1)


@pytest.mark.parametrize("shapes", [{"audio": (6,), "visual": (8, 3, 3)}, {"audio": (6,), "visual": (1 + 9, 8)}])
def test_concatenated_features_are_separated_again_without_parameters(shapes):
    refiner = small_refiner("paper", shapes, join="concatenated").eval()
    audio, visual = torch.randn(4, *shapes["audio"]), torch.randn(4, *shapes["visual"])
    joint = refiner._joined(audio, visual)
    assert joint.shape == (4, 6 + 8 + (8 if len(shapes["visual"]) == 2 else 0), 3, 3)
    separated = refiner._read(joint)
    torch.testing.assert_close(separated, (audio, visual))
    assert not any(name.startswith(("join", "read")) for name, _ in refiner.named_parameters())
    assert all(values.isfinite().all() for values in refiner.refine(audio, visual))


def test_a_concatenated_join_has_no_width_and_starts_no_correction():
    for variant, sizes in (("paper", replace(SMALL, width=5)), ("recommended", SMALL)):
        with pytest.raises(ValueError, match="join 'concatenated' has no width"):
            small_refiner(variant, sizes=sizes, join="concatenated")


@pytest.mark.parametrize("variant", VARIANTS)
def test_tokens_are_refined_to_tokens_that_depend_on_the_audio_and_the_other_tokens(variant):
    refiner = small_refiner(variant, {"audio": (6,), "visual": (1 + 9, 8)}).eval()
    torch.nn.init.normal_(refiner.read.weight)
    audio, tokens = torch.randn(2, 6), torch.rand(2, 10, 8)
    base = refiner.refine(audio, tokens)
    assert (base[0].shape, base[1].shape) == (audio.shape, tokens.shape)
    for place in (0, 5):
        other = tokens.clone()
        other[:, place] += 1
        for changed in (refiner.refine(audio + 1, tokens), refiner.refine(audio, other)):
            change = [(after - before).abs().amax(-1) for before, after in zip(base, changed, strict=True)]
            assert change[0].min() > 1e-4
            assert change[1][:, [0, 5, 9]].min() > 1e-4


def test_tokens_are_a_summary_and_the_cells_of_a_square_map_in_row_major_order():
    refiner = small_refiner(shapes={"audio": (6,), "visual": (1 + 9, 8)})
    audio, tokens = torch.randn(2, 6), torch.rand(2, 10, 8)
    vector, cells = refiner._unfold(audio, tokens)
    assert torch.equal(vector, torch.cat((audio, tokens[:, 0]), 1))
    assert torch.equal(cells[:, :, 1, 2], tokens[:, 1 + 3 * 1 + 2])
    folded = refiner._fold(vector, cells)
    assert torch.equal(folded[0], audio)
    assert torch.equal(folded[1], tokens)


@pytest.mark.parametrize("visual", [(8, 8), (1, 8)])
def test_tokens_that_do_not_form_a_square_raise(visual):
    with pytest.raises(ValueError, match="AVR joins"):
        small_refiner(shapes={"audio": (6,), "visual": visual})


def test_features_that_cannot_be_joined_raise():
    with pytest.raises(ValueError, match="AVR joins an audio vector and a map"):
        small_refiner(shapes={"audio": (6, 2), "visual": (8, 3, 3)})


def test_noise_is_fresh_in_training_and_one_fixed_sample_in_evaluation():
    fill, mask = NoiseFill({"audio": (6,), "visual": (8, 3, 3)}), torch.ones(2, 3, dtype=torch.bool)
    assert not torch.equal(fill("audio", mask), fill("audio", mask))
    fixed = fill.eval()("visual", mask)
    assert fixed.shape == (2, 3, 8, 3, 3)
    assert torch.equal(fixed[0, 0], fixed[1, 2])
    assert torch.equal(fixed, fill("visual", mask))


@pytest.mark.parametrize("variant", VARIANTS)
def test_training_loss_is_the_sum_of_three_answers_and_the_diffusion_loss(variant):
    losses = small_avr(variant).training_loss(small_batch())
    matched = set() if variant == "recommended" else {"audio_missing_match", "visual_missing_match"}
    answers = {"answer", "match", "audio_missing_answer", "visual_missing_answer"}
    assert set(losses) == {"unseen", "ave", "total"} | answers | matched
    parts = sum(loss for name, loss in losses.items() if name != "total")
    torch.testing.assert_close(losses["total"], parts)


def test_missing_modality_is_imputed_from_noise_and_the_available_modality():
    model = small_avr("recommended").eval()
    torch.nn.init.normal_(model.refiner.read.weight)
    batch = small_batch(3).without("audio")
    completed = model.impute(model.backbone.encode(batch), "audio")
    assert completed.features["audio"].shape == (3, 4, CHANNELS)
    assert torch.equal(completed.masks["audio"], batch.visual_mask)
    other = model.impute(
        model.backbone.encode(small_batch(3).without("audio").select(torch.tensor([1, 0, 2]))), "audio"
    )
    assert F.mse_loss(completed.features["audio"][0], other.features["audio"][0]) > 0
