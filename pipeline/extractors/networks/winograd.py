"""3x3 convolutions with a quarter of the multiplications, for the CPU: Winograd's minimal filtering.

It replaces convolutions of frozen networks only: their filters are transformed once, when they are loaded.
Source: Lavin and Gray, CVPR 2016, section 4; Winograd, Arithmetic Complexity of Computations, 1980.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.extractors.preprocessing import LEAST_CHANNELS

# Where polynomials are evaluated, and infinity: small numbers and halves round least. One is the second.
POINTS = (0.0, 1.0, -1.0, 2.0, -2.0, 0.5)


class WinogradConvolution(nn.Module):
    """A frozen 3x3 convolution of stride 1 and padding 1: the same numbers but for float32's rounding (4e-6).

    Maps are cut into tiles of `outputs` + 2 pixels a side that overlap by two; at each of a transformed tile's points
    its channels meet those of the transformed filters in one matrix product.
    Source: Lavin and Gray, CVPR 2016, equation 8.
    """

    bias: Tensor
    filters: Tensor
    to_points: Tensor
    to_outputs: Tensor

    def __init__(self, convolution: nn.Conv2d, outputs: int) -> None:
        """Transform the filters of `convolution`, in float64, for tiles of `outputs` x `outputs` results."""
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
        """Return float32 [row, output channel, height, width], channels last, of [row, channel, height, width]."""
        outputs, tile = self._outputs, self._tile
        rows, channels, height, width = maps.shape
        down, across = -(-height // outputs), -(-width // outputs)
        margins = (0, 0, 1, across * outputs - width + 1, 1, down * outputs - height + 1)
        padded = functional.pad(maps.permute(0, 2, 3, 1), margins)
        tiles = padded.unfold(1, tile, outputs).unfold(2, tile, outputs).permute(4, 5, 0, 1, 2, 3)
        points = (self.to_points @ tiles.reshape(tile**2, -1)).view(tile**2, -1, channels)
        products = torch.bmm(points, self.filters)
        products[tile + 1] += self.bias  # Point (1, 1) is added to each output of its tile, once.
        squares = (self.to_outputs @ products.flatten(1)).view(outputs, outputs, rows, down, across, -1)
        whole = squares.permute(2, 3, 0, 4, 1, 5).reshape(rows, down * outputs, across * outputs, -1)
        return whole[:, :height, :width].contiguous().permute(0, 3, 1, 2)


def with_winograd(module: nn.Module, outputs: int) -> nn.Module:
    """Replace, in `module`, loaded and frozen, the convolutions that this file makes cheaper on the CPU; return it.

    `outputs` a side should divide the sizes of the maps, or little more than do so: the last tiles are filled up with
    zeros. On a GPU nothing is replaced: cuDNN has algorithms of its own. From then on the bits of a row depend on the
    number of rows in its batch.
    """
    for name, part in [*module.named_modules()]:
        if isinstance(part, nn.Conv2d) and _is_cheaper(part):
            module.set_submodule(name, WinogradConvolution(part, outputs))
    return module


def _is_cheaper(part: nn.Conv2d) -> bool:
    kind = (part.kernel_size, part.stride, part.padding, part.dilation, part.groups, part.padding_mode)
    plain = kind == ((3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros") and part.bias is not None
    return plain and part.out_channels >= LEAST_CHANNELS and part.weight.device.type == "cpu"


def _transforms(outputs: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return float64 B^T [point, pixel], G [point, 3] and A^T [output, point] of F(`outputs`, 3).

    By Toom and Cook: of the points' polynomials, the last of which stands for infinity.
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
    return tuple(torch.from_numpy(table) for table in tables)  # type: ignore[return-value]  # three of them
