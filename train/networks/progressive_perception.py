"""The parts of PSTP-Net: choosing by attention, attending to two streams, perceiving step by step what was asked for.

Source: Li et al., "Progressive Spatio-temporal Perception for Audio-Visual Question Answering", ACM MM 2023.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.store.schema import MODALITIES
from train.networks.layers import TemporalGrounding, masked_mean


@dataclass(frozen=True)
class Tokens:
    """A part of the fused sequence: `values` [batch, token, channel], `mask` bool [batch, token], False where void."""

    values: Tensor
    mask: Tensor

    def mean(self) -> Tensor:
        """Return [batch, channel], over the tokens that are there."""
        return masked_mean(self.values, self.mask)


def join(parts: Sequence[Tokens]) -> Tokens:
    """Return the parts as one sequence."""
    return Tokens(torch.cat([p.values for p in parts], 1), torch.cat([p.mask for p in parts], 1))


class Selector(nn.Module):
    """Choose the items that the question attends to most: a multi-head attention of which only the weights are used.

    It has no values and no output, and no bias of the keys: that would shift all scores of a question alike.
    It begins as `nn.MultiheadAttention` does. Weights are taken without dropout, so that the choice has no noise.
    """

    def __init__(self, channels: int, heads: int, count: int) -> None:
        super().__init__()
        self.heads, self.count = heads, count
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels, bias=False)
        for weight in (self.query.weight, self.key.weight):
            nn.init.xavier_uniform_(weight, gain=0.5**0.5)
        nn.init.zeros_(self.query.bias)

    def weights(self, question: Tensor, items: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return weights [batch, group, item], the mean over heads; those of a group sum to one.

        `question` [batch, channel], `items` [batch, group, item, channel], `mask` bool [batch, group, item]. The
        query goes through the projection of the keys, once, instead of every item.
        """
        asked = self.query(question).unflatten(1, (self.heads, -1))
        pointer = torch.einsum("bhe,hec->bhc", asked, self.key.weight.unflatten(0, (self.heads, -1)))
        scores = torch.einsum("bhc,bgnc->bghn", pointer, items) / asked.shape[-1] ** 0.5
        if mask is not None:
            scores = scores.masked_fill(~mask.unsqueeze(2), torch.finfo(scores.dtype).min)
        return scores.softmax(-1).mean(2)

    def choose(self, weights: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return positions int64 [batch, group, chosen] of the heaviest items, in their own order, and their gates.

        An item outside `mask` is chosen only when none inside it is left. A gate is exactly one and has the gradient
        of its item's weight: what is multiplied by it tells the selector what its choice was worth.
        """
        ranked = weights if mask is None else weights.masked_fill(~mask, -1)
        heaviest = torch.sort(ranked, dim=-1, descending=True, stable=True).indices[..., : self.count]
        positions = heaviest.sort(-1).values
        chosen = weights.gather(-1, positions)
        return positions, chosen - chosen.detach() + 1


class HybridAttention(nn.Module):
    """Let tokens attend to one another and, if so built, to another stream; a feed-forward block follows, post-norm."""

    def __init__(self, channels: int, dropout: float, *, crosses: bool) -> None:
        super().__init__()
        self.self_attention = nn.MultiheadAttention(channels, 1, dropout=dropout, batch_first=True)
        if crosses:
            self.cross_attention = nn.MultiheadAttention(channels, 1, dropout=dropout, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.attention_norm = nn.LayerNorm(channels)
        self.feed_forward = nn.Sequential(
            nn.Linear(channels, channels),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(channels, channels),
            nn.Dropout(dropout),
        )
        self.output_norm = nn.LayerNorm(channels)

    def forward(self, tokens: Tokens, other: Tokens | None = None, prompts: Tokens | None = None) -> Tokens:
        """Return `tokens` after attending to themselves and to `other`; `prompts` join their keys and values."""
        keys = tokens if prompts is None else join([prompts, tokens])
        attended = tokens.values + self.dropout(_attend(self.self_attention, tokens, keys))
        if other is not None:
            attended = attended + self.dropout(_attend(self.cross_attention, tokens, other))
        values = self.attention_norm(attended)
        return Tokens(self.output_norm(values + self.feed_forward(values)), tokens.mask)


class Perception(nn.Module):
    """Select segments and regions, let sound look at the regions, let sound and picture attend to each other.

    Where a modality has no steps, its half of a segment is zero and its part in the rest falls away. Segments serve as
    keys alone, so that their projection has no bias, which all of them would share.
    Source: section 3 of the paper. Differs from the released code: see `train.backbones.pstp.Pstp`.
    """

    def __init__(
        self,
        patch_channels: int,
        channels: int,
        heads: int,
        dropout: float,
        *,
        segment_length: int,
        top_segments: int,
        top_patches: int,
        layers: int,
    ) -> None:
        super().__init__()
        self.segment_length = segment_length
        self.segment_stem = nn.Linear(2 * channels, channels, bias=False)
        self.segment_selector = Selector(channels, heads, top_segments)
        self.patch_stem = nn.Linear(patch_channels, channels)
        self.patch_selector = Selector(channels, heads, top_patches)
        # A sound asks the patches of its second as AVST's question asks seconds: the block is the same.
        self.audio_guided = TemporalGrounding(channels, heads, dropout)
        self.global_local = nn.ModuleList(HybridAttention(channels, dropout, crosses=True) for _ in range(layers))

    def forward(self, question: Tensor, steps: dict[str, Tokens], patches: Tensor | None) -> dict[str, list[Tokens]]:
        """Return {modality: what joins its steps in the fusion}.

        `question` [batch, channel]; `steps` of one modality or both, zero where void; `patches` [batch, time, patch,
        channel of the store], or None where the picture has none.
        """
        segments, gates = self.choose_segments(question, steps)
        gates = gates.repeat_interleave(self.segment_length, 1).unsqueeze(-1)
        perceived = {m: [tokens] for m, tokens in self.attend_globally(steps).items()}
        for modality, tokens in steps.items():
            values = gates * self.gather(tokens.values, segments)
            perceived[modality].append(Tokens(values, self.gather(tokens.mask, segments)))
        if patches is None:
            return perceived
        there = perceived["visual"][-1].mask
        regions = self.select_regions(question, self.patch_stem(self.gather(patches, segments)))
        regions = gates.unsqueeze(-1) * regions
        perceived["visual"].append(Tokens(regions.flatten(1, 2), there.repeat_interleave(regions.shape[2], 1)))
        if "audio" in perceived:
            audio = perceived["audio"][-1]
            perceived["visual"].append(Tokens(self.guide(audio.values, regions), there & audio.mask))
        return perceived

    def choose_segments(self, question: Tensor, steps: dict[str, Tokens]) -> tuple[Tensor, Tensor]:
        """Return positions int64 [batch, chosen] of segments in the order of time, and their gates."""
        segments, there = self.segments(steps)
        weights = self.segment_selector.weights(question, segments.unsqueeze(1), there.unsqueeze(1))
        positions, gates = self.segment_selector.choose(weights, there.unsqueeze(1))
        return positions.squeeze(1), gates.squeeze(1)

    def segments(self, steps: dict[str, Tokens]) -> tuple[Tensor, Tensor]:
        """Return [batch, segment, channel], from the means of both modalities, and whether any step is in a segment."""
        cut = {m: Tokens(self._cut(tokens.values), self._cut(tokens.mask)) for m, tokens in steps.items()}
        means = {
            m: masked_mean(part.values.flatten(0, 1), part.mask.flatten(0, 1)).unflatten(0, part.mask.shape[:2])
            for m, part in cut.items()
        }
        nothing = torch.zeros_like(next(iter(means.values())))
        both = torch.cat([means.get(m, nothing) for m in MODALITIES], dim=-1)
        there = torch.stack([part.mask.any(2) for part in cut.values()]).any(0)
        return self.segment_stem(torch.tanh(both)), there

    def gather(self, values: Tensor, segments: Tensor) -> Tensor:
        """Return the steps [batch, step, ...] of `segments` [batch, chosen] out of `values` [batch, time, ...]."""
        index = segments.view(*segments.shape, *[1] * (values.dim() - 1))
        return torch.take_along_dim(self._cut(values), index, 1).flatten(1, 2)

    def select_regions(self, question: Tensor, patches: Tensor) -> Tensor:
        """Return [batch, time, chosen, channel], each second's own best of `patches` [batch, time, patch, channel]."""
        positions, gates = self.patch_selector.choose(self.patch_selector.weights(question, patches))
        return gates.unsqueeze(-1) * torch.take_along_dim(patches, positions.unsqueeze(-1), 2)

    def guide(self, audio: Tensor, regions: Tensor) -> Tensor:
        """Return [batch, time, channel]: what `audio` of that shape sees in the `regions` of its second."""
        everywhere = regions.new_ones(regions.shape[:3], dtype=torch.bool)
        seen = self.audio_guided(audio.flatten(0, 1), regions.flatten(0, 1), everywhere.flatten(0, 1))
        return seen.unflatten(0, audio.shape[:2])

    def attend_globally(self, steps: dict[str, Tokens]) -> dict[str, Tokens]:
        """Return `steps` after each modality attended to itself and the other: audio first, visual to the new audio."""
        streams = dict(steps)
        for layer in self.global_local:
            for modality in (m for m in MODALITIES if m in streams):
                other = next((tokens for m, tokens in streams.items() if m != modality), None)
                streams[modality] = layer(streams[modality], other)
        return streams

    def _cut(self, values: Tensor) -> Tensor:
        """Return [batch, segment, step, ...] of [batch, time, ...]; the last segment is filled up with zeros."""
        lacking = -values.shape[1] % self.segment_length
        if lacking:
            values = torch.cat((values, values.new_zeros(len(values), lacking, *values.shape[2:])), 1)
        return values.unflatten(1, (-1, self.segment_length))


def _attend(attention: nn.MultiheadAttention, tokens: Tokens, others: Tokens) -> Tensor:
    values, nowhere = others.values, ~others.mask
    attended: Tensor = attention(tokens.values, values, values, key_padding_mask=nowhere, need_weights=False)[0]
    return attended
