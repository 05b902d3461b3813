"""The denoising U-Net of AVR: it predicts a map from a noisy map and the diffusion step.

Schedules and objectives are in `train.networks.diffusion`, its use in `train.methods.avr`.
Source: the autoencoder of "Learning Trimodal Relation for AVQA with Missing Modality" (ECCV 2024), section 3.2, whose
architecture the paper does not specify; widths and the order of layers and channels follow the released code, which
uses denoising-diffusion-pytorch 1.9.4 with its defaults.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from train.networks.spectral_convolution import make_convolution

NORM_GROUPS = 8
LONGEST_PERIOD = 10_000.0
HEADS, HEAD_WIDTH, MEMORY_CELLS = 4, 32, 4


class UNet(nn.Module):
    """Predict a map of the same shape from a noisy one; 4,685,120 parameters with the defaults.

    - `channels`: of the map.
    - `dim`: width at full resolution, a multiple of 8.
    - `mults`: widths of the levels as multiples of `dim`; each level except the last halves the map.
    - `stem_kernel`: odd kernel size of the first convolution. On maps of a few cells, size 3 covers the same cells at a
      fifth of the cost.

    Source: the autoencoder of section 3.2.
    Differs from the released code: maps whose sides are not a multiple of the down-sampling factor are padded with
    their border and cropped again (the released code rejects them); on all other maps the results are equal.
    """

    def __init__(
        self, *, channels: int = 512, dim: int = 64, mults: Sequence[int] = (1, 2), stem_kernel: int = 7
    ) -> None:
        super().__init__()
        if dim % NORM_GROUPS or stem_kernel % 2 == 0:
            raise ValueError(f"dim must be a multiple of {NORM_GROUPS} and stem_kernel odd: {dim}, {stem_kernel}")
        widths = [dim, *(dim * mult for mult in mults)]
        levels = list(pairwise(widths))
        embedded = 4 * dim
        self.multiple = 2 ** (len(levels) - 1)
        self.stem = nn.Conv2d(channels, dim, stem_kernel, padding=stem_kernel // 2)
        self.embed_step = nn.Sequential(
            StepEmbedding(dim), nn.Linear(dim, embedded), nn.GELU(), nn.Linear(embedded, embedded)
        )
        last = len(levels) - 1
        self.down = nn.ModuleList(DownLevel(i, o, embedded, level == last) for level, (i, o) in enumerate(levels))
        self.up = nn.ModuleList(
            UpLevel(i, o, embedded, innermost=level == 0, outermost=level == last)
            for level, (i, o) in enumerate(reversed(levels))
        )
        self.middle_before = ResBlock(widths[-1], widths[-1], embedded)
        self.middle_attention = FullAttention(widths[-1])
        self.middle_after = ResBlock(widths[-1], widths[-1], embedded)
        self.last_block = ResBlock(2 * dim, dim, embedded)
        self.head = nn.Conv2d(dim, channels, 1)

    def forward(self, noisy: Tensor, step: Tensor) -> Tensor:
        """Return the prediction [row, channel, height, width] for `noisy` of that shape at `step`, int64 [row]."""
        return self.prepare(noisy.shape[-2:])(noisy, step)

    def prepare(self, size: Sequence[int]) -> Callable[[Tensor, Tensor], Tensor]:
        """Return `forward` for maps of `size` (height, width), for several calls with the same weights."""
        height, width = size
        project = self.projection(size)

        def predict(noisy: Tensor, step: Tensor) -> Tensor:
            prediction: Tensor = self.head(self.transform(project(noisy), step))[..., :height, :width]
            return prediction

        return predict

    def projection(self, size: Sequence[int]) -> Callable[[Tensor], Tensor]:
        """Return the stem without its bias, a linear function of maps [row, channel, *size]."""
        convolve = make_convolution(self.stem.weight, self.padded_size(size))
        return lambda maps: convolve(self.pad(maps))

    def transform(self, projected: Tensor, step: Tensor) -> Tensor:
        """Return the input of the head for maps after `projection`, both [row, dim, height, width]."""
        assert self.stem.bias is not None
        embedding = self.embed_step(step)
        x = stem = projected + self.stem.bias[:, None, None]
        skips: list[Tensor] = []
        for down in self.down:
            x, level_skips = down(x, embedding)
            skips += level_skips
        x = self.middle_before(x, embedding)
        x = self.middle_attention(x) + x
        x = self.middle_after(x, embedding)
        for up in self.up:
            x = up(x, skips.pop(), skips.pop(), embedding)
        output: Tensor = self.last_block(torch.cat((x, stem), 1), embedding)
        return output

    def padded_size(self, size: Sequence[int]) -> tuple[int, int]:
        """Return `size` (height, width), rounded up to what down-sampling needs."""
        height, width = (side + -side % self.multiple for side in size)
        return height, width

    def pad(self, maps: Tensor) -> Tensor:
        """Pad `maps` [row, channel, height, width] to `padded_size` by repeating the right and lower borders."""
        height, width = self.padded_size(maps.shape[-2:])
        down, right = height - maps.shape[-2], width - maps.shape[-1]
        return F.pad(maps, (0, right, 0, down), mode="replicate") if down or right else maps


class StepEmbedding(nn.Module):
    """Sinusoidal embedding of the diffusion step: sines, then cosines, with periods from 2 pi to 10,000 times that.

    `dim`: even, at least 4.
    Source: Ho et al., "Denoising Diffusion Probabilistic Models", NeurIPS 2020, appendix B (Transformer embedding).
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.frequency_count = dim // 2

    def forward(self, step: Tensor) -> Tensor:
        """Return float32 [row, dim] for `step`, int64 [row], the index of the diffusion step from 0."""
        decay = -math.log(LONGEST_PERIOD) / (self.frequency_count - 1)
        angles = step[:, None] * torch.exp(decay * torch.arange(self.frequency_count, device=step.device))
        return torch.cat((angles.sin(), angles.cos()), -1)


