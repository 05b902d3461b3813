"""AVR: refine the features of both modalities together, by running a diffusion backwards from them.

It invents no feature of its own: what stands for a missing modality is given to it, by `train.methods.rmm_avr` from
the slots of RMM, by the method `avr` here as plain noise.
Source: "Learning Trimodal Relation for AVQA with Missing Modality" (ECCV 2024), section 3.2, Eq. 5-7.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.errors import UserError
from pipeline.store.schema import MODALITIES
from train.data.scenarios import OTHER
from train.interfaces import Backbone, Representation
from train.methods.imputation import ImputingMethod, RunningMoments, imputed_answer_losses, scatter_rows, with_imputed
from train.networks.diffusion import GaussianDiffusion, Objective
from train.networks.diffusion_unet import UNet

Scaling = Literal["none", "standardised", "clamped"]
SMALLEST_VARIANCE = 1e-6
FILL_SEED = 0


@dataclass(frozen=True)
class RefineSettings:
    """What the diffusion predicts, how its values are scaled, where it starts and how features are read back.

    `objective`: "noise" (Eq. 7) or "v". `scaling`: "none"; "standardised", per channel by running moments of the real
    pairs, undone at the end; "clamped", clean estimates held in [-1, 1] and mapped to [0, 1] at the end. `readout` of
    the audio vector from the map: "mean" of the cells or the "corner" (0, 0). `start`: the features enter at the
    "last" step as they are, or at the "middle" one, shrunk as its noising would shrink them. `correction`: features
    that were given come back with what the diffusion adds to them, instead of being made anew; it begins as nothing.
    `stochastic`: the chain adds its noise in training (in evaluation it never does). `detached`: the diffusion's own
    loss does not shape the features. `one_sided`: training questions on videos that lack a modality are used too.
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
    """Steps of the diffusion and widths of its U-Net; the defaults are the paper's, where it names them.

    `width`: channels of the joint map that is diffused (None: those of the visual map, as released).
    `gradient_steps`: only the last so many network calls of a reverse chain get a gradient (None: all).
    `recompute`: activations of a chain are recomputed in the backward pass instead of kept.
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
    """Join an audio vector and a map of the same second, diffuse the joint map backwards, read both back.

    The vector is repeated over the cells and stands first; 1x1 convolutions go from both channels to the map's and back
    (524,800 and 525,312 parameters at 512 channels each). `shapes`: {"audio": (channel,), "visual": (channel, height,
    width), (channel,), or (token, channel)}. Of tokens the first sums the picture up and is treated like the audio
    vector; the others are the cells of a square.

    Source: section 3.2; the repetition, the convolutions and the read-out are the released code's, the paper says
    only that features are concatenated and separated. Differs from the released code: see `RefineSettings`; the
    variant "released" computes the same numbers. "recommended" mends three things: values are scaled to the unit
    variance that the schedule supposes; the chain starts in the middle, because at the last step of ten the
    schedule leaves 0.6 % of a signal, so that what is known of the video would be lost; and it corrects the features
    instead of making them anew through a narrower map.
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
        """Return L_ave (scalar) of real pairs: `audio` [row, channel], `visual` [row, *shape of a step].

        Source: Eq. 7. Draws steps and noise from torch's default generator.
        """
        joint = self._joined(audio, visual)
        if self.settings.detached:
            joint = joint.detach()
        if self.training:
            self.moments.update(joint.movedim(1, -1).flatten(0, 2).detach())
        return self.diffusion.loss(self._scaled(joint))

    def refine(
        self,
        audio: Tensor,
        visual: Tensor,
        *,
        given: tuple[str, ...] = MODALITIES,
        noises: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return refined `audio` [row, channel] and `visual` [row, *shape of a step].

        `given`: the modalities whose values mean something (the others are noise), so that they can be corrected.
        `noises` [step, row, channel, height, width]: the noise of the chain; without it, none in evaluation and
        where the settings say so, else a draw from torch's default generator. Source: Fig. 4b.
        """
        start = self._scaled(self._joined(audio, visual))
        if noises is None and self.training and self.settings.stochastic:
            noises = self.diffusion.draw_noises(start)
        first_step = self.sizes.steps - 1
        if self.settings.start == "middle":
            first_step = (self.sizes.steps - 1) // 2
            start = self.diffusion.kept[first_step].sqrt() * start
        end = self.diffusion.reverse(
            start,
            first_step=first_step,
            noises=noises,
            clamp=self.settings.scaling == "clamped",
            gradient_steps=self.sizes.gradient_steps,
            recompute=self.sizes.recompute,
        )
        new_audio, new_visual = self._read(self._unscaled(end))
        if self.settings.correction:
            new_audio = audio + new_audio if "audio" in given else new_audio
            new_visual = visual + new_visual if "visual" in given else new_visual
        return new_audio, new_visual

    def _joined(self, audio: Tensor, visual: Tensor) -> Tensor:
        """Convolve the vector, repeated over all cells, with the map; the repetition is never written out."""
        weight = self.join.weight
        vector, cells = self._unfold(audio, visual)
        of_vector = F.linear(vector, weight[:, : self.split, 0, 0], self.join.bias)
        return F.conv2d(cells, weight[:, self.split :]) + of_vector[:, :, None, None]

    def _read(self, joint: Tensor) -> tuple[Tensor, Tensor]:
        weight, bias = self.read.weight, self.read.bias
        assert bias is not None
        vector = joint.mean((2, 3)) if self.settings.readout == "mean" else joint[:, :, 0, 0]
        vector = F.linear(vector, weight[: self.split, :, 0, 0], bias[: self.split])
        cells = F.conv2d(joint, weight[self.split :], bias[self.split :])
        return self._fold(vector, cells)

    def _unfold(self, audio: Tensor, visual: Tensor) -> tuple[Tensor, Tensor]:
        """Return what is repeated over the cells [row, channel], and the map [row, channel, height, width]."""
        if self.is_map:
            return audio, visual
        if not self.side:
            return audio, visual[:, :, None, None]
        cells = visual[:, 1:].mT.unflatten(2, (self.side, self.side))
        return torch.cat((audio, visual[:, 0]), 1), cells

    def _fold(self, vector: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
        """Return audio and visual features of what `_unfold` makes of them."""
        if self.is_map:
            return vector, cells
        if not self.side:
            return vector, cells[:, :, 0, 0]
        audio, summary = vector[:, : self.audio_channels], vector[:, self.audio_channels :]
        return audio, torch.cat((summary[:, None], cells.flatten(2).mT), 1)

    def _scaled(self, joint: Tensor) -> Tensor:
        if self.settings.scaling != "standardised":
            return joint
        return (joint - _cells(self.moments.mean)) / _cells(self._deviation())

    def _unscaled(self, clean: Tensor) -> Tensor:
        if self.settings.scaling == "clamped":
            return (clean + 1) / 2
        if self.settings.scaling == "none":
            return clean
        return clean * _cells(self._deviation()) + _cells(self.moments.mean)

    def _deviation(self) -> Tensor:
        return self.moments.variance.clamp_min(SMALLEST_VARIANCE).sqrt()


def refined_features(
    refiner: AudioVisualRefiner, representation: Representation, *, given: tuple[str, ...] = MODALITIES
) -> dict[str, Tensor]:
    """Return {modality: [batch, time, ...]}, both modalities refined where `representation` has both."""
    both = representation.masks["audio"] & representation.masks["visual"]
    rows = (representation.features[m][both] for m in MODALITIES)
    refined = refiner.refine(*rows, given=given)
    return {m: scatter_rows(values, both) for m, values in zip(MODALITIES, refined, strict=True)}


def refine_loss(refiner: AudioVisualRefiner, representation: Representation) -> Tensor:
    """Return L_ave (scalar) over the real steps where both modalities are there. Source: Eq. 7."""
    both = representation.masks["audio"] & representation.masks["visual"]
    if not both.any():
        return representation.question.new_zeros(())
    return refiner.loss(*(representation.features[m][both] for m in MODALITIES))


def refine_settings(variant: str) -> RefineSettings:
    """Return the settings of `variant`; UserError where it is unknown."""
    if variant not in REFINE_VARIANTS:
        raise UserError(f"variant {variant!r} is unknown; take one of {', '.join(REFINE_VARIANTS)}")
    return REFINE_VARIANTS[variant]


class NoiseFill(nn.Module):
    """Stand-in features that mean nothing: fresh standard normal noise in training, one fixed draw in evaluation.

    The fixed draw makes a prediction independent of the batch that it is made in.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(FILL_SEED)
        for modality in MODALITIES:
            self.register_buffer(modality, torch.randn(tuple(shapes[modality]), generator=generator))

    def forward(self, modality: str, mask: Tensor) -> Tensor:
        """Return [batch, time, *shape of modality] for `mask` [batch, time]."""
        fixed = self.get_buffer(modality).expand(*mask.shape, *self.get_buffer(modality).shape)
        return torch.randn_like(fixed) if self.training else fixed


class Avr(ImputingMethod):
    """Answer from refined features where a modality is missing, noise standing for it: the diffusion alone.

    Training asks every complete question three times, as it is and with either modality replaced, and adds the
    diffusion's loss: L = sum of the three answer losses + refine_weight x L_ave.
    Source: section 3.2, the row "AVR" of table 4; the paper does not say what enters for the missing half, noise is
    our reading. Differs from the released code: it has no such mode.
    """

    variants = ("recommended", "paper", "released")

    def __init__(
        self,
        backbone: Backbone,
        *,
        variant: str = "recommended",
        steps: int = 10,
        schedule: str = "sigmoid",
        dim: int = 64,
        mults: Sequence[int] = (1, 2),
        stem_kernel: int = 7,
        width: int | None = None,
        gradient_steps: int | None = None,
        recompute: bool = False,
        refine_weight: float = 1.0,
    ) -> None:
        settings = refine_settings(variant)
        sizes = DiffusionSizes(steps, schedule, dim, tuple(mults), stem_kernel, width, gradient_steps, recompute)
        trains_on = "all" if settings.one_sided else "complete"
        super().__init__(backbone, loss_weights={"ave": refine_weight}, trains_on=trains_on)
        self.refiner = AudioVisualRefiner(backbone.feature_shapes, sizes=sizes, settings=settings)
        self.fill = NoiseFill(backbone.feature_shapes)

    def impute(self, representation: Representation, missing: str) -> Representation:
        """Return `representation` with both modalities refined, noise in the place of `missing` before."""
        available = OTHER[missing]
        noise = self.fill(missing, representation.masks[available])
        noisy = with_imputed(representation, {missing: noise}, available)
        return with_imputed(noisy, refined_features(self.refiner, noisy, given=(available,)), available)

    def imputation_losses(
        self, representation: Representation, missing: Sequence[str], answer: Tensor
    ) -> dict[str, Tensor]:
        """Return the answer losses with each modality replaced and, of a complete batch, "ave" (L_ave)."""
        completed = {m: self.impute(representation, m) for m in missing or MODALITIES}
        losses = imputed_answer_losses(self.backbone, completed, answer)
        return losses if missing else losses | {"ave": refine_loss(self.refiner, representation)}


def _cells(values: Tensor) -> Tensor:
    return values[:, None, None]
