"""Blocks that several backbones and methods share: question encoder, audio stem, groundings, constants.

No block knows a store, a batch or a missing-modality method.
Source: AVST, Li et al., "Learning to Answer Questions in Dynamic Audio-Visual Scenarios", CVPR 2022.
"""

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.store.schema import MODALITIES
from train.interfaces import Backbone

LEAST_DEVIATION = 1e-2
# Of channels scaled to variance 1: what varies less is mostly noise to a few hundred videos, and shrinks. AVST on the
# demo's clips answers better at 0.1 and 0.3 than at 0.001, where noise is blown up, or at 1.
LEAST_VARIANCE = 0.3


class InputWhitening(nn.Module):
    """Take a fixed mean off the stored channels and mix them so that none tells of another; the identity until `set`.

    The numbers travel with the weights. A stored zero that stands in for a missing feature is moved like any other
    value: it stays as far from real features as it was.
    """

    mean: Tensor
    matrix: Tensor | None

    def __init__(self, channels: int, axis: int = 0) -> None:
        """Whiten features whose axis number `axis` of one time step (0 or -1) has `channels` channels."""
        super().__init__()
        self.axis = axis
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("matrix", None)

    def set(self, mean: Tensor, covariance: Tensor) -> None:
        """Use `mean` [channel] and `covariance` [channel, channel] of what will come.

        Channels are scaled to deviation 1, then whitened symmetrically, so that each stays nearest to itself. What
        hardly varies is not blown up to variance 1: a direction of variance v among the scaled channels comes out with
        v / (v + `LEAST_VARIANCE`), as a ridge shrinks it.
        """
        deviation = covariance.diagonal().clamp_min(0).sqrt().clamp_min(LEAST_DEVIATION)
        variances, directions = torch.linalg.eigh(covariance / deviation[:, None] / deviation)
        whitening = (directions * (variances.clamp_min(0) + LEAST_VARIANCE).rsqrt()) @ directions.T
        self.mean.copy_(mean)
        self.matrix = (whitening / deviation[:, None]).to(self.mean)

    def forward(self, values: Tensor) -> Tensor:
        """Return `values`, [batch, time, channel, ...] or (axis -1) [batch, time, ..., channel], as whitened floats."""
        values = values.to(self.mean.dtype)
        if self.matrix is None:
            return values
        if self.axis == -1:
            return (values - self.mean) @ self.matrix
        return ((values.movedim(2, -1) - self.mean) @ self.matrix).movedim(-1, 2)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        """Make room for a matrix where the weights hold one."""
        if self.matrix is None and f"{prefix}matrix" in state_dict:
            self.matrix = torch.empty_like(state_dict[f"{prefix}matrix"], device=self.mean.device)
        super()._load_from_state_dict(state_dict, prefix, *args)


class QuestionEncoder(nn.Module):
    """Encode question tokens by one LSTM whose last hidden and cell states are both read.

    Source: AVST's released question encoder; padding tokens are words like any other, nothing is packed.
    """

    def __init__(self, words: int, channels: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, channels)
        self.lstm = nn.LSTM(channels, channels, batch_first=True)
        self.output = nn.Linear(2 * channels, channels)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return [batch, channel] for int tokens [batch, token]; a question that stands twice is encoded once."""
        texts, text_of_row = tokens.long().unique(dim=0, return_inverse=True)
        _, (hidden, cell) = self.lstm(torch.tanh(self.embedding(texts)))
        return self.output(torch.tanh(torch.cat((hidden[0], cell[0]), dim=-1))).index_select(0, text_of_row)


class AudioStem(nn.Module):
    """Lift a stored audio vector to the model's width: Linear, ReLU, Linear."""

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(inputs, channels), nn.ReLU(), nn.Linear(channels, channels))

    def forward(self, audio: Tensor) -> Tensor:
        """Return [batch, time, channel] for [batch, time, input]."""
        return self.layers(audio)


