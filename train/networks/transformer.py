"""BERT's transformer blocks over masked sequences: embedding, attention and feed-forward layers with post-norm.

Source: Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers", NAACL 2019.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORM_EPS = 1e-12
INIT_STD = 0.02
EXPANSION = 4
PADDING = 0


@dataclass(frozen=True)
class Stream:
    """A sequence between two layers.

    - `states` [batch, element, channel].
    - `mask` bool [batch, element]: True for available elements, False for padding and missing ones.
    - `prompts` [prompt, channel]: additional keys and values wherever the sequence is attended to; layers return them
      unchanged.
    """

    states: Tensor
    mask: Tensor
    prompts: Tensor | None = None

    def with_prompts(self) -> tuple[Tensor, Tensor]:
        """Return the elements followed by the prompts, [batch, element + prompt, channel], and their mask."""
        if self.prompts is None:
            return self.states, self.mask
        prompts = self.prompts.expand(len(self.states), -1, -1)
        mask = self.mask.new_ones(len(self.mask), prompts.shape[1])
        return torch.cat((self.states, prompts), 1), torch.cat((self.mask, mask), 1)


class WordEmbedding(nn.Module):
    """Prepend [CLS], an additional word after the vocabulary, and embed each token and its position.

    Source: BERT's embedding. Differs from it: there is only one segment, and no segment embedding.
    """

    def __init__(self, words: int, length: int, channels: int, dropout: float) -> None:
        """Embed a vocabulary of `words` in questions of at most `length` tokens."""
        super().__init__()
        self.cls = words
        self.word = nn.Embedding(words + 1, channels)
        self.position = nn.Embedding(length + 1, channels)
        self.norm = nn.LayerNorm(channels, eps=NORM_EPS)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Stream:
        """Return [CLS] and the embedded words of int `tokens` [batch, token]; padding is masked."""
        tokens = torch.cat((tokens.new_full((len(tokens), 1), self.cls), tokens), 1).long()
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        embedded = self.norm(self.word(tokens) + self.position(positions))
        return Stream(self.dropout(embedded), tokens != PADDING)


class Attention(nn.Module):
    """Attention of one sequence to another, or to itself, with output projection, dropout, residual and layer norm.

    Keys and values share one linear layer: the bias of a key layer alone would cancel in the softmax and never learn.
    """

    def __init__(self, channels: int, heads: int, dropout: float) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"{heads} heads do not divide {channels} channels")
        self.heads = heads
        self.query = nn.Linear(channels, channels)
        self.key_value = nn.Linear(channels, 2 * channels)
        self.output = nn.Linear(channels, channels)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(channels, eps=NORM_EPS)

    def forward(self, states: Tensor, context: Stream) -> Tensor:
        """Return `states` [batch, element, channel] after attention to `context`.

        Rows whose `context` has no element are returned unchanged.
        """
        elements, mask = context.with_prompts()
        has_context = mask.any(1)[:, None, None]
        attend_to = mask[:, None, None, :] | ~has_context.unsqueeze(3)  # a softmax over no element would be NaN
        query = self.query(states).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        key, value = self.key_value(elements).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        dropout = self.dropout.p if self.training else 0.0
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=attend_to, dropout_p=dropout)
        attended = self.output(attended.transpose(1, 2).flatten(2))
        return torch.where(has_context, self.norm(states + self.dropout(attended)), states)


class FeedForward(nn.Module):
    """Feed-forward block of four times the width with GELU, dropout, residual and layer norm."""

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(channels, EXPANSION * channels),
            nn.GELU(),
            nn.Linear(EXPANSION * channels, channels),
            nn.Dropout(dropout),
        )
        self.norm = nn.LayerNorm(channels, eps=NORM_EPS)

    def forward(self, states: Tensor) -> Tensor:
        """Return [batch, element, channel] for `states` of that shape."""
        return self.norm(states + self.layers(states))


class TransformerLayer(nn.Module):
    """Self-attention, then feed-forward."""

    def __init__(self, channels: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(channels, heads, dropout)
        self.feed_forward = FeedForward(channels, dropout)

    def forward(self, stream: Stream) -> Stream:
        """Return `stream` with new states and the same mask and prompts."""
        return replace(stream, states=self.feed_forward(self.attention(stream.states, stream)))


class CrossLayer(nn.Module):
    """Cross-attention between several sequences, then self-attention and feed-forward for each.

    `attends` {sequence: the sequence that it attends to}. All attend to the incoming states, not to updated ones. A
    sequence skips the cross-attention if the other one is missing.
    """

    def __init__(self, attends: Mapping[str, str], channels: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attends = dict(attends)
        self.cross = nn.ModuleDict({name: Attention(channels, heads, dropout) for name in attends})
        self.own = nn.ModuleDict({name: TransformerLayer(channels, heads, dropout) for name in attends})

    def forward(self, streams: Mapping[str, Stream], fixed: Mapping[str, Stream]) -> dict[str, Stream]:
        """Return {sequence: stream} with new states for `streams`; those in `fixed` are only attended to."""
        contexts = {**streams, **fixed}
        updated = {}
        for name, stream in streams.items():
            context = contexts.get(self.attends[name])
            states = stream.states if context is None else self.cross[name](stream.states, context)
            updated[name] = self.own[name](replace(stream, states=states))
        return updated


def init_bert_weights(module: nn.Module) -> None:
    """Initialise a linear layer or an embedding as BERT: weights N(0, 0.02), biases zero. For `nn.Module.apply`."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=INIT_STD)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
