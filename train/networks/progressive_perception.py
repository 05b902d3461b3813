"""The modules of PSTP-Net: selection by attention, hybrid attention, and the progressive perception built of them.

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
    """A part of the fused sequence: `values` [batch, token, channel], `mask` bool [batch, token], False if missing."""

    values: Tensor
    mask: Tensor

    def mean(self) -> Tensor:
        """Return the mean over the available tokens, [batch, channel]."""
        return masked_mean(self.values, self.mask)


def join(parts: Sequence[Tokens]) -> Tokens:
    """Concatenate `parts` into one sequence."""
    return Tokens(torch.cat([p.values for p in parts], 1), torch.cat([p.mask for p in parts], 1))


class Selector(nn.Module):
    """Select the items that the question attends to most, by the weights of a multi-head attention.

    It has no values, no output projection, and no bias of the keys, which would shift all scores of a question alike.
    It is initialised as `nn.MultiheadAttention`. The weights have no dropout, so that selection is deterministic.
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
        """Return weights [batch, group, item], the mean over heads; those of a group sum to 1.

        `question` [batch, channel], `items` [batch, group, item, channel], `mask` bool [batch, group, item]. Instead of
        projecting every item to a key, the query is multiplied by the key projection once.
        """
        query = self.query(question).unflatten(1, (self.heads, -1))
        projected = torch.einsum("bhe,hec->bhc", query, self.key.weight.unflatten(0, (self.heads, -1)))
        scores = torch.einsum("bhc,bgnc->bghn", projected, items) / query.shape[-1] ** 0.5
        if mask is not None:
            scores = scores.masked_fill(~mask.unsqueeze(2), torch.finfo(scores.dtype).min)
        return scores.softmax(-1).mean(2)

    def select(self, weights: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the positions int64 [batch, group, selected] of the highest weights, ascending, and their gates.

        Missing items, where `mask` is False, are selected only if no others are left. The gates are 1 and have the
        gradient of the items' weights (straight-through): multiplied by its gate, a selected item trains the selector.
        """
        ranked = weights if mask is None else weights.masked_fill(~mask, -1)
        highest = torch.sort(ranked, dim=-1, descending=True, stable=True).indices[..., : self.count]
        positions = highest.sort(-1).values
        selected = weights.gather(-1, positions)
        return positions, selected - selected.detach() + 1


class HybridAttention(nn.Module):
    """Self-attention, optionally summed with cross-attention to another sequence, then feed-forward; post-norm.

    x <- LN(x + self-attention(x) + cross-attention(x, y)), then x <- LN(x + feed-forward(x)), with one head and dropout
    on each term.
    Source: the global-local perception of section 3 of the paper, and its fusion, which has no cross-attention.
    """

    def __init__(self, channels: int, dropout: float, *, has_cross_attention: bool) -> None:
        super().__init__()
        self.self_attention = nn.MultiheadAttention(channels, 1, dropout=dropout, batch_first=True)
        if has_cross_attention:
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
        """Return `tokens` [batch, token, channel], with the same mask, after attention to themselves and to `other`.

        `other` [batch, other token, channel] requires `has_cross_attention`; without it, cross-attention is omitted.
        `prompts` [batch, prompt, channel] are additional keys and values of the self-attention. Missing tokens are
        never keys.
        """
        keys = tokens if prompts is None else join([prompts, tokens])
        attended = tokens.values + self.dropout(_attend(self.self_attention, tokens, keys))
        if other is not None:
            attended = attended + self.dropout(_attend(self.cross_attention, tokens, other))
        values = self.attention_norm(attended)
        return Tokens(self.output_norm(values + self.feed_forward(values)), tokens.mask)


class Perception(nn.Module):
    """Temporal segment selection, spatial region selection, audio-guided visual attention and global-local perception.

    If a modality is missing, its half of the segment vectors is zero and its other parts are omitted. Segments are used
    only as keys, so their projection has no bias: it would be the same for all of them.

    - `patch_channels`: channels of the stored patches; `channels`: of the question and the steps.
    - `heads`: of the selectors and of the audio-guided attention; global-local perception has one head.
    - `segment_length`: steps per segment; a last segment that is shorter is padded with missing steps.
    - `top_segments`, `top_patches`: how many segments, and how many patches of each of their steps, are selected.
    - `layers`: layers of global-local perception.

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
        # Audio attends to the patches of its time step as AVST's question attends to time steps, with the same block.
        self.audio_guided = TemporalGrounding(channels, heads, dropout)
        self.global_local = nn.ModuleList(
            HybridAttention(channels, dropout, has_cross_attention=True) for _ in range(layers)
        )

    def forward(self, question: Tensor, steps: dict[str, Tokens], patches: Tensor | None) -> dict[str, list[Tokens]]:
        """Return {modality: tokens to fuse in addition to its steps}.

        `question` [batch, channel]; `steps` {modality: tokens [batch, time, channel]} of one modality or both, zero
        where missing; `patches` [batch, time, patch, patch channel], None if visual is missing. With S = selected
        segments x `segment_length` steps, the tokens are, in order: global-local steps [batch, time, channel] and the
        steps of the selected segments [batch, S, channel]; for visual also the selected regions [batch, S x selected
        patches, channel] and, if audio is available, the audio-guided steps [batch, S, channel].
        """
        segments, gates = self.select_segments(question, steps)
        gates = gates.repeat_interleave(self.segment_length, 1).unsqueeze(-1)
        perceived = {m: [tokens] for m, tokens in self.attend_globally(steps).items()}
        for modality, tokens in steps.items():
            values = gates * self.gather_steps(tokens.values, segments)
            perceived[modality].append(Tokens(values, self.gather_steps(tokens.mask, segments)))
        if patches is None:
            return perceived
        visual_mask = perceived["visual"][-1].mask
        regions = self.select_regions(question, self.patch_stem(self.gather_steps(patches, segments)))
        regions = gates.unsqueeze(-1) * regions
        perceived["visual"].append(Tokens(regions.flatten(1, 2), visual_mask.repeat_interleave(regions.shape[2], 1)))
        if "audio" in perceived:
            audio = perceived["audio"][-1]
            perceived["visual"].append(Tokens(self.attend_to_regions(audio.values, regions), visual_mask & audio.mask))
        return perceived

    def select_segments(self, question: Tensor, steps: dict[str, Tokens]) -> tuple[Tensor, Tensor]:
        """Return the positions int64 [batch, selected] of the selected segments, ascending in time, and their gates."""
        segments, is_available = self.segments(steps)
        weights = self.segment_selector.weights(question, segments.unsqueeze(1), is_available.unsqueeze(1))
        positions, gates = self.segment_selector.select(weights, is_available.unsqueeze(1))
        return positions.squeeze(1), gates.squeeze(1)

    def segments(self, steps: dict[str, Tokens]) -> tuple[Tensor, Tensor]:
        """Return the segments [batch, segment, channel], from the means of both modalities, and which are available.

        A segment is available, bool [batch, segment], if any of its steps is.
        """
        split = {m: Tokens(self._split(tokens.values), self._split(tokens.mask)) for m, tokens in steps.items()}
        means = {
            m: masked_mean(part.values.flatten(0, 1), part.mask.flatten(0, 1)).unflatten(0, part.mask.shape[:2])
            for m, part in split.items()
        }
        zeros = torch.zeros_like(next(iter(means.values())))
        both = torch.cat([means.get(m, zeros) for m in MODALITIES], dim=-1)
        is_available = torch.stack([part.mask.any(2) for part in split.values()]).any(0)
        return self.segment_stem(torch.tanh(both)), is_available

    def gather_steps(self, values: Tensor, segments: Tensor) -> Tensor:
        """Return [batch, step, ...]: the steps of `segments` [batch, selected] among `values` [batch, time, ...]."""
        index = segments.view(*segments.shape, *[1] * (values.dim() - 1))
        return torch.take_along_dim(self._split(values), index, 1).flatten(1, 2)

    def select_regions(self, question: Tensor, patches: Tensor) -> Tensor:
        """Return [batch, time, selected, channel]: the patches [batch, time, patch, channel] that each step selects."""
        positions, gates = self.patch_selector.select(self.patch_selector.weights(question, patches))
        return gates.unsqueeze(-1) * torch.take_along_dim(patches, positions.unsqueeze(-1), 2)

    def attend_to_regions(self, audio: Tensor, regions: Tensor) -> Tensor:
        """Return [batch, time, channel]: attention of each step's `audio` [batch, time, channel] to its `regions`."""
        everywhere = regions.new_ones(regions.shape[:3], dtype=torch.bool)
        attended = self.audio_guided(audio.flatten(0, 1), regions.flatten(0, 1), everywhere.flatten(0, 1))
        return attended.unflatten(0, audio.shape[:2])

    def attend_globally(self, steps: dict[str, Tokens]) -> dict[str, Tokens]:
        """Return `steps` after self- and cross-attention; visual attends to the audio that was already updated."""
        streams = dict(steps)
        for layer in self.global_local:
            for modality in (m for m in MODALITIES if m in streams):
                other = next((tokens for m, tokens in streams.items() if m != modality), None)
                streams[modality] = layer(streams[modality], other)
        return streams

    def _split(self, values: Tensor) -> Tensor:
        """Return `values` [batch, time, ...] as [batch, segment, step, ...]; the last segment is padded with zeros."""
        padding = -values.shape[1] % self.segment_length
        if padding:
            values = torch.cat((values, values.new_zeros(len(values), padding, *values.shape[2:])), 1)
        return values.unflatten(1, (-1, self.segment_length))


def _attend(attention: nn.MultiheadAttention, tokens: Tokens, context: Tokens) -> Tensor:
    values = context.values
    attended: Tensor = attention(tokens.values, values, values, key_padding_mask=~context.mask, need_weights=False)[0]
    return attended
