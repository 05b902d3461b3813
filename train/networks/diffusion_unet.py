"""The U-Net inside the audio-visual diffusion: it reads a noisy map and the step of the noise, and predicts.

It knows no schedule and no objective (`train.networks.diffusion`) and nothing of modalities (`train.methods.avr`).
Source: the autoencoder of "Learning Trimodal Relation for AVQA with Missing Modality" (ECCV 2024), section 3.2, whose
shape the paper leaves open; the widths, the order of layers and of channels follow the released code, which uses
denoising-diffusion-pytorch 1.9.4 with its defaults.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NORM_GROUPS = 8
SLOWEST_PERIOD = 10_000.0


class UNet(nn.Module):
    """Predict a map of the same shape from a noisy one; 4,685,120 parameters at its defaults.

    `channels`: of the map. `dim`: width at full resolution, a multiple of 8. `mults`: widths of the levels, as
    multiples of `dim`; each level but the last halves the map. `stem_kernel`: odd side of the first convolution; on
    maps of a few cells a side of 3 reads the same cells for a fifth of the work.
    Source: the autoencoder of section 3.2.
    Differs from the released code: maps whose sides are not a multiple of the down-sampling are padded by their
    border and cropped again (the released code refuses them); numbers are equal where it runs.
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
            StepCode(dim), nn.Linear(dim, embedded), nn.GELU(), nn.Linear(embedded, embedded)
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
        height, width = noisy.shape[-2:]
        x = stem = self.stem(_pad(noisy, self.multiple))
        code = self.embed_step(step)
        skips: list[Tensor] = []
        for down in self.down:
            x, kept = down(x, code)
            skips += kept
        x = self.middle_before(x, code)
        x = self.middle_attention(x) + x
        x = self.middle_after(x, code)
        for up in self.up:
            x = up(x, skips.pop(), skips.pop(), code)
        x = self.last_block(torch.cat((x, stem), 1), code)
        return self.head(x)[..., :height, :width]


class StepCode(nn.Module):
    """Turn step numbers int64 [row] into sines, then cosines [row, dim], of periods from 2 pi to 10,000 times that."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.waves = dim // 2

    def forward(self, step: Tensor) -> Tensor:
        """Return the code [row, dim]."""
        decay = -math.log(SLOWEST_PERIOD) / (self.waves - 1)
        angles = step[:, None] * torch.exp(decay * torch.arange(self.waves, device=step.device))
        return torch.cat((angles.sin(), angles.cos()), -1)


class ResBlock(nn.Module):
    """Two convolutions with group norms, the first modulated by the step, beside a shortcut."""

    def __init__(self, width: int, out_width: int, embedded: int) -> None:
        super().__init__()
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(embedded, 2 * out_width))
        self.conv1 = nn.Conv2d(width, out_width, 3, padding=1)
        self.norm1 = nn.GroupNorm(NORM_GROUPS, out_width)
        self.conv2 = nn.Conv2d(out_width, out_width, 3, padding=1)
        self.norm2 = nn.GroupNorm(NORM_GROUPS, out_width)
        self.shortcut = nn.Identity() if width == out_width else nn.Conv2d(width, out_width, 1)

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        """Return [row, out channel, height, width]; `x` [row, channel, height, width], `code` [row, embedded]."""
        scale, shift = self.modulation(code)[:, :, None, None].chunk(2, 1)
        hidden = F.silu(self.norm1(self.conv1(x)) * (scale + 1) + shift)
        return F.silu(self.norm2(self.conv2(hidden))) + self.shortcut(x)


class ChannelNorm(nn.Module):
    """Scale the channels of each cell to a root mean square of one, then by a learned gain."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1, width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return [row, channel, height, width]."""
        return F.normalize(x, dim=1) * self.gain * x.shape[1] ** 0.5