class ResBlock(nn.Module):
    """Two 3x3 convolutions with group norms, the first one modulated by the step embedding, and a shortcut around both.

    x -> h = SiLU((scale + 1) norm(conv(x)) + shift) -> SiLU(norm(conv(h))) + shortcut(x). `out_width` is a multiple of
    `NORM_GROUPS`; `embedded` is the width of the step embedding.
    Source: `ResnetBlock` of denoising-diffusion-pytorch 1.9.4.
    """

    def __init__(self, width: int, out_width: int, embedded: int) -> None:
        super().__init__()
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(embedded, 2 * out_width))
        self.conv1 = nn.Conv2d(width, out_width, 3, padding=1)
        self.norm1 = nn.GroupNorm(NORM_GROUPS, out_width)
        self.conv2 = nn.Conv2d(out_width, out_width, 3, padding=1)
        self.norm2 = nn.GroupNorm(NORM_GROUPS, out_width)
        self.shortcut = nn.Identity() if width == out_width else nn.Conv2d(width, out_width, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Return [row, out channel, height, width]; `x` [row, channel, height, width], `embedding` [row, embedded]."""
        scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, 1)
        hidden = F.silu(self.norm1(self.conv1(x)) * (scale + 1) + shift)
        return F.silu(self.norm2(self.conv2(hidden))) + self.shortcut(x)


class ChannelNorm(nn.Module):
    """Normalise the channels of each cell to a root mean square of 1, then multiply by a learned gain per channel.

    Source: `RMSNorm` of denoising-diffusion-pytorch 1.9.4.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1, width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return [row, channel, height, width] for an `x` of that shape; cells that are zero stay zero."""
        return F.normalize(x, dim=1) * self.gain * x.shape[1] ** 0.5


class LinearAttention(nn.Module):
    """Linear attention between all cells and learned memory cells; its cost grows linearly with the number of cells."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.memory = nn.Parameter(torch.randn(2, HEADS, HEAD_WIDTH, MEMORY_CELLS))
        self.norm = ChannelNorm(width)
        self.qkv = nn.Conv2d(width, 3 * HEADS * HEAD_WIDTH, 1, bias=False)
        self.out = nn.Sequential(nn.Conv2d(HEADS * HEAD_WIDTH, width, 1), ChannelNorm(width))

    def forward(self, x: Tensor) -> Tensor:
        """Return [row, channel, height, width] for an `x` of that shape."""
        query, key, value = self.qkv(self.norm(x)).unflatten(1, (3, HEADS, -1)).flatten(4).unbind(1)
        key, value = (
            torch.cat((memory.expand(len(x), -1, -1, -1), cells), -1)
            for memory, cells in zip(self.memory, (key, value), strict=True)
        )
        context = key.softmax(-1) @ value.mT
        mixed = context.mT @ (query.softmax(-2) * HEAD_WIDTH**-0.5)
        return self.out(mixed.flatten(1, 2).unflatten(-1, x.shape[-2:]))


class FullAttention(nn.Module):
    """Softmax attention between all cells and learned memory cells."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.memory = nn.Parameter(torch.randn(2, HEADS, MEMORY_CELLS, HEAD_WIDTH))
        self.norm = ChannelNorm(width)
        self.qkv = nn.Conv2d(width, 3 * HEADS * HEAD_WIDTH, 1, bias=False)
        self.out = nn.Conv2d(HEADS * HEAD_WIDTH, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return [row, channel, height, width] for an `x` of that shape."""
        cells = self.qkv(self.norm(x)).unflatten(1, (3, HEADS, -1)).flatten(4).mT
        query, key, value = cells.clone(memory_format=torch.contiguous_format).unbind(1)  # as the GPU kernel needs
        key, value = (
            torch.cat((memory.expand(len(x), -1, -1, -1), part), -2)
            for memory, part in zip(self.memory, (key, value), strict=True)
        )
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.out(mixed.mT.flatten(1, 2).unflatten(-1, x.shape[-2:]))


class DownLevel(nn.Module):
    """Two blocks and an attention at one resolution, then down-sampling by 2 (none at the innermost level)."""

    def __init__(self, width: int, out_width: int, embedded: int, innermost: bool) -> None:
        super().__init__()
        self.block1 = ResBlock(width, width, embedded)
        self.block2 = ResBlock(width, width, embedded)
        self.attention = FullAttention(width) if innermost else LinearAttention(width)
        halve = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(4 * width, out_width, 1))
        self.change = nn.Conv2d(width, out_width, 3, padding=1) if innermost else halve

    def forward(self, x: Tensor, embedding: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return the map for the next level, and two maps for the skip connections.

        `x` [row, channel, height, width], `embedding` [row, embedded]. The first map is [row, out channel, height / 2,
        width / 2], at the innermost level [row, out channel, height, width]; the skips have the shape of `x`.
        Raises RuntimeError if height or width is odd, except at the innermost level.
        """
        first = self.block1(x, embedding)
        second = self.block2(first, embedding)
        second = self.attention(second) + second
        return self.change(second), (first, second)


class UpLevel(nn.Module):
    """Two blocks, each with a skip connection, an attention, then up-sampling by 2 (none at the outermost level)."""

    def __init__(self, width: int, in_width: int, embedded: int, *, innermost: bool, outermost: bool) -> None:
        super().__init__()
        self.block1 = ResBlock(in_width + width, in_width, embedded)
        self.block2 = ResBlock(in_width + width, in_width, embedded)
        self.attention = FullAttention(in_width) if innermost else LinearAttention(in_width)
        conv = nn.Conv2d(in_width, width, 3, padding=1)
        self.change = conv if outermost else nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), conv)

    def forward(self, x: Tensor, second: Tensor, first: Tensor, embedding: Tensor) -> Tensor:
        """Return the map for the next level: [row, channel, 2 height, 2 width], not enlarged at the outermost level.

        `x` [row, in channel, height, width], `embedding` [row, embedded]. `second` and `first` [row, channel, height,
        width] are the skips of the `DownLevel` of this resolution, in reverse order.
        """
        x = self.block1(torch.cat((x, second), 1), embedding)
        x = self.block2(torch.cat((x, first), 1), embedding)
        return self.change(self.attention(x) + x)
