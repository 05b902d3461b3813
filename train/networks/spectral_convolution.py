"""Convolution of small maps with a large kernel through the discrete Fourier transform, which takes fewer operations.

The transforms are matrix products, for which processors are as fast as for convolutions. The spectrum of a kernel is
computed once for all maps that it is applied to, as in the chain of a diffusion.
Source: the convolution theorem; numbers and gradients are those of `torch.nn.functional.conv2d`, up to rounding.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn import functional as F

# Its matrix products reach about half the speed of a direct convolution.
LEAST_GAIN = 2.0
# The spectra of so many maps of 512 channels and 14 x 14 cells take 160 MB.
ROWS_AT_ONCE = 256


class _Bases(NamedTuple):
    """Matrices [2 x frequency, cell] (real parts, then imaginary ones) of maps, of kernels, and back to maps."""

    maps: Tensor
    kernels: Tensor
    inverse: Tensor


def make_convolution(weight: Tensor, size: tuple[int, int]) -> Callable[[Tensor], Tensor]:
    """Return a function of maps [row, channel, *size] that convolves them with `weight` [out, channel, side, side].

    Borders are padded with zeros, so that the result has the size of the maps; `side` is odd.
    """
    if not _pays(weight, size):
        return lambda maps: F.conv2d(maps, weight, padding=weight.shape[-1] // 2)
    bases = _bases(*size, weight.shape[-1], weight.dtype)
    spectrum = (bases.kernels @ weight.flatten(2).flatten(0, 1).T).unflatten(1, weight.shape[:2]).unflatten(0, (2, -1))
    return lambda maps: torch.cat([_Convolution.apply(part, spectrum, bases) for part in maps.split(ROWS_AT_ONCE)])


def _pays(weight: Tensor, size: tuple[int, int]) -> bool:
    """Return whether the transform takes much fewer operations than a direct convolution, on a processor.

    It is not used in lower precision, also of autocast: the sums of a transform would be rounded twice more.
    """
    is_precise = weight.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled("cpu")
    if weight.device.type != "cpu" or not is_precise:
        return False
    outputs, channels, side, _ = weight.shape
    cells, frequencies = math.prod(size), math.prod(_spectrum_size(size, side))
    direct = 2 * outputs * channels * side**2 * cells
    spectral = 4 * frequencies * cells * (outputs + channels) + 8 * frequencies * outputs * channels
    return direct > LEAST_GAIN * spectral


def _spectrum_size(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Return the frequencies along both axes; of the last one half are enough, because maps are real."""
    height, width = (length + side // 2 for length in size)  # what wraps around is outside the map
    return height, width // 2 + 1


@lru_cache(maxsize=8)
@torch.inference_mode(False)  # they are kept, also for training
def _bases(height: int, width: int, side: int, dtype: torch.dtype) -> _Bases:
    periods = height + side // 2, width + side // 2
    frequencies = _spectrum_size((height, width), side)

    def waves(axis: int, positions: range) -> Tensor:
        turns = torch.outer(torch.arange(frequencies[axis]).double(), torch.tensor(positions).double()) / periods[axis]
        return torch.polar(torch.ones_like(turns), 2 * math.pi * turns)

    def grid(rows: Tensor, columns: Tensor) -> Tensor:
        basis = torch.einsum("ui,vj->uvij", rows, columns).flatten(2).flatten(0, 1)
        return torch.cat((basis.real, basis.imag)).to(dtype)

    # A frequency of the last axis is there for its conjugate, too, unless it is real.
    twice = torch.full((frequencies[1], 1), 2.0, dtype=torch.float64)
    twice[0] = 1
    if periods[1] % 2 == 0:
        twice[-1] = 1
    centre = range(-(side // 2), height - side // 2), range(-(side // 2), width - side // 2)
    back = grid(waves(0, centre[0]), twice * waves(1, centre[1])) / math.prod(periods)
    back[len(back) // 2 :] *= -1
    maps = grid(waves(0, range(height)).conj(), waves(1, range(width)).conj())
    return _Bases(maps, grid(waves(0, range(side)), waves(1, range(side))), back)


class _Convolution(torch.autograd.Function):
    """Multiply the spectrum of maps with that of a kernel."""

    @staticmethod
    def forward(ctx: FunctionCtx, maps: Tensor, spectrum: Tensor, bases: _Bases) -> Tensor:
        of_maps = _transform(maps, bases.maps)
        ctx.save_for_backward(of_maps, spectrum)
        ctx.bases, ctx.size = bases, maps.shape[2:]  # type: ignore[attr-defined]
        product = _multiply(of_maps, spectrum.mT)
        return _transform_back(product, bases.inverse, maps.shape[2:])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        of_maps, spectrum = ctx.saved_tensors
        of_gradient = _transform(gradient, ctx.bases.inverse)
        for_maps = for_spectrum = None
        if ctx.needs_input_grad[0]:
            for_maps = _transform_back(_multiply(of_gradient, spectrum, conjugate=True), ctx.bases.maps, ctx.size)
        if ctx.needs_input_grad[1]:
            for_spectrum = _multiply(of_gradient.mT, of_maps, conjugate=True)
        return for_maps, for_spectrum, None


def _transform(maps: Tensor, basis: Tensor) -> Tensor:
    """Return the spectrum [2, frequency, row, channel] of maps [row, channel, height, width]."""
    spectrum = basis @ maps.flatten(2).flatten(0, 1).T
    return spectrum.view(2, len(basis) // 2, *maps.shape[:2])


def _multiply(left: Tensor, right: Tensor, conjugate: bool = False) -> Tensor:
    """Return the products [2, frequency, ...] of complex matrices; `conjugate`: of the second one's conjugate."""
    sign = 1 if conjugate else -1
    product = left.new_empty(2, left.shape[1], left.shape[2], right.shape[3])
    torch.bmm(left[0], right[0], out=product[0]).baddbmm_(left[1], right[1], alpha=sign)
    torch.bmm(left[1], right[0], out=product[1]).baddbmm_(left[0], right[1], alpha=-sign)
    return product


def _transform_back(spectrum: Tensor, basis: Tensor, size: torch.Size) -> Tensor:
    """Return the maps [row, channel, *size] of a spectrum [2, frequency, row, channel]."""
    _, _, rows, channels = spectrum.shape
    return (spectrum.flatten(2).flatten(0, 1).T @ basis).view(rows, channels, *size)
