"""AVR: refine the features of both modalities together, by the reverse chain of a diffusion over their joint map.

It refines features that are given, real or imputed: `train.methods.rmm_avr` imputes them with RMM, the method `avr`
here uses noise.
Source: "Learning Trimodal Relation for AVQA with Missing Modality" (ECCV 2024), section 3.2, Eq. 5-7.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.errors import unknown_name
from pipeline.store.schema import MODALITIES
from train.data.scenarios import OTHER
from train.interfaces import Backbone, Representation
from train.methods.imputation import (
    AvailableSteps,
    ImputingMethod,
    RunningMoments,
    imputed_answer_losses,
    with_imputed,
)
from train.methods.losses import Weight
from train.networks.diffusion import GaussianDiffusion, Objective
from train.networks.diffusion_unet import UNet
from train.networks.narrow_chain import reverse_narrow

Scaling = Literal["none", "standardised", "clamped"]
SMALLEST_VARIANCE = 1e-6
FILL_SEED = 0


@dataclass(frozen=True)
class RefineSettings:
    """Settings of `AudioVisualRefiner`; `REFINE_VARIANTS` lists them for "paper", "released" and "recommended".

    `objective`: what the U-Net predicts, "noise" (Eq. 7) or "v".
    `scaling`: of the joint map. "none". "standardised": per channel by moments of real pairs, and undone at the end.
    "clamped": clean estimates are clamped to [-1, 1], the result is mapped to [0, 1].
    `readout`: cell of the joint map that gives the audio vector, the "mean" of all cells or the "corner" (0, 0).
    `start`: step at which the joint map enters the reverse chain: the "last", unscaled, or the "middle", scaled by
    sqrt(alpha-bar) as forward noising does.
    `correction`: the output is added to the input features instead of replacing them; it is zero before training.
    `stochastic`: the reverse chain adds its noise in training; in evaluation it never does.
    `detached`: L_ave trains the U-Net only; it gives no gradient to the features or the joining convolution.
    `one_sided`: training also uses questions that have only one modality in the data.
    """

    objective: Objective
    scaling: Scaling
    readout: Literal["mean", "corner"]
    start: Literal["last", "middle"]
    correction: bool
    stochastic: bool
    detached: bool
    one_sided: bool


REFINE_VARIANTS = {
    "paper": RefineSettings(
        "noise", "none", "mean", "last", correction=False, stochastic=True, detached=False, one_sided=False
    ),
    "released": RefineSettings(
        "v", "clamped", "corner", "last", correction=False, stochastic=True, detached=False, one_sided=False
    ),
    "recommended": RefineSettings(
        "noise",
        "standardised",
        "mean",
        "middle",
        correction=True,
        stochastic=False,
        detached=True,
        one_sided=True,
    ),
}


@dataclass(frozen=True)
class DiffusionSizes:
    """Steps of the diffusion and sizes of its U-Net; the defaults are the paper's where it states them.

    `steps`: T of the paper. `schedule`: of the noise, "sigmoid" (as released), "cosine" or "linear".
    `dim`, `mults`, `stem_kernel`: widths of the U-Net and side of its first convolution (`UNet`).
    `width`: channels of the joint map (None: as many as the visual map, as released).
    `gradient_steps`: only the last so many U-Net calls of a reverse chain get a gradient (None: all).
    `recompute`: recompute the chain's activations in the backward pass to save memory.
    """

    steps: int = 10
    schedule: str = "sigmoid"
    dim: int = 64
    mults: tuple[int, ...] = (1, 2)
    stem_kernel: int = 7
    width: int | None = None
    gradient_steps: int | None = None
    recompute: bool = False


class AudioVisualRefiner(nn.Module):
    """Join the audio vector and the visual map of a step, run the reverse chain on the joint map, split the result.

    `join`, a 1x1 convolution, maps the audio vector, repeated over the cells, and the visual map, concatenated in this
    order, to the joint map; `read` maps it back (524,800 and 525,312 parameters at 512 channels each). `shapes`:
    {"audio": (channel,), "visual": (channel, height, width), (channel,), or (token, channel)}. The first visual token
    summarises the frame and is treated as the audio vector is; the others are the cells of a square map.

    Source: section 3.2. The repetition, the convolutions and the read-out are the released code's; the paper only says
    that features are concatenated and separated. Differs from the released code: see `RefineSettings`; the variant
    "released" computes the same numbers. "recommended" fixes three things: values are scaled to the unit variance that
    the schedule assumes; the chain starts at the middle step, because at the last of ten steps the schedule keeps
    0.6 % of a signal, so that the information on the video would be lost; and features are corrected, not regenerated
    through a narrower joint map.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        *,
        sizes: DiffusionSizes = DiffusionSizes(),
        settings: RefineSettings = REFINE_VARIANTS["recommended"],
    ) -> None:
        super().__init__()
        audio, visual = tuple(shapes["audio"]), tuple(shapes["visual"])
        self.side = math.isqrt(visual[0] - 1) if len(visual) == 2 else 0
        is_square = len(visual) != 2 or (self.side > 0 and visual[0] == 1 + self.side**2)
        if len(audio) != 1 or len(visual) not in (1, 2, 3) or not is_square:
            raise ValueError(f"AVR joins an audio vector and a map, a vector or tokens, not {audio} and {visual}")
        self.settings, self.sizes = settings, sizes
        self.is_map, self.audio_channels = len(visual) == 3, audio[0]
        channels = visual[1] if self.side else visual[0]
        self.split = audio[0] + (channels if self.side else 0)
        width = sizes.width or channels
        self.join = nn.Conv2d(self.split + channels, width, 1)
        self.read = nn.Conv2d(width, self.split + channels, 1)
        if settings.correction:
            for parameter in self.read.parameters():
                nn.init.zeros_(parameter)
        unet = UNet(channels=width, dim=sizes.dim, mults=sizes.mults, stem_kernel=sizes.stem_kernel)
        self.diffusion = GaussianDiffusion(
            unet, steps=sizes.steps, schedule=sizes.schedule, objective=settings.objective
        )
        self.moments = RunningMoments(width)

    def loss(self, audio: Tensor, visual: Tensor) -> Tensor:
        """Return L_ave (scalar) of real pairs: `audio` [row, channel], `visual` [row, *shape of a step]; 0 of none.

        Updates the running moments in training, if values are standardised. Samples steps and noise from torch's
        default generator. Source: Eq. 7.
        """
        joint = self._joined(audio, visual)
        if self.settings.detached:
            joint = joint.detach()
        if self.training and self.settings.scaling == "standardised":
            self.moments.update(joint.movedim(1, -1).flatten(0, 2).detach())
        if not len(joint):
            return joint.sum()
        return self.diffusion.loss(self._scaled(joint))

    def refine(
        self,
        audio: Tensor,
        visual: Tensor,
        *,
        corrected: tuple[str, ...] = MODALITIES,
        noises: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the refined `audio` [row, channel] and `visual` [row, *shape of a step].

        `corrected`: the modalities to correct if the setting `correction` is set; the others, which are noise, are
        replaced. `noises` [step, row, channel, height, width]: the noise of the chain. By default it is sampled from
        torch's default generator in training if the setting `stochastic` is set, else there is none. Source: Fig. 4b.
        """
        start = self._scaled(self._joined(audio, visual))
        if noises is None and self.training and self.settings.stochastic:
            noises = self.diffusion.sample_noises(start)
        first_step = self.sizes.steps - 1
        if self.settings.start == "middle":
            first_step = (self.sizes.steps - 1) // 2
            start = self.diffusion.alpha_bar[first_step].sqrt() * start
        options: dict[str, Any] = {
            "first_step": first_step,
            "noises": noises,
            "gradient_steps": self.sizes.gradient_steps,
            "recompute": self.sizes.recompute,
        }
        if self.settings.scaling == "clamped":
            end = self.diffusion.reverse(start, clamp=True, **options)
        else:
            end = reverse_narrow(self.diffusion, start, **options)
        new_audio, new_visual = self._read(self._unscaled(end))
        if self.settings.correction:
            new_audio = audio + new_audio if "audio" in corrected else new_audio
            new_visual = visual + new_visual if "visual" in corrected else new_visual
        return new_audio, new_visual

    def _joined(self, audio: Tensor, visual: Tensor) -> Tensor:
        """Return the joint map [row, channel, height, width], without materialising the repeated audio vector."""
        weight = self.join.weight
        vector, cells = self._unfold(audio, visual)
        from_vector = F.linear(vector, weight[:, : self.split, 0, 0], self.join.bias)
        return F.conv2d(cells, weight[:, self.split :]) + from_vector[:, :, None, None]

    def _read(self, joint: Tensor) -> tuple[Tensor, Tensor]:
        """Return the audio and visual features read from the joint map [row, channel, height, width]."""
        weight, bias = self.read.weight, self.read.bias
        assert bias is not None
        vector = joint.mean((2, 3)) if self.settings.readout == "mean" else joint[:, :, 0, 0]
        vector = F.linear(vector, weight[: self.split, :, 0, 0], bias[: self.split])
        cells = F.conv2d(joint, weight[self.split :], bias[self.split :])
        return self._fold(vector, cells)

    def _unfold(self, audio: Tensor, visual: Tensor) -> tuple[Tensor, Tensor]:
        """Return the vector to repeat over the cells [row, channel], and the map [row, channel, height, width]."""
        if self.is_map:
            return audio, visual
        if not self.side:
            return audio, visual[:, :, None, None]
        cells = visual[:, 1:].mT.unflatten(2, (self.side, self.side))
        return torch.cat((audio, visual[:, 0]), 1), cells

    def _fold(self, vector: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
        """Return the audio and visual features of a vector and a map; the inverse of `_unfold`."""
        if self.is_map:
            return vector, cells
        if not self.side:
            return vector, cells[:, :, 0, 0]
        audio, summary = vector[:, : self.audio_channels], vector[:, self.audio_channels :]
        return audio, torch.cat((summary[:, None], cells.flatten(2).mT), 1)

    def _scaled(self, joint: Tensor) -> Tensor:
        if self.settings.scaling != "standardised":
            return joint
        mean, deviation = self._mean_and_deviation()
        return (joint - mean) / deviation

    def _unscaled(self, clean: Tensor) -> Tensor:
        if self.settings.scaling == "clamped":
            return (clean + 1) / 2
        if self.settings.scaling == "none":
            return clean
        mean, deviation = self._mean_and_deviation()
        return clean * deviation + mean

    def _mean_and_deviation(self) -> tuple[Tensor, Tensor]:
        """Return the running mean and standard deviation of the joint map, both [channel, 1, 1]."""
        deviation = self.moments.variance.clamp_min(SMALLEST_VARIANCE).sqrt()
        return self.moments.mean[:, None, None], deviation[:, None, None]


def refined_features(
    refiner: AudioVisualRefiner, representations: Sequence[Representation], *, corrected: tuple[str, ...] = MODALITIES
) -> list[dict[str, Tensor]]:
    """Return the refined features {modality: [batch, time, ...]} of each representation, all from one reverse chain.

    They are zeros where a representation has not both modalities. `corrected`: see `AudioVisualRefiner.refine`.
    """
    steps = [AvailableSteps.of_both(representation) for representation in representations]
    rows = [[both.take(r.features[m]) for r, both in zip(representations, steps, strict=True)] for m in MODALITIES]
    counts = [len(both) for both in steps]
    refined = [values.split(counts) for values in refiner.refine(*map(torch.cat, rows), corrected=corrected)]
    return [
        {m: both.put(values) for m, values in zip(MODALITIES, parts, strict=True)}
        for both, *parts in zip(steps, *refined, strict=True)
    ]


def refine_loss(refiner: AudioVisualRefiner, representation: Representation) -> Tensor:
    """Return L_ave (scalar) over the steps where both modalities are available; 0 if there is none. Source: Eq. 7."""
    both = AvailableSteps.of_both(representation)
    return refiner.loss(*(both.take(representation.features[m]) for m in MODALITIES))


def refine_settings(variant: str) -> RefineSettings:
    """Return the settings of `variant`; raise `UserError` if it is unknown."""
    if variant not in REFINE_VARIANTS:
        raise unknown_name("variant", variant, REFINE_VARIANTS)
    return REFINE_VARIANTS[variant]


class NoiseFill(nn.Module):
    """Standard normal noise as imputed features: fresh in training, the same fixed sample for all steps in evaluation.

    The fixed sample makes a prediction independent of its batch.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(FILL_SEED)
        for modality in MODALITIES:
            self.register_buffer(modality, torch.randn(tuple(shapes[modality]), generator=generator))

    def forward(self, modality: str, mask: Tensor) -> Tensor:
        """Return features of `modality` [batch, time, *shape of a step] for `mask` [batch, time]."""
        fixed = self.get_buffer(modality).expand(*mask.shape, *self.get_buffer(modality).shape)
        return torch.randn_like(fixed) if self.training else fixed


class Avr(ImputingMethod):
    """Impute a missing modality with AVR alone, from noise and the available modality, without RMM.

    The missing features enter the reverse chain as noise; the backbone answers from the refined features of both
    modalities. Trained as every `ImputingMethod`: L = sum of the three answer losses + refine_weight x L_ave (Eq. 7,
    named "ave"). `variant`: see `RefineSettings` and `REFINE_VARIANTS`. `steps` to `recompute`: see `DiffusionSizes`.
    Source: section 3.2, the row "AVR" of table 4; the paper does not say what replaces the missing features, noise is
    our reading. Differs from the released code: it has no such mode.
    """

    variants = ("recommended", "paper", "released")

    def __init__(
        self,
        backbone: Backbone,
        *,
        variant: str = "recommended",
        steps: PositiveInt = 10,
        schedule: str = "sigmoid",
        dim: PositiveInt = 64,
        mults: Annotated[Sequence[PositiveInt], Field(min_length=1)] = (1, 2),
        stem_kernel: PositiveInt = 7,
        width: PositiveInt | None = None,
        gradient_steps: PositiveInt | None = None,
        recompute: bool = False,
        refine_weight: Weight = 1.0,
    ) -> None:
        settings = refine_settings(variant)
        sizes = DiffusionSizes(steps, schedule, dim, tuple(mults), stem_kernel, width, gradient_steps, recompute)
        trains_on = "all" if settings.one_sided else "complete"
        super().__init__(backbone, loss_weights={"ave": refine_weight}, trains_on=trains_on)
        self.refiner = AudioVisualRefiner(backbone.feature_shapes, sizes=sizes, settings=settings)
        self.fill = NoiseFill(backbone.feature_shapes)

    def impute(self, representation: Representation, missing: str) -> Representation:
        """Return `representation` with both modalities refined, after noise replaced the features of `missing`."""
        available = OTHER[missing]
        noise = self.fill(missing, representation.masks[available])
        noisy = with_imputed(representation, {missing: noise}, available)
        (refined,) = refined_features(self.refiner, [noisy], corrected=(available,))
        return with_imputed(noisy, refined, available)

    def imputation_losses(
        self, representation: Representation, missing: Sequence[str], answer: Tensor
    ) -> dict[str, Tensor]:
        """Return the answer losses of each imputation and, for a complete batch, "ave" (L_ave)."""
        completed = {m: self.impute(representation, m) for m in missing or MODALITIES}
        losses = imputed_answer_losses(self.backbone, completed, answer)
        return losses if missing else losses | {"ave": refine_loss(self.refiner, representation)}
