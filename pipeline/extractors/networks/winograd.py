"""3x3 convolutions with a quarter of the multiplications, for the CPU: Winograd's minimal filtering.

For frozen networks only: the filters are transformed once, when the network is loaded.
Source: Lavin and Gray, CVPR 2016, section 4; Winograd, Arithmetic Complexity of Computations, 1980.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.extractors.preprocessing import MIN_CHANNELS

# The points at which polynomials are evaluated, besides infinity; small integers and halves round least.
# `WinogradConvolution.forward` requires the second point to be 1.
POINTS = (0.0, 1.0, -1.0, 2.0, -2.0, 0.5)


class WinogradConvolution(nn.Module):
    """A frozen 3x3 convolution of stride 1 and padding 1; outputs equal the plain ones up to float32 rounding (4e-6).

    Maps are cut into square tiles of side `outputs` + 2 that overlap by two pixels. At each point of the transformed
    tiles, one matrix product multiplies their channels by the transformed filters.
    Source: Lavin and Gray, CVPR 2016, equation 8.
    """

    bias: Tensor
    filters: Tensor
    to_points: Tensor
    to_outputs: Tensor

    def __init__(self, convolution: nn.Conv2d, outputs: int) -> None:
        """Transform the filters of `convolution`, in float64, for tiles of `outputs` x `outputs` output pixels."""
        super().__init__()
        self._outputs, self._tile = outputs, outputs + 2
        tiles, filters, results = _transforms(outputs)
        weights = convolution.weight.double().permute(2, 3, 1, 0).flatten(0, 1)
        transformed = torch.kron(filters, filters) @ weights.flatten(1)
        self.register_buffer("filters", transformed.view(-1, *weights.shape[1:]).float())
        self.register_buffer("to_points", torch.kron(tiles, tiles).float())
        self.register_buffer("to_outputs", torch.kron(results, results).float())
        self.register_buffer("bias", convolution.bias)

    def forward(self, maps: Tensor) -> Tensor:
        """Return float32 [row, output channel, height, width], channels last, for [row, channel, height, width]."""
        outputs, tile = self._outputs, self._tile
        rows, channels, height, width = maps.shape
        tiles_down, tiles_across = -(-height // outputs), -(-width // outputs)
        padding = (0, 0, 1, tiles_across * outputs - width + 1, 1, tiles_down * outputs - height + 1)
        padded = functional.pad(maps.permute(0, 2, 3, 1), padding)
        tiles = padded.unfold(1, tile, outputs).unfold(2, tile, outputs).permute(4, 5, 0, 1, 2, 3)
        points = (self.to_points @ tiles.reshape(tile**2, -1)).view(tile**2, -1, channels)
        products = torch.bmm(points, self.filters)
        products[tile + 1] += self.bias  # Point (1, 1) adds to every output of its tile once.
        results = (self.to_outputs @ products.flatten(1)).view(outputs, outputs, rows, tiles_down, tiles_across, -1)
        merged = results.permute(2, 3, 0, 4, 1, 5).reshape(rows, tiles_down * outputs, tiles_across * outputs, -1)
        return merged[:, :height, :width].contiguous().permute(0, 3, 1, 2)


def replace_convolutions(module: nn.Module, outputs: int) -> nn.Module:
    """Replace convolutions of the frozen `module` by `WinogradConvolution` where that is cheaper; return the module.

    Multiples of `outputs` should equal or slightly exceed the sides of the maps: the last tiles are padded with zeros.
    On a GPU nothing is replaced, because cuDNN has its own algorithms. After a replacement, the last bits of a row
    depend on the number of rows in its batch.
    """
    for name, part in [*module.named_modules()]:
        if isinstance(part, nn.Conv2d) and _is_cheaper(part):
            module.set_submodule(name, WinogradConvolution(part, outputs))
    return module


def _is_cheaper(part: nn.Conv2d) -> bool:
    kind = (part.kernel_size, part.stride, part.padding, part.dilation, part.groups, part.padding_mode)
    is_supported = kind == ((3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros") and part.bias is not None
    return is_supported and part.out_channels >= MIN_CHANNELS and part.weight.device.type == "cpu"


def _transforms(outputs: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return float64 B^T [point, pixel], G [point, 3] and A^T [output, point] of F(`outputs`, 3).

    The Toom-Cook construction: one polynomial per point, and a last one for the point at infinity.
    """
    points = POINTS[: outputs + 1]
    others = [[other for other in points if other != point] for point in points]
    tiles = np.zeros((outputs + 2, outputs + 2))
    for row, roots in zip(tiles, [*others, points], strict=True):
        coefficients = np.poly(roots)[::-1]
        row[: len(coefficients)] = coefficients
    scales = [np.prod([point - other for other in rest]) for point, rest in zip(points, others, strict=True)]
    filters = [[*(point ** np.arange(3) / scale)] for point, scale in zip(points, scales, strict=True)]
    results = np.vander(points, outputs, increasing=True).T
    last = np.eye(outputs)[:, -1:]
    tables = tiles, np.array([*filters, [0, 0, 1]]), np.hstack([results, last])
    return tuple(torch.from_numpy(table) for table in tables)  # type: ignore[return-value]  # exactly three
