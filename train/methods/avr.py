"""AVR: refine the features of both modalities together, by the reverse chain of a diffusion over their joint map.

It refines features that are given, real or imputed: `train.methods.rmm_avr` imputes them with RMM, the method `avr`
here uses noise.
Source: "Learning Trimodal Relation for AVQA with Missing Modality" (ECCV 2024), section 3.2, Eq. 5-7.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
    matches_imputed,
    with_imputed,
)
from train.methods.losses import Weight
from train.networks.diffusion import GaussianDiffusion, Objective
from train.networks.diffusion_unet import UNet
from train.networks.narrow_chain import reverse_narrow

Scaling = Literal["none", "standardised", "halved"]
Join = Literal["learned", "concatenated"]
RefineError = Literal["mean", "sum"]
SMALLEST_VARIANCE = 1e-6
FILL_SEED = 0


@dataclass(frozen=True)
class RefineSettings:
    """Settings of `AudioVisualRefiner`; `REFINE_VARIANTS` lists them for "paper", "released" and "recommended".

    `objective`: what the U-Net predicts, "noise" (Eq. 7) or "v".
    `error`: reduction of the squared errors of a step's elements in Eq. 7, "mean" or "sum", before the mean over steps.
    `schedule`: of the noise (`train.networks.diffusion.SCHEDULES`).
    `join`: how the audio vector, repeated over the cells, and the visual map become the joint map. "learned": a 1x1
    convolution, and another one back. "concatenated": their channels, without parameters.
    `scaling`: of the joint map. "none". "standardised": per channel by moments of real pairs, and undone at the end.
    "halved": the result x is mapped to (x + 1) / 2.
    `clamp`: clean estimates in the reverse chain are clamped to [-1, 1].
    `readout`: cell of the joint map that gives the audio vector, the "mean" of all cells or the "corner" (0, 0).
    `start`: step at which the joint map enters the reverse chain: the "last", unscaled, or the "middle", scaled by
    sqrt(alpha-bar) as forward noising does.
    `correction`: the output is added to the input features instead of replacing them; it is zero before training.
    `stochastic`: the reverse chain adds its noise in training; in evaluation it never does.
    `detached`: L_ave trains the U-Net only; it gives no gradient to the features or the joining convolution.
    """

    objective: Objective = "noise"
    error: RefineError = "mean"
    schedule: str = "sigmoid"
    join: Join = "learned"
    scaling: Scaling = "none"
    clamp: bool = False
    readout: Literal["mean", "corner"] = "mean"
    start: Literal["last", "middle"] = "last"
    correction: bool = False
    stochastic: bool = True
    detached: bool = False


REFINE_VARIANTS = {
    "paper": RefineSettings(schedule="ddpm", clamp=True),
    "released": RefineSettings(objective="v", scaling="halved", clamp=True, readout="corner"),
    "recommended": RefineSettings(
        scaling="standardised", start="middle", correction=True, stochastic=False, detached=True
    ),
}


@dataclass(frozen=True)
class DiffusionSizes:
    """Steps of the diffusion and sizes of its U-Net; the defaults are the paper's where it states them.

    `steps`: T of the paper. `dim`, `mults`, `stem_kernel`: widths of the U-Net and side of its first convolution
    (`UNet`). `width`: channels of a learned joint map (None: as many as the visual map, as released).
    `gradient_steps`: only the last so many U-Net calls of a reverse chain get a gradient (None: all).
    `recompute`: recompute the chain's activations in the backward pass to save memory.
    """

    steps: int = 10
    dim: int = 64
    mults: tuple[int, ...] = (1, 2)
    stem_kernel: int = 7
    width: int | None = None
    gradient_steps: int | None = None
    recompute: bool = False


class AudioVisualRefiner(nn.Module):
    """Join the audio vector and the visual map of a step, run the reverse chain on the joint map, split the result.

    The audio vector, repeated over the cells, and the visual map are concatenated in this order. If the join is
    learned, `join`, a 1x1 convolution, maps them to the joint map, and `read` maps it back (524,800 and 525,312
    parameters at 512 channels each); else they are the joint map, whose U-Net is wider by the vector's channels.
    `shapes`: {"audio": (channel,), "visual": (channel, height, width), (channel,), or (token, channel)}. The first
    visual token summarises the frame and is treated as the audio vector is; the others are the cells of a square map.

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
        if settings.join == "learned":
            self.join = nn.Conv2d(self.split + channels, width, 1)
            self.read = nn.Conv2d(width, self.split + channels, 1)
            if settings.correction:
                for parameter in self.read.parameters():
                    nn.init.zeros_(parameter)
        elif settings.correction or sizes.width:
            raise ValueError(
                "join 'concatenated' has no width of its own and no correction of zero: set width to none, and use the "
                "variant paper or released"
            )
        else:
            width = self.split + channels
        unet = UNet(channels=width, dim=sizes.dim, mults=sizes.mults, stem_kernel=sizes.stem_kernel)
        self.diffusion = GaussianDiffusion(
            unet, steps=sizes.steps, schedule=settings.schedule, objective=settings.objective
        )
        self.first_step = sizes.steps - 1 if settings.start == "last" else (sizes.steps - 1) // 2
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
        loss = self.diffusion.loss(self._scaled(joint))
        return loss * joint[0].numel() if self.settings.error == "sum" else loss

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
        if self.settings.start == "middle":
            start = self.diffusion.alpha_bar[self.first_step].sqrt() * start
        options: dict[str, Any] = {
            "first_step": self.first_step,
            "noises": noises,
            "gradient_steps": self.sizes.gradient_steps,
            "recompute": self.sizes.recompute,
        }
        if self.settings.clamp:
            end = self.diffusion.reverse(start, clamp=True, **options)
        else:
            end = reverse_narrow(self.diffusion, start, **options)
        new_audio, new_visual = self._read(self._unscaled(end))
        if self.settings.correction:
            new_audio = audio + new_audio if "audio" in corrected else new_audio
            new_visual = visual + new_visual if "visual" in corrected else new_visual
        return new_audio, new_visual

    def _joined(self, audio: Tensor, visual: Tensor) -> Tensor:
        """Return the joint map [row, channel, height, width].

        A learned join does not materialise the repeated audio vector.
        """
        vector, cells = self._unfold(audio, visual)
        if self.settings.join == "concatenated":
            return torch.cat((vector[:, :, None, None].expand(*vector.shape, *cells.shape[2:]), cells), 1)
        weight = self.join.weight
        from_vector = F.linear(vector, weight[:, : self.split, 0, 0], self.join.bias)
        return F.conv2d(cells, weight[:, self.split :]) + from_vector[:, :, None, None]

    def _read(self, joint: Tensor) -> tuple[Tensor, Tensor]:
        """Return the audio and visual features read from the joint map [row, channel, height, width]."""
        vector = joint.mean((2, 3)) if self.settings.readout == "mean" else joint[:, :, 0, 0]
        if self.settings.join == "concatenated":
            return self._fold(vector[:, : self.split], joint[:, self.split :])
        weight, bias = self.read.weight, self.read.bias
        assert bias is not None
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
        if self.settings.scaling == "halved":
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