class SpatialGrounding(nn.Module):
    """Turn each step's map into one vector, looking where the sound points.

    The map's mean g is joined with r, the mean of its location vectors (normalised to length one) under the
    softmax of their cosines with the audio vector, temperature 1. A zero audio vector gives equal cosines, so
    that r becomes the plain mean of the normalised map: this is what stands where a step has no sound.

    Source: AVST section 3.2. Differs from the released code: no normalised copy of the map is made.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.output = nn.Linear(2 * channels, channels)

    def forward(self, maps: Tensor, audio: Tensor) -> Tensor:
        """Return [batch, time, channel].

        `maps` is [batch, time, channel, height, width], `audio` [batch, time, channel].
        """
        locations = maps.flatten(0, 1).flatten(2)
        lengths = locations.norm(dim=1).clamp_min(1e-12)
        direction = F.normalize(audio.flatten(0, 1), dim=-1)
        cosines = torch.bmm(direction.unsqueeze(1), locations).squeeze(1) / lengths
        weights = cosines.softmax(dim=-1) / lengths
        grounded = torch.bmm(locations, weights.unsqueeze(2)).squeeze(2)
        joined = torch.cat((locations.mean(dim=2), grounded), dim=-1)
        return self.output(torch.tanh(joined)).unflatten(0, maps.shape[:2])


class TemporalGrounding(nn.Module):
    """Let the question attend to the steps of one modality; a feed-forward block and a norm follow.

    As released, the attention has no residual from the question.
    """

    def __init__(self, channels: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(channels, heads, dropout=dropout, batch_first=True)
        self.feed_forward = nn.Sequential(
            nn.Linear(channels, channels),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(channels, channels),
            nn.Dropout(dropout),
        )
        self.norm = nn.LayerNorm(channels)

    def forward(self, question: Tensor, steps: Tensor, mask: Tensor, prompts: Tensor | None = None) -> Tensor:
        """Return [batch, channel].

        `question` [batch, channel] asks `steps` [batch, time, channel] where `mask` [batch, time] is True,
        and `prompts` [prompt, channel], which join keys and values only.
        """
        if prompts is not None:
            steps = torch.cat((prompts.expand(len(steps), -1, -1), steps), dim=1)
            mask = torch.cat((mask.new_ones(len(mask), len(prompts)), mask), dim=1)
        attended, _ = self.attention(question.unsqueeze(1), steps, steps, key_padding_mask=~mask, need_weights=False)
        attended = attended.squeeze(1)
        return self.norm(attended + self.feed_forward(attended))


class MatchHead(nn.Module):
    """Tell whether a picture vector and an audio vector belong to the same second of the same video."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        widths = [2 * channels, channels, channels // 2, channels // 4]
        hidden = [layer for pair in pairwise(widths) for layer in (nn.Linear(*pair), nn.ReLU())]
        self.layers = nn.Sequential(*hidden, nn.Linear(widths[-1], 2))

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        """Return logits [..., 2] (class 1: they match) for two [..., channel] tensors."""
        return self.layers(torch.cat((audio, visual), dim=-1))


class LearnedConstants(nn.Module):
    """One learned vector per modality at the pooled level, where a method lets nothing else stand in."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.vectors = nn.ParameterDict({m: nn.Parameter(torch.zeros(backbone.channels)) for m in MODALITIES})

    def forward(self, modalities: tuple[str, ...], rows: int) -> dict[str, Tensor]:
        """Return {modality: [batch, channel]} for `rows` questions."""
        return {modality: self.vectors[modality].expand(rows, -1) for modality in modalities}


def masked_mean(steps: Tensor, mask: Tensor) -> Tensor:
    """Return [batch, channel]: the mean of [batch, time, channel] over the steps in `mask` [batch, time]."""
    weights = mask.to(steps.dtype)
    return torch.einsum("btc,bt->bc", steps, weights) / weights.sum(1, keepdim=True).clamp_min(1)


def blank(values: Tensor, mask: Tensor) -> Tensor:
    """Return `values` [batch, time, ...] with zeros at the steps that `mask` [batch, time] lacks."""
    hidden = ~mask.view(*mask.shape, *[1] * (values.dim() - 2))
    return values.masked_fill(hidden, 0)
