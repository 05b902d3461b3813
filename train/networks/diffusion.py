"""Gaussian diffusion in a few steps: schedules, noising, the training loss and the reverse chain from a given start.

It holds the arithmetic around a network, not the network (`train.networks.diffusion_unet`), nor what is diffused
(`train.methods.avr`). Step numbers run from 0 (least noise) to steps - 1. Noise is always handed over, so nothing here
draws at random but `GaussianDiffusion.loss`, which draws from the generator it is given.
Source: Eq. 5-7 of "Learning Trimodal Relation for AVQA with Missing Modality" (ECCV 2024); Ho et al. 2020
(posterior), Nichol and Dhariwal 2021 (cosine), Jabri et al. 2022 (sigmoid), Salimans and Ho 2022 (v-prediction).
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pipeline.errors import UserError

Objective = Literal["noise", "v"]
BETA_LIMIT = 0.999


def sigmoid_betas(steps: int, *, start: float = -3.0, end: float = 3.0) -> Tensor:
    """Return float64 [step]: the share of variance that each step replaces by noise, on a sigmoid from start to end."""
    position = torch.linspace(start, end, steps + 1, dtype=torch.float64)
    kept = torch.sigmoid(torch.tensor(end, dtype=torch.float64)) - position.sigmoid()
    return _betas(kept)


def cosine_betas(steps: int, *, offset: float = 0.008) -> Tensor:
    """Return float64 [step] on a squared cosine."""
    position = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    return _betas(torch.cos((position + offset) / (1 + offset) * math.pi / 2) ** 2)


def linear_betas(steps: int) -> Tensor:
    """Return float64 [step] rising from 0.1 / steps to 20 / steps (1e-4 to 0.02 at 1,000 steps).

    Raises UserError where a share would exceed one, which it does below 21 steps.
    """
    betas = torch.linspace(0.1 / steps, 20 / steps, steps, dtype=torch.float64)
    if betas[-1] > 1:
        raise UserError(
            f"diffusion schedule linear: with {steps} steps the last beta is {betas[-1]:.3g}, above 1; "
            "take 21 steps or more, or the schedule sigmoid or cosine"
        )
    return betas


SCHEDULES: dict[str, Callable[[int], Tensor]] = {
    "sigmoid": sigmoid_betas,
    "cosine": cosine_betas,
    "linear": linear_betas,
}


class GaussianDiffusion(nn.Module):
    """Teach `network` (map [row, channel, height, width], step [row] -> same shape) to undo noise, and run it back.

    `objective`: what the network predicts. "noise": the noise itself, unit weight (Eq. 7). "v": sqrt(alpha-bar) noise
    - sqrt(1 - alpha-bar) clean, each row weighted by its alpha-bar.
    Source: Eq. 5-7. Differs from the released code: "noise" is the paper's and the default (released: "v"); the
    clean values are neither clamped nor mapped unless `clamp` is asked for.
    """

    betas: Tensor
    kept: Tensor
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
            raise UserError(f"diffusion schedule {schedule!r} is unknown; take one of {', '.join(SCHEDULES)}")
        if objective not in ("noise", "v"):
            raise UserError(f"diffusion objective {objective!r} is unknown; take noise or v")
        self.network, self.steps, self.objective = network, steps, objective
        betas = SCHEDULES[schedule](steps)
        kept = torch.cumprod(1 - betas, 0)
        before = torch.cat((torch.ones(1, dtype=torch.float64), kept[:-1]))
        self._constant("betas", betas)
        self._constant("kept", kept)
        self._constant("from_clean", betas * before.sqrt() / (1 - kept))
        self._constant("from_noisy", (1 - before) * (1 - betas).sqrt() / (1 - kept))
        self._constant("posterior_std", (betas * (1 - before) / (1 - kept)).sqrt())

    def _constant(self, name: str, values: Tensor) -> None:
        self.register_buffer(name, values.float(), persistent=False)

    def noised(self, clean: Tensor, step: Tensor, noise: Tensor) -> Tensor:
        """Return sqrt(alpha-bar) clean + sqrt(1 - alpha-bar) noise [row, ...] at `step`, int64 [row]. Source: Eq. 5."""
        kept = _per_row(self.kept, step, clean)
        return kept.sqrt() * clean + (1 - kept).sqrt() * noise

    def loss(self, clean: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Return the scalar training loss of `clean` [row, channel, height, width] at one random step per row.

        `generator`: on the device of `clean`; without it torch's own, as dropout uses. Source: Eq. 7.
        """
        step = torch.randint(0, self.steps, (len(clean),), device=clean.device, generator=generator)
        noise = torch.randn(clean.shape, device=clean.device, dtype=clean.dtype, generator=generator)
        return self.loss_at(clean, step, noise)

    def loss_at(self, clean: Tensor, step: Tensor, noise: Tensor) -> Tensor:
        """Return the scalar training loss at given steps, int64 [row], and noise, of the shape of `clean`."""
        predicted = self.network(self.noised(clean, step, noise), step)
        if self.objective == "noise":
            return (predicted - noise).square().mean()
        error = (predicted - self.velocity(clean, step, noise)).square().flatten(1).mean(1)
        return (error * self.kept[step]).mean()

    def velocity(self, clean: Tensor, step: Tensor, noise: Tensor) -> Tensor:
        """Return v = sqrt(alpha-bar) noise - sqrt(1 - alpha-bar) clean [row, ...]."""
        kept = _per_row(self.kept, step, clean)
        return kept.sqrt() * noise - (1 - kept).sqrt() * clean

    def clean_from(self, noisy: Tensor, predicted: Tensor, step: Tensor) -> Tensor:
        """Return the clean values [row, ...] that a prediction at `step`, int64 [row], stands for."""
        kept = _per_row(self.kept, step, noisy)
        if self.objective == "v":
            return kept.sqrt() * noisy - (1 - kept).sqrt() * predicted
        return (noisy - (1 - kept).sqrt() * predicted) / kept.sqrt()

    def draw_noises(self, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return standard normal noise [step, *like.shape] for one reverse chain."""
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
        """Run the chain from `start` [row, channel, height, width] at `first_step` (default: the last) to clean values.

        `noises` [step, row, channel, height, width]: row t is added on leaving step t; without it the chain follows
        its means (deterministic). `clamp`: clean estimates are held in [-1, 1]. `gradient_steps`: only the network
        calls of the last so many steps get a gradient, the earlier ones count as constants (the gradient to `start`
        then runs along the chain's own arithmetic). `recompute`: keep no activations but recompute each call in
        the backward pass. Source: Eq. 6 and Fig. 4b (no noise is added to `start`).
        """
        x, first = start, self.steps - 1 if first_step is None else first_step
        for number in range(first, -1, -1):
            step = torch.full((len(x),), number, device=x.device)
            learns = gradient_steps is None or number < gradient_steps
            clean = self.clean_from(x, self._predict(x, step, learns, recompute), step)
            if clamp:
                clean = clean.clamp(-1, 1)
            x = self.from_clean[number] * clean + self.from_noisy[number] * x
            if noises is not None and number > 0:
                x = x + self.posterior_std[number] * noises[number]
        return x

    def _predict(self, x: Tensor, step: Tensor, learns: bool, recompute: bool) -> Tensor:
        if not learns:
            with torch.no_grad():
                return self.network(x, step)
        if recompute and torch.is_grad_enabled():
            return checkpoint(self.network, x, step, use_reentrant=False)
        return self.network(x, step)


def _betas(kept: Tensor) -> Tensor:
    return (1 - kept[1:] / kept[:-1]).clamp(0, BETA_LIMIT)


def _per_row(values: Tensor, step: Tensor, like: Tensor) -> Tensor:
    return values[step].reshape(-1, *([1] * (like.dim() - 1)))