def refine_settings(variant: str, **choices: Any) -> RefineSettings:
    """Return the settings of `variant` with the `choices` that are not None; raise `UserError` if it is unknown."""
    if variant not in REFINE_VARIANTS:
        raise unknown_name("variant", variant, REFINE_VARIANTS)
    return replace(REFINE_VARIANTS[variant], **{name: value for name, value in choices.items() if value is not None})


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
    named "ave"). `variant`: see `RefineSettings` and `REFINE_VARIANTS`, whose `error`, `schedule`, `join` and `clamp`
    the options `refine_error` to `clamp` replace. `steps` to `recompute`: see `DiffusionSizes`. `match_imputed`: see
    `ImputingMethod`; default: not in the variant "recommended".
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
        dim: PositiveInt = 64,
        mults: Annotated[Sequence[PositiveInt], Field(min_length=1)] = (1, 2),
        stem_kernel: PositiveInt = 7,
        width: PositiveInt | None = None,
        gradient_steps: PositiveInt | None = None,
        recompute: bool = False,
        refine_weight: Weight = 1.0,
        refine_error: RefineError | None = None,
        schedule: str | None = None,
        join: Join | None = None,
        clamp: bool | None = None,
        match_imputed: bool | None = None,
    ) -> None:
        settings = refine_settings(variant, error=refine_error, schedule=schedule, join=join, clamp=clamp)
        sizes = DiffusionSizes(steps, dim, tuple(mults), stem_kernel, width, gradient_steps, recompute)
        super().__init__(
            backbone,
            loss_weights={"ave": refine_weight},
            match_imputed=matches_imputed(variant, match_imputed),
        )
        self.refiner = AudioVisualRefiner(backbone.feature_shapes, sizes=sizes, settings=settings)
        self.diffusion_steps = self.refiner.first_step + 1
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
        losses = self.imputed_answer_losses(completed, answer)
        return losses if missing else losses | {"ave": refine_loss(self.refiner, representation)}
