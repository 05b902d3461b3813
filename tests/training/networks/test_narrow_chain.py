"""The chain in the U-Net's inner width gives the numbers and gradients of the chain on wide maps."""

import pytest
import torch
from recipe import fill, gaussian
from torch import Tensor

from train.networks.diffusion import GaussianDiffusion, Objective
from train.networks.diffusion_unet import UNet
from train.networks.narrow_chain import reverse_narrow

STEPS, CHANNELS = 6, 12


def make_diffusion(objective: Objective) -> GaussianDiffusion:
    torch.manual_seed(0)
    unet = UNet(channels=CHANNELS, dim=8, stem_kernel=3)
    unet.embed_step[0].register_forward_hook(lambda module, inputs, embedding: embedding.double())
    return GaussianDiffusion(unet, steps=STEPS, objective=objective).double()


@pytest.mark.parametrize("side", [(6, 6), (5, 3), (1, 1)], ids=["even", "padded", "vector"])
@pytest.mark.parametrize("objective", ["noise", "v"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"first_step": 2},
        {"noises": "sampled"},
        {"first_step": 3, "gradient_steps": 2},
        {"gradient_steps": 1, "noises": "sampled"},
        {"recompute": True},
    ],
    ids=["whole", "from the middle", "noise", "two with gradient", "noise, one with gradient", "recomputed"],
)
def test_numbers_and_gradients_are_those_of_the_wide_chain(
    options: dict, objective: Objective, side: tuple[int, int]
) -> None:
    diffusion = make_diffusion(objective)
    start = torch.randn(2, CHANNELS, *side, dtype=torch.float64, requires_grad=True)
    if "noises" in options:
        options = {**options, "noises": diffusion.sample_noises(start.detach())}
    target = torch.randn_like(start)

    def measured(end: Tensor) -> list[Tensor]:
        tensors = {"start": start, **dict(diffusion.named_parameters())}
        gradients = torch.autograd.grad((end - target).square().sum(), list(tensors.values()))
        return [end.detach(), *gradients]

    wide = measured(diffusion.reverse(start, **options))
    narrow = measured(reverse_narrow(diffusion, start, **options))
    largest = max(float(expected.abs().max()) for expected in wide)
    for expected, found in zip(wide, narrow, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12 * largest)


def test_the_chain_of_the_released_network_differs_by_rounding_alone() -> None:
    diffusion = GaussianDiffusion(fill(UNet()), steps=10, objective="v")
    start = gaussian((1, 512, 14, 14), 1000.0)
    with torch.no_grad():
        wide, narrow = diffusion.reverse(start), reverse_narrow(diffusion, start)
    torch.testing.assert_close(narrow, wide, rtol=1e-4, atol=1e-4 * float(wide.abs().max()))


def test_autocast_rounds_the_narrow_chain_no_more_than_the_wide_one() -> None:
    torch.manual_seed(0)
    diffusion = GaussianDiffusion(UNet(channels=CHANNELS, dim=8, stem_kernel=3), steps=10)
    start = torch.randn(2, CHANNELS, 6, 6)
    with torch.no_grad():
        exact = diffusion.reverse(start)
        with torch.autocast("cpu", torch.bfloat16):
            wide, narrow = diffusion.reverse(start), reverse_narrow(diffusion, start)
    assert narrow.dtype == torch.float32
    assert (narrow - exact).norm() <= 1.25 * (wide - exact).norm()
    torch.testing.assert_close(narrow.square().mean(), exact.square().mean(), rtol=2e-3, atol=0)
