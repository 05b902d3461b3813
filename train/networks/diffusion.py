"""Gaussian diffusion of AVR: noise schedules, the training loss, and the reverse chain from a given start.

The denoising network is in `train.networks.diffusion_unet`, its use in `train.methods.avr`. Steps are numbered from 0
(least noise) to steps - 1. Noise is an argument; only `GaussianDiffusion.loss` and `sample_noises` sample it
themselves, from a generator.
Source: Eq. 5-7 of "Learning Trimodal Relation for AVQA with Missing Modality" (ECCV 2024); Ho et al. 2020
(posterior, ddpm), Nichol and Dhariwal 2021 (cosine), Jabri et al. 2022 (sigmoid), Salimans and Ho 2022 (v-prediction).
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pipeline.errors import UserError, unknown_name
from train.networks.diffusion_unet import UNet

Objective = Literal["noise", "v"]
BETA_LIMIT = 0.999
FIRST_BETA, LAST_BETA = 1e-4, 0.02
SIGMOID_LIMIT = 3.0
COSINE_OFFSET = 0.008


def sigmoid_betas(steps: int) -> Tensor:
    """Return the betas of a sigmoid schedule, float64 [step].

    A beta is the share of the variance that a step replaces by noise.
    """
    position = torch.linspace(-SIGMOID_LIMIT, SIGMOID_LIMIT, steps + 1, dtype=torch.float64)
    return _betas(torch.sigmoid(torch.tensor(SIGMOID_LIMIT, dtype=torch.float64)) - position.sigmoid())


def cosine_betas(steps: int) -> Tensor:
    """Return the betas of a squared cosine schedule, float64 [step]."""
    position = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    return _betas(torch.cos((position + COSINE_OFFSET) / (1 + COSINE_OFFSET) * math.pi / 2) ** 2)


def ddpm_betas(steps: int) -> Tensor:
    """Return betas that rise linearly from 1e-4 to 0.02 for any number of steps, float64 [step].

    Over ten steps a signal keeps 95 % of its size, over 1,000, for which Ho et al. chose the range, 0.6 %.
    """
    return torch.linspace(FIRST_BETA, LAST_BETA, steps, dtype=torch.float64)


def linear_betas(steps: int) -> Tensor:
    """Return betas that rise linearly from 0.1 / steps to 20 / steps, float64 [step] (`ddpm_betas` at 1,000 steps).

    Raises `UserError` if the last beta exceeds 1, as with 19 steps or fewer.
    """
    betas = torch.linspace(0.1 / steps, 20 / steps, steps, dtype=torch.float64)
    if betas[-1] > 1:
        raise UserError(
            f"diffusion schedule linear: with {steps} steps the last beta is {betas[-1]:.3g}, above 1; "
            "use 20 steps or more, or the schedule ddpm, sigmoid or cosine"
        )
    return betas


SCHEDULES: dict[str, Callable[[int], Tensor]] = {
    "ddpm": ddpm_betas,
    "sigmoid": sigmoid_betas,
    "cosine": cosine_betas,
    "linear": linear_betas,
}


class GaussianDiffusion(nn.Module):
    """Train `network` to denoise maps and run the reverse chain with it.

    `network` takes (noisy map [row, channel, height, width], step int64 [row]) and returns a prediction of the map's
    shape. `objective`: what it predicts. "noise": the noise, with unit weight (Eq. 7). "v": sqrt(alpha-bar) noise -
    sqrt(1 - alpha-bar) clean, with each row weighted by its alpha-bar. The buffer
    `alpha_bar` [step] is the cumulative product of 1 - beta.
    Source: Eq. 5-7. Differs from the released code: "noise", the paper's objective, is the default (released: "v");
    clean values are not mapped to another range and clamped only with `clamp`.
    """

    betas: Tensor
    alpha_bar: Tensor
    from_clean: Tensor
    from_noisy: Tensor
    posterior_std: Tensor

    def __init__(
        self,
        network: nn.Module,
        *,
        steps: int = 10,
        schedule: str = "sigmoid",
        objective: Objective = "noise",
    ) -> None:
        super().__init__()
        if schedule not in SCHEDULES:
            raise unknown_name("diffusion schedule", schedule, SCHEDULES)
        if objective not in ("noise", "v"):
            raise UserError(f"diffusion objective {objective!r} is unknown: choose noise or v")
        self.network, self.steps, self.objective = network, steps, objective
        betas = SCHEDULES[schedule](steps)
        alpha_bar = torch.cumprod(1 - betas, 0)
        if objective == "noise" and alpha_bar[-1] == 0:
            raise UserError(
                f"diffusion schedule {schedule}: the last of {steps} steps leaves no signal, which the objective noise "
                "requires; use another number of steps or the objective v"
            )
        alpha_bar_before = torch.cat((torch.ones(1, dtype=torch.float64), alpha_bar[:-1]))
        constants = {
            "betas": betas,
            "alpha_bar": alpha_bar,
            "from_clean": betas * alpha_bar_before.sqrt() / (1 - alpha_bar),
            "from_noisy": (1 - alpha_bar_before) * (1 - betas).sqrt() / (1 - alpha_bar),
            "posterior_std": (betas * (1 - alpha_bar_before) / (1 - alpha_bar)).sqrt(),
        }
        for name, values in constants.items():
            self.register_buffer(name, values.float(), persistent=False)

    def add_noise(self, clean: Tensor, step: Tensor, noise: Tensor) -> Tensor:
        """Return sqrt(alpha-bar) clean + sqrt(1 - alpha-bar) noise [row, ...] at `step`, int64 [row]. Source: Eq. 5."""
        alpha_bar = _per_row(self.alpha_bar, step, clean)
        return alpha_bar.sqrt() * clean + (1 - alpha_bar).sqrt() * noise

    def loss(self, clean: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Return the training loss (scalar) of `clean` [row, channel, height, width] at one random step per row.

        `generator`: on the device of `clean`; None: torch's default generator. Source: Eq. 7.
        """
        step = torch.randint(0, self.steps, (len(clean),), device=clean.device, generator=generator)
        noise = torch.randn(clean.shape, device=clean.device, dtype=clean.dtype, generator=generator)
        return self.loss_at(clean, step, noise)

    def loss_at(self, clean: Tensor, step: Tensor, noise: Tensor) -> Tensor:
        """Return the training loss (scalar) at `step`, int64 [row], with `noise` of the shape of `clean`."""
        predicted = self.network(self.add_noise(clean, step, noise), step)
        if self.objective == "noise":
            return (predicted - noise).square().mean()
        error = (predicted - self.velocity(clean, step, noise)).square().flatten(1).mean(1)
        return (error * self.alpha_bar[step]).mean()

    def velocity(self, clean: Tensor, step: Tensor, noise: Tensor) -> Tensor:
        """Return v = sqrt(alpha-bar) noise - sqrt(1 - alpha-bar) clean [row, ...]."""
        alpha_bar = _per_row(self.alpha_bar, step, clean)
        return alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * clean

    def estimate_clean(self, noisy: Tensor, predicted: Tensor, step: Tensor) -> Tensor:
        """Return the clean values [row, ...] that the network's prediction at `step`, int64 [row], implies."""
        alpha_bar = _per_row(self.alpha_bar, step, noisy)
        if self.objective == "v":
            return alpha_bar.sqrt() * noisy - (1 - alpha_bar).sqrt() * predicted
        return (noisy - (1 - alpha_bar).sqrt() * predicted) / alpha_bar.sqrt()

    def sample_noises(self, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Sample standard normal noise [step, *like.shape] for one reverse chain."""
        shape = (self.steps, *like.shape)
        return torch.randn(shape, device=like.device, dtype=like.dtype, generator=generator)

    def reverse(
        self,
        start: Tensor,
        *,
        first_step: int | None = None,
        noises: Tensor | None = None,
        clamp: bool = False,
        gradient_steps: int | None = None,
        recompute: bool = False,
    ) -> Tensor:
        """Run the reverse chain from `start` [row, channel, height, width]; return clean values of its shape.

        - `first_step`: the step that `start` is at; default: the last.
        - `noises` [step, row, channel, height, width]: `noises[t]` is added after step t; None: the chain is
          deterministic and follows the posterior means.
        - `clamp`: clamp the clean estimates to [-1, 1].
        - `gradient_steps`: only the network calls of this many last steps are differentiated; earlier ones are
          constants, and the gradient reaches `start` through the chain's linear terms alone. None: all calls.
        - `recompute`: recompute the activations of each call in the backward pass instead of storing them.

        Source: Eq. 6 and Fig. 4b (no noise is added to `start`).
        """
        network = self.network.prepare(start.shape[-2:]) if isinstance(self.network, UNet) else self.network
        x, first = start, self.steps - 1 if first_step is None else first_step
        for number in range(first, -1, -1):
            step = torch.full((len(x),), number, device=x.device)
            has_gradient = gradient_steps is None or number < gradient_steps
            clean = self.estimate_clean(x, call_network(network, x, step, has_gradient, recompute), step)
            if clamp:
                clean = clean.clamp(-1, 1)
            x = self.from_clean[number] * clean + self.from_noisy[number] * x
            if noises is not None and number > 0:
                x = x + self.posterior_std[number] * noises[number]
        return x

    def transition(self, number: int) -> tuple[Tensor, Tensor]:
        """Return the factors (scalars) of the map and of the prediction at step `number` of a chain without clamping.

        Their sum of products is the map at step `number` - 1, without noise.
        """
        signal, noise = self.alpha_bar[number].sqrt(), (1 - self.alpha_bar[number]).sqrt()
        if self.objective == "v":
            of_map, of_prediction = signal, -noise
        else:
            of_map, of_prediction = 1 / signal, -noise / signal
        return self.from_noisy[number] + self.from_clean[number] * of_map, self.from_clean[number] * of_prediction


def call_network(
    network: Callable[[Tensor, Tensor], Tensor], x: Tensor, step: Tensor, has_gradient: bool, recompute: bool
) -> Tensor:
    """Return `network(x, step)`, a constant without `has_gradient`.

    `recompute`: recompute its activations in the backward pass instead of storing them.
    """
    if not has_gradient:
        with torch.no_grad():
            return network(x, step)
    if recompute and torch.is_grad_enabled():
        output: Tensor = checkpoint(network, x, step, use_reentrant=False)
        return output
    return network(x, step)


def _betas(alpha_bar: Tensor) -> Tensor:
    """Return the beta of each step, [step], from alpha-bar before and after it, [step + 1]."""
    return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(0, BETA_LIMIT)


def _per_row(values: Tensor, step: Tensor, like: Tensor) -> Tensor:
    """Return `values` [step] at `step` [row], shaped to broadcast over `like` [row, ...]."""
    return values[step].reshape(-1, *([1] * (like.dim() - 1)))