class LinearAttention(nn.Module):
    """Attention over cells whose cost grows linearly with their number, with learned memory cells."""

    def __init__(self, width: int, *, heads: int = 4, head_width: int = 32, memories: int = 4) -> None:
        super().__init__()
        self.heads, self.scale = heads, head_width**-0.5
        self.memory = nn.Parameter(torch.randn(2, heads, head_width, memories))
        self.norm = ChannelNorm(width)
        self.qkv = nn.Conv2d(width, 3 * heads * head_width, 1, bias=False)
        self.out = nn.Sequential(nn.Conv2d(heads * head_width, width, 1), ChannelNorm(width))

    def forward(self, x: Tensor) -> Tensor:
        """Return [row, channel, height, width] for an `x` of that shape."""
        query, key, value = self.qkv(self.norm(x)).unflatten(1, (3, self.heads, -1)).flatten(4).unbind(1)
        key, value = (
            torch.cat((memory.expand(len(x), -1, -1, -1), cells), -1)
            for memory, cells in zip(self.memory, (key, value), strict=True)
        )
        context = key.softmax(-1) @ value.mT
        mixed = context.mT @ (query.softmax(-2) * self.scale)
        return self.out(mixed.flatten(1, 2).unflatten(-1, x.shape[-2:]))


class FullAttention(nn.Module):
    """Softmax attention between all cells, with learned memory cells."""

    def __init__(self, width: int, *, heads: int = 4, head_width: int = 32, memories: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.memory = nn.Parameter(torch.randn(2, heads, memories, head_width))
        self.norm = ChannelNorm(width)
        self.qkv = nn.Conv2d(width, 3 * heads * head_width, 1, bias=False)
        self.out = nn.Conv2d(heads * head_width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return [row, channel, height, width] for an `x` of that shape."""
        cells = self.qkv(self.norm(x)).unflatten(1, (3, self.heads, -1)).flatten(4).mT
        query, key, value = cells.clone(memory_format=torch.contiguous_format).unbind(1)  # a GPU needs rows in order
        key, value = (
            torch.cat((memory.expand(len(x), -1, -1, -1), part), -2)
            for memory, part in zip(self.memory, (key, value), strict=True)
        )
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.out(mixed.mT.flatten(1, 2).unflatten(-1, x.shape[-2:]))


class DownLevel(nn.Module):
    """Two blocks and an attention at one resolution, then half of it (the innermost level keeps it)."""

    def __init__(self, width: int, out_width: int, embedded: int, innermost: bool) -> None:
        super().__init__()
        self.block1 = ResBlock(width, width, embedded)
        self.block2 = ResBlock(width, width, embedded)
        self.attention = FullAttention(width) if innermost else LinearAttention(width)
        halve = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(4 * width, out_width, 1))
        self.change = nn.Conv2d(width, out_width, 3, padding=1) if innermost else halve

    def forward(self, x: Tensor, code: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return the map for the next level and the two maps that the way up takes again."""
        first = self.block1(x, code)
        second = self.block2(first, code)
        second = self.attention(second) + second
        return self.change(second), (first, second)


class UpLevel(nn.Module):
    """Two blocks, each reading a map kept on the way down, an attention, then twice the resolution."""

    def __init__(self, width: int, in_width: int, embedded: int, *, innermost: bool, outermost: bool) -> None:
        super().__init__()
        self.block1 = ResBlock(in_width + width, in_width, embedded)
        self.block2 = ResBlock(in_width + width, in_width, embedded)
        self.attention = FullAttention(in_width) if innermost else LinearAttention(in_width)
        conv = nn.Conv2d(in_width, width, 3, padding=1)
        self.change = conv if outermost else nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), conv)

    def forward(self, x: Tensor, second: Tensor, first: Tensor, code: Tensor) -> Tensor:
        """Return the map for the next level up; `second` and `first` were kept on the way down, in reverse."""
        x = self.block1(torch.cat((x, second), 1), code)
        x = self.block2(torch.cat((x, first), 1), code)
        return self.change(self.attention(x) + x)


def _pad(maps: Tensor, multiple: int) -> Tensor:
    """Repeat the right and lower borders of `maps` [row, channel, height, width] to multiples of `multiple`."""
    down, right = (-side % multiple for side in maps.shape[-2:])
    return F.pad(maps, (0, right, 0, down), mode="replicate") if down or right else maps
