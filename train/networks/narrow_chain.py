"""The reverse chain without clamping, on maps of the U-Net's inner width.

A step of the chain is linear in the map x and in the prediction, x' = a x + b head(hidden), and so is the stem. The
next call of the U-Net therefore needs the projection stem(x) alone, and stem(x') = a stem(x) + b (stem o head)(hidden),
where stem o head is one convolution of the inner width. The wide map is computed once, at the end. With 512 channels
and an inner width of 64 a call takes 2.5 times fewer operations, and no wide map is kept for the backward pass.
Source: ours; numbers and gradients are those of `GaussianDiffusion.reverse`, up to rounding.
"""

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from train.networks.diffusion import GaussianDiffusion, call_network
from train.networks.diffusion_unet import UNet
from train.networks.spectral_convolution import make_convolution


def reverse_narrow(
    diffusion: GaussianDiffusion,
    start: Tensor,
    *,
    first_step: int | None = None,
    noises: Tensor | None = None,
    gradient_steps: int | None = None,
    recompute: bool = False,
) -> Tensor:
    """Return what `diffusion.reverse`, whose network is a `UNet`, returns for these arguments."""
    unet = diffusion.network
    assert isinstance(unet, UNet)
    size = (start.shape[-2], start.shape[-1])
    project = unet.projection(size)
    sums = {has_gradient: _SumOfPredictions(unet, project, size, has_gradient) for has_gradient in (False, True)}
    start = start.to(diffusion.alpha_bar.dtype)  # sums that autocast rounds at each step would bias the chain
    projected, of_start, noise = project(start).to(start.dtype), torch.ones((), device=start.device), None
    for number in range(diffusion.steps - 1 if first_step is None else first_step, -1, -1):
        has_gradient = gradient_steps is None or number < gradient_steps
        step = torch.full((len(start),), number, device=start.device)
        hidden = call_network(unet.transform, projected, step, has_gradient, recompute)[..., : size[0], : size[1]]
        a, b = diffusion.transition(number)
        projected = a * projected + b * sums[has_gradient].project(hidden)
        of_start, noise = a * of_start, None if noise is None else a * noise
        sums[not has_gradient].extend(a)
        sums[has_gradient].extend(a, b, hidden)
        if noises is not None and number > 0:
            added = diffusion.posterior_std[number] * noises[number]
            projected = projected + project(added)
            noise = added if noise is None else noise + added
    end = of_start * start + sums[False].total() + sums[True].total()
    return end if noise is None else end + noise


class _SumOfPredictions:
    """A weighted sum of outputs of the U-Net's head, kept as the sum of its inputs.

    `project`: the projection of maps of `size`. `has_gradient`: whether the head gets a gradient from them.
    """

    def __init__(
        self, unet: UNet, project: Callable[[Tensor], Tensor], size: tuple[int, int], has_gradient: bool
    ) -> None:
        assert unet.head.bias is not None
        weights = unet.head.weight, unet.head.bias
        self.unet, self.size, self._project_map = unet, size, project
        self.weight, self.bias = weights if has_gradient else tuple(values.detach() for values in weights)
        self.count = torch.zeros((), device=self.bias.device)
        self.hidden: Tensor | None = None

    @cached_property
    def _link(self) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        """The projection of the head's output: a convolution of its input, and a map of the head's bias."""
        kernel = torch.einsum("oiyx,ic->ocyx", self.unet.stem.weight, self.weight[:, :, 0, 0])
        bias = self.bias[:, None, None].expand(1, -1, *self.size)
        return make_convolution(kernel, self.unet.padded_size(self.size)), self._project_map(bias)

    def project(self, hidden: Tensor) -> Tensor:
        """Return the projection of the head of `hidden` [row, inner channel, height, width]."""
        convolve, offset = self._link
        return convolve(self.unet.pad(hidden)) + offset

    def extend(self, factor: Tensor, weight: Tensor | None = None, hidden: Tensor | None = None) -> None:
        """Multiply the sum by `factor`, and add `weight` times the head of `hidden`, if given."""
        self.count = factor * self.count
        self.hidden = None if self.hidden is None else factor * self.hidden
        if weight is not None and hidden is not None:
            self.count = self.count + weight
            added = weight * hidden.to(weight.dtype)
            self.hidden = added if self.hidden is None else self.hidden + added

    def total(self) -> Tensor:
        """Return the sum [row, channel, height, width]."""
        bias = self.count * self.bias[:, None, None]
        return bias if self.hidden is None else F.conv2d(self.hidden, self.weight) + bias
