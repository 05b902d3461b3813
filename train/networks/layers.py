"""Blocks that several backbones and methods share: input whitening, question encoder, audio stem, grounding, constants.

Source: AVST, Li et al., "Learning to Answer Questions in Dynamic Audio-Visual Scenarios", CVPR 2022; input whitening
and constants are ours.
"""

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.store.schema import MODALITIES
from train.interfaces import Backbone

LEAST_DEVIATION = 1e-2
# Directions of less variance, among channels scaled to variance 1, are mostly noise in a few hundred videos, and are
# shrunk. On the demo's clips AVST answers better with 0.1 and 0.3 than with 0.001, which amplifies noise, or with 1.
LEAST_VARIANCE = 0.3


class InputWhitening(nn.Module):
    """Subtract a fixed mean from the stored channels and decorrelate them; the identity until `set` is called.

    Mean and matrix are saved with the weights. A zero that replaces a missing feature is transformed like any other
    value and stays as far from real features as before.
    """

    mean: Tensor
    matrix: Tensor | None

    def __init__(self, channels: int, axis: int = 0) -> None:
        """Whiten features with `channels` channels, which are axis `axis` (0 or -1) of one time step."""
        super().__init__()
        self.axis = axis
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("matrix", None)

    def set(self, mean: Tensor, covariance: Tensor) -> None:
        """Whiten with the `mean` [channel] and `covariance` [channel, channel] of the training features.

        Channels are scaled to standard deviation 1, then whitened symmetrically (ZCA), so that each output channel
        stays closest to its input. Directions of little variance are not amplified to variance 1: a variance v of the
        scaled channels becomes v / (v + `LEAST_VARIANCE`), the shrinkage of ridge regression.
        """
        deviation = covariance.diagonal().clamp_min(0).sqrt().clamp_min(LEAST_DEVIATION)
        variances, directions = torch.linalg.eigh(covariance / deviation[:, None] / deviation)
        whitening = (directions * (variances.clamp_min(0) + LEAST_VARIANCE).rsqrt()) @ directions.T
        self.mean.copy_(mean)
        self.matrix = (whitening / deviation[:, None]).to(self.mean)

    def forward(self, values: Tensor) -> Tensor:
        """Return whitened `values`, as floats.

        Their shape is [batch, time, channel, ...], with axis -1 [batch, time, ..., channel].
        """
        values = values.to(self.mean.dtype)
        if self.matrix is None:
            return values
        if self.axis == -1:
            return (values - self.mean) @ self.matrix
        return ((values.movedim(2, -1) - self.mean) @ self.matrix).movedim(-1, 2)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        """Allocate the matrix if the state dict has one."""
        if self.matrix is None and f"{prefix}matrix" in state_dict:
            self.matrix = torch.empty_like(state_dict[f"{prefix}matrix"], device=self.mean.device)
        super()._load_from_state_dict(state_dict, prefix, *args)


class QuestionEncoder(nn.Module):
    """Encode question tokens with one LSTM; its last hidden and cell states are joined by a linear layer.

    Source: AVST's released question encoder. As released, padding tokens are read like words (no packing).
    """

    def __init__(self, words: int, channels: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, channels)
        self.lstm = nn.LSTM(channels, channels, batch_first=True)
        self.output = nn.Linear(2 * channels, channels)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return [batch, channel] for int tokens [batch, token]; equal questions are encoded once."""
        texts, text_of_row = tokens.long().unique(dim=0, return_inverse=True)
        _, (hidden, cell) = self.lstm(torch.tanh(self.embedding(texts)))
        return self.output(torch.tanh(torch.cat((hidden[0], cell[0]), dim=-1))).index_select(0, text_of_row)


class AudioStem(nn.Module):
    """Project stored audio vectors to the model's width: Linear, ReLU, Linear."""

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(inputs, channels), nn.ReLU(), nn.Linear(channels, channels))

    def forward(self, audio: Tensor) -> Tensor:
        """Return [batch, time, channel] for [batch, time, input]."""
        return self.layers(audio)


class SpatialGrounding(nn.Module):
    """Pool the map of each time step into one vector, attending to its locations by audio.

    The mean g of the map is concatenated with r, the attention-weighted mean of its location vectors, which are
    normalised to length 1; the weights are the softmax (temperature 1) of their cosines with the audio vector. With a
    zero audio vector all cosines are equal and r is the plain mean of the normalised map: this is how a step without
    audio is grounded.

    Source: the spatial grounding module of AVST. Differs from the released code: the normalised map is never stored.
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
    """Attention of the question to the time steps of one modality, followed by a feed-forward block and a layer norm.

    As released, the attention has no residual connection from the question.
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

        `question` [batch, channel] attends to `steps` [batch, time, channel] where `mask` [batch, time] is True, and to
        `prompts` [prompt, channel], if given.
        """
        if prompts is not None:
            steps = torch.cat((prompts.expand(len(steps), -1, -1), steps), dim=1)
            mask = torch.cat((mask.new_ones(len(mask), len(prompts)), mask), dim=1)
        attended, _ = self.attention(question.unsqueeze(1), steps, steps, key_padding_mask=~mask, need_weights=False)
        attended = attended.squeeze(1)
        return self.norm(attended + self.feed_forward(attended))


class MatchHead(nn.Module):
    """Classify whether an audio and a visual vector belong to the same time step of the same video."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        widths = [2 * channels, channels, channels // 2, channels // 4]
        hidden = [layer for pair in pairwise(widths) for layer in (nn.Linear(*pair), nn.ReLU())]
        self.layers = nn.Sequential(*hidden, nn.Linear(widths[-1], 2))

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        """Return logits [..., 2] (class 1: they match) for `audio` and `visual` [..., channel]."""
        return self.layers(torch.cat((audio, visual), dim=-1))


class LearnedConstants(nn.Module):
    """One learned vector per modality, used at the pooled level in place of a missing modality."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.vectors = nn.ParameterDict({m: nn.Parameter(torch.zeros(backbone.channels)) for m in MODALITIES})

    def forward(self, modalities: tuple[str, ...], rows: int) -> dict[str, Tensor]:
        """Return {modality: [batch, channel]} for `rows` questions."""
        return {modality: self.vectors[modality].expand(rows, -1) for modality in modalities}


def masked_mean(steps: Tensor, mask: Tensor) -> Tensor:
    """Return [batch, channel]: the mean of `steps` [batch, time, channel] where `mask` [batch, time] is True."""
    weights = mask.to(steps.dtype)
    return torch.einsum("btc,bt->bc", steps, weights) / weights.sum(1, keepdim=True).clamp_min(1)


def zero_missing_steps(values: Tensor, mask: Tensor) -> Tensor:
    """Return `values` [batch, time, ...] with zeros where `mask` [batch, time] is False."""
    is_missing = ~mask.view(*mask.shape, *[1] * (values.dim() - 2))
    return values.masked_fill(is_missing, 0)
