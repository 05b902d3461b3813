"""Gaussian diffusion: schedules, training loss and reverse chain, also against the released code."""

import json

import paths
import pytest
import torch
from recipe import fill, gaussian, probe
from torch import nn

from pipeline.errors import UserError
from train.networks.diffusion import GaussianDiffusion, cosine_betas, linear_betas, sigmoid_betas
from train.networks.diffusion_unet import UNet

GOLDEN = json.loads((paths.GOLDEN / "rmm_avr.json").read_text())


class Constant(torch.nn.Module):
    """A network that predicts one learned value everywhere and records the steps of its calls."""

    def __init__(self, value: float = 0.0) -> None:
        super().__init__()
        self.value = torch.nn.Parameter(torch.tensor(value))
        self.steps: list[int] = []

    def forward(self, noisy, step):
        self.steps.append(int(step[0]))
        return self.value * torch.ones_like(noisy)


def small_diffusion(**options) -> GaussianDiffusion:
    torch.manual_seed(0)
    return GaussianDiffusion(UNet(channels=6, dim=8, stem_kernel=3), **{"steps": 4, **options})


def test_the_sigmoid_schedule_of_ten_steps():
    diffusion = GaussianDiffusion(Constant(), steps=10)
    betas = [0.039493, 0.067493, 0.110548, 0.170391, 0.243479, 0.321840, 0.400330, 0.486957, 0.621427, 0.999]
    alpha_bar = [0.960507, 0.895680, 0.796664, 0.660920, 0.5, 0.339080, 0.203336, 0.104320, 0.0394928, 3.94928e-5]
    clean = [1, 0.634074, 0.514534, 0.448519, 0.395881, 0.344331, 0.292614, 0.245158, 0.208965, 0.198537]
    noisy = [0, 0.365574, 0.483854, 0.546197, 0.589852, 0.622999, 0.642436, 0.637088, 0.573756, 0.030375]
    variance = [0, 0.025551, 0.056716, 0.102178, 0.165118, 0.243479, 0.332118, 0.433125, 0.579485, 0.959585]
    assert diffusion.betas.tolist() == pytest.approx(betas, abs=5e-7)
    assert diffusion.alpha_bar.tolist() == pytest.approx(alpha_bar, abs=5e-7)
    assert diffusion.alpha_bar[-1].item() == pytest.approx(3.94928e-5, rel=1e-5)
    assert diffusion.from_clean.tolist() == pytest.approx(clean, abs=1e-6)
    assert diffusion.from_noisy.tolist() == pytest.approx(noisy, abs=1e-6)
    assert (diffusion.posterior_std**2).tolist() == pytest.approx(variance, abs=1e-6)


def test_the_sigmoid_schedule_of_five_and_of_twenty_steps():
    five = [0.104320, 0.262103, 0.486957, 0.692344, 0.999]
    assert sigmoid_betas(5).tolist() == pytest.approx(five, abs=5e-7)
    assert sigmoid_betas(20)[[0, 18, 19]].tolist() == pytest.approx([0.017177, 0.565067, 0.999], abs=5e-7)


def test_the_cosine_schedule():
    assert cosine_betas(10)[[0, 8, 9]].tolist() == pytest.approx([0.027907, 0.743829, 0.999], abs=5e-7)


@pytest.mark.parametrize("steps", [10, 19])
def test_the_linear_schedule_is_refused_if_a_beta_exceeds_one(steps):
    with pytest.raises(UserError, match=rf"linear.*{steps} steps.*above 1"):
        linear_betas(steps)


def test_the_noise_objective_is_refused_if_the_last_step_leaves_no_signal():
    with pytest.raises(UserError, match="the last of 20 steps leaves no signal"):
        GaussianDiffusion(nn.Identity(), steps=20, schedule="linear")
    diffusion = GaussianDiffusion(nn.Identity(), steps=20, schedule="linear", objective="v")
    assert diffusion.alpha_bar[-1] == 0
    assert all(values.isfinite().all() for values in diffusion.buffers())


def test_the_linear_schedule():
    betas = linear_betas(1000)
    assert (betas[0].item(), betas[-1].item()) == pytest.approx((1e-4, 0.02))


@pytest.mark.parametrize("options", [{"schedule": "quadratic"}, {"objective": "clean"}])
def test_an_unknown_schedule_or_objective_is_refused(options):
    with pytest.raises(UserError, match="unknown"):
        GaussianDiffusion(Constant(), **options)


@pytest.mark.parametrize("objective", ["noise", "v"])
def test_a_correct_prediction_gives_the_clean_values(objective):
    diffusion = GaussianDiffusion(Constant(), steps=10, objective=objective).double()
    clean, noise, step = (
        torch.randn(10, 3, 2, 2).double(),
        torch.randn(10, 3, 2, 2).double(),
        torch.arange(10),
    )
    noisy = diffusion.add_noise(clean, step, noise)
    target = noise if objective == "noise" else diffusion.velocity(clean, step, noise)
    torch.testing.assert_close(diffusion.estimate_clean(noisy, target, step), clean)


