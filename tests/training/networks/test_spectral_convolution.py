"""A convolution through the discrete Fourier transform gives the numbers and gradients of a direct one."""

import pytest
import torch
from torch.nn import functional as F

from train.networks import spectral_convolution
from train.networks.spectral_convolution import _pays, make_convolution


@pytest.mark.parametrize("size", [(14, 14), (14, 13), (7, 8), (9, 3)])
@pytest.mark.parametrize("side", [7, 9])
def test_numbers_and_gradients_are_those_of_a_direct_convolution(
    size: tuple[int, int], side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(spectral_convolution, "ROWS_AT_ONCE", 2)
    maps = torch.randn(3, 48, *size, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(32, 48, side, side, dtype=torch.float64, requires_grad=True)
    assert _pays(weight, size)
    direct, spectral = F.conv2d(maps, weight, padding=side // 2), make_convolution(weight, size)(maps)
    torch.testing.assert_close(spectral, direct, rtol=1e-9, atol=1e-10)
    target = torch.randn_like(direct)
    for found, expected in zip(
        torch.autograd.grad(spectral, (maps, weight), target),
        torch.autograd.grad(direct, (maps, weight), target),
        strict=True,
    ):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


def test_several_maps_share_the_spectrum_of_a_kernel() -> None:
    weight = torch.randn(32, 48, 7, 7, requires_grad=True)
    convolve = make_convolution(weight, (14, 14))
    first, second = (torch.randn(2, 48, 14, 14) for _ in range(2))
    (convolve(first).sum() + convolve(second).square().sum()).backward()
    expected = torch.autograd.grad(
        F.conv2d(first, weight, padding=3).sum() + F.conv2d(second, weight, padding=3).square().sum(), weight
    )[0]
    torch.testing.assert_close(weight.grad, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize(
    ("shape", "size", "pays"),
    [
        ((64, 512, 7, 7), (14, 14), True),
        ((64, 64, 7, 7), (14, 14), True),
        ((128, 128, 3, 3), (14, 14), False),
        ((64, 512, 1, 1), (14, 14), False),
        ((64, 512, 3, 3), (2, 2), False),
    ],
)
def test_it_is_used_where_it_takes_much_fewer_operations(shape: tuple, size: tuple[int, int], pays: bool) -> None:
    assert _pays(torch.zeros(shape), size) is pays
    assert not _pays(torch.zeros(shape, device="meta"), size)


def test_no_maps_have_no_results() -> None:
    assert make_convolution(torch.randn(32, 48, 7, 7), (14, 14))(torch.randn(0, 48, 14, 14)).shape == (0, 32, 14, 14)


def test_what_an_evaluation_prepares_can_be_trained_with() -> None:
    weight = torch.randn(32, 48, 7, 7, requires_grad=True)
    with torch.inference_mode():
        make_convolution(weight, (11, 11))(torch.randn(1, 48, 11, 11))
    make_convolution(weight, (11, 11))(torch.randn(1, 48, 11, 11)).sum().backward()
    assert weight.grad is not None


def test_autocast_computes_a_direct_convolution() -> None:
    maps, weight = torch.randn(2, 48, 14, 14), torch.randn(32, 48, 7, 7, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = make_convolution(weight, (14, 14))(maps), F.conv2d(maps, weight, padding=3)
    assert torch.equal(found, expected)
    found.float().sum().backward()  # outside of autocast, as training does
    assert weight.grad is not None
    assert not _pays(weight.bfloat16(), (14, 14))
