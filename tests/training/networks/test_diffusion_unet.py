"""The U-Net of AVR: sizes, gradients, and agreement with the released network."""

import json

import paths
import pytest
import torch
from recipe import fill, gaussian, probe

from train.networks.diffusion_unet import StepEmbedding, UNet

GOLDEN = json.loads((paths.GOLDEN / "rmm_avr.json").read_text())


def count_parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def small_unet() -> UNet:
    torch.manual_seed(0)
    return UNet(channels=6, dim=8)


def test_has_the_released_number_of_parameters():
    assert count_parameters(UNet()) == 4_685_120


def test_equals_the_released_network_under_the_same_weights():
    unet = fill(UNet())
    with torch.no_grad():
        predicted = unet(gaussian((2, 512, 14, 14), 1000.0), torch.tensor([3, 9]))
    expected = GOLDEN["unet"]
    assert predicted.square().mean().item() == pytest.approx(expected["mean_square"], rel=1e-5)
    assert probe(predicted) == pytest.approx(expected["probe"], rel=1e-4)
    assert predicted.flatten()[:4].tolist() == pytest.approx(expected["first"], rel=1e-4)


@pytest.mark.parametrize("side", [(4, 4), (7, 7), (5, 3), (1, 1), (14, 14)])
def test_the_prediction_has_the_size_of_the_map(side):
    maps = torch.randn(2, 6, *side)
    assert small_unet()(maps, torch.tensor([0, 1])).shape == maps.shape


def test_a_smaller_stem_and_three_levels_are_allowed():
    unet = UNet(channels=6, dim=8, mults=(1, 2, 2), stem_kernel=3)
    assert unet(torch.randn(2, 6, 7, 7), torch.tensor([0, 1])).shape == (2, 6, 7, 7)


@pytest.mark.parametrize("sizes", [{"dim": 12}, {"stem_kernel": 4}])
def test_invalid_sizes_are_refused(sizes):
    with pytest.raises(ValueError, match="multiple of 8"):
        UNet(**{"channels": 6, "dim": 8, **sizes})


def test_rows_are_independent():
    unet, maps, step = small_unet(), torch.randn(5, 6, 4, 4), torch.arange(5)
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(unet(maps, step)[order], unet(maps[order], step[order]))


def test_the_step_changes_the_prediction():
    unet, maps = small_unet(), torch.randn(1, 6, 4, 4)
    assert not torch.allclose(unet(maps, torch.tensor([0])), unet(maps, torch.tensor([3])), atol=1e-3)


def test_the_gradient_reaches_every_parameter():
    unet = small_unet()
    unet(torch.randn(3, 6, 4, 4), torch.arange(3)).square().mean().backward()
    assert [n for n, p in unet.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_step_embeddings_are_sines_then_cosines():
    embedding = StepEmbedding(8)(torch.tensor([0, 2]))
    assert embedding[0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    frequencies = 10_000.0 ** -(torch.arange(4) / 3)
    torch.testing.assert_close(embedding[1], torch.cat(((2 * frequencies).sin(), (2 * frequencies).cos())))