def test_the_noise_loss_has_unit_weight_and_the_v_loss_weight_alpha_bar():
    clean, noise, step = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4), torch.tensor([0, 4, 9])
    by_noise = GaussianDiffusion(Constant(0.3), steps=10)
    assert by_noise.loss_at(clean, step, noise).item() == pytest.approx((noise - 0.3).square().mean().item())
    by_v = GaussianDiffusion(Constant(0.3), steps=10, objective="v")
    errors = (by_v.velocity(clean, step, noise) - 0.3).square().mean((1, 2, 3))
    assert by_v.loss_at(clean, step, noise).item() == pytest.approx((errors * by_v.alpha_bar[step]).mean().item())


def test_the_loss_depends_on_its_generator():
    diffusion, clean = small_diffusion(), torch.randn(3, 6, 4, 4)

    def loss(seed: int) -> float:
        return diffusion.loss(clean, generator=torch.Generator().manual_seed(seed)).item()

    assert loss(1) == loss(1) != loss(2)


def test_loss_and_reverse_chain_equal_the_released_code():
    diffusion = GaussianDiffusion(fill(UNet()), steps=10, objective="v")
    maps = gaussian((2, 512, 14, 14), 1000.0)
    with torch.no_grad():
        loss = diffusion.loss_at(maps, torch.tensor([3, 9]), gaussian((2, 512, 14, 14), 2000.0))
        noises = gaussian((10, 1, 512, 14, 14), 3000.0)
        end = (diffusion.reverse(maps[:1], noises=noises, clamp=True) + 1) / 2
    assert loss.item() == pytest.approx(GOLDEN["v_loss"], rel=1e-5)
    assert end.square().mean().item() == pytest.approx(GOLDEN["reverse"]["mean_square"], rel=1e-5)
    assert probe(end) == pytest.approx(GOLDEN["reverse"]["probe"], rel=1e-4)
    assert end.flatten()[:4].tolist() == pytest.approx(GOLDEN["reverse"]["first"], rel=1e-4, abs=1e-6)


def test_the_reverse_chain_runs_every_step_once_from_its_first():
    network = Constant()
    diffusion = GaussianDiffusion(network, steps=5)
    diffusion.reverse(torch.zeros(1, 2, 2, 2))
    diffusion.reverse(torch.zeros(1, 2, 2, 2), first_step=2)
    assert network.steps == [4, 3, 2, 1, 0, 2, 1, 0]


def test_the_reverse_chain_recovers_clean_values_with_a_perfect_network():
    clean = torch.randn(3, 2, 4, 4)

    class Oracle(torch.nn.Module):
        def forward(self, noisy, step):
            alpha_bar = diffusion.alpha_bar[step][:, None, None, None]
            return (noisy - alpha_bar.sqrt() * clean) / (1 - alpha_bar).sqrt()

    diffusion = GaussianDiffusion(Oracle(), steps=10)
    start = diffusion.add_noise(clean, torch.full((3,), 9), torch.randn(3, 2, 4, 4))
    torch.testing.assert_close(diffusion.reverse(start), clean, rtol=1e-3, atol=1e-3)
    noises = diffusion.sample_noises(start)
    torch.testing.assert_close(diffusion.reverse(start, noises=noises), clean, rtol=1e-3, atol=1e-3)


def test_the_reverse_chain_is_deterministic_without_noises_and_depends_on_given_ones():
    diffusion, start = small_diffusion(), torch.randn(2, 6, 4, 4)
    assert torch.equal(diffusion.reverse(start), diffusion.reverse(start))
    first, second = (diffusion.sample_noises(start, torch.Generator().manual_seed(s)) for s in (1, 2))
    assert torch.equal(diffusion.reverse(start, noises=first), diffusion.reverse(start, noises=first))
    assert not torch.allclose(diffusion.reverse(start, noises=first), diffusion.reverse(start, noises=second))


def test_clamped_clean_values_stay_within_one():
    diffusion, start = small_diffusion(objective="v"), 5 * torch.randn(2, 6, 4, 4)
    assert diffusion.reverse(start, clamp=True).abs().max() <= 1
    assert diffusion.reverse(start).abs().max() > 1


def test_recomputing_activations_does_not_change_gradients():
    diffusion, start = small_diffusion(), torch.randn(2, 6, 4, 4)

    def gradients(**options) -> list[torch.Tensor]:
        diffusion.zero_grad()
        diffusion.reverse(start, **options).square().mean().backward()
        return [p.grad.clone() for p in diffusion.parameters()]

    for stored, recomputed in zip(gradients(), gradients(recompute=True), strict=True):
        torch.testing.assert_close(stored, recomputed)


def test_gradient_steps_limit_the_gradient_to_the_last_network_calls():
    network = Constant(0.1)
    diffusion = GaussianDiffusion(network, steps=4, objective="v")
    start = torch.randn(1, 2, 2, 2, requires_grad=True)
    end = diffusion.reverse(start, gradient_steps=1)
    end.sum().backward()
    expected = -(1 - diffusion.alpha_bar[0]).sqrt() * end.numel()
    assert network.value.grad.item() == pytest.approx(expected.item(), rel=1e-5)
    assert start.grad.abs().min() > 0
    assert torch.equal(end, diffusion.reverse(start))
