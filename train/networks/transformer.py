"""Transformer blocks as BERT has them, over sequences with gaps: embedding, attention and feed-forward with post-norms.

No block knows a modality, a store or a backbone.
Source: Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers", NAACL 2019.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORM_EPS = 1e-12
START_DEVIATION = 0.02
WIDENING = 4
PADDING = 0


@dataclass(frozen=True)
class Stream:
    """A sequence on its way through layers.

    `states` [batch, element, channel]; `mask` bool [batch, element], True where an element is there. `prompts`
    [prompt, channel] are read wherever the sequence is read, beside its elements, and no layer changes them.
    """

    states: Tensor
    mask: Tensor
    prompts: Tensor | None = None

    def read(self) -> tuple[Tensor, Tensor]:
        """Return what attention may look at, [batch, element and prompt, channel], and its mask."""
        if self.prompts is None:
            return self.states, self.mask
        prompts = self.prompts.expand(len(self.states), -1, -1)
        mask = self.mask.new_ones(len(self.mask), prompts.shape[1])
        return torch.cat((self.states, prompts), 1), torch.cat((self.mask, mask), 1)


class WordEmbedding(nn.Module):
    """Put [CLS], a word of its own after the vocabulary, before the tokens; embed each with its position.

    Source: BERT's embedding. Differs from it: there is one segment, so none is embedded.
    """

    def __init__(self, words: int, length: int, channels: int, dropout: float) -> None:
        """Embed `words` words in questions of at most `length` tokens."""
        super().__init__()
        self.cls = words
        self.word = nn.Embedding(words + 1, channels)
        self.position = nn.Embedding(length + 1, channels)
        self.norm = nn.LayerNorm(channels, eps=NORM_EPS)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Stream:
        """Return [CLS] and the words of int tokens [batch, token]; padding is masked."""
        tokens = torch.cat((tokens.new_full((len(tokens), 1), self.cls), tokens), 1).long()
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        embedded = self.norm(self.word(tokens) + self.position(positions))
        return Stream(self.dropout(embedded), tokens != PADDING)


class Attention(nn.Module):
    """Let one sequence attend to another, or to itself; a linear layer, dropout and the norm of the sum follow.

    Keys and values are one linear layer: a bias of keys alone cancels in the softmax and would never learn.
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
        """Return `states` [batch, element, channel] after they looked at `context`.

        Where nothing of a row's `context` is there, its states stay as they are.
        """
        elements, mask = context.read()
        there = mask.any(1)[:, None, None]
        visible = mask[:, None, None, :] | ~there.unsqueeze(3)  # a softmax over nothing would be NaN
        query = self.query(states).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        key, value = self.key_value(elements).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        dropout = self.dropout.p if self.training else 0.0
        seen = F.scaled_dot_product_attention(query, key, value, attn_mask=visible, dropout_p=dropout)
        seen = self.output(seen.transpose(1, 2).flatten(2))
        return torch.where(there, self.norm(states + self.dropout(seen)), states)


class FeedForward(nn.Module):
    """Widen each element four times, GELU, narrow it again; dropout and the norm of the sum follow."""

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(channels, WIDENING * channels),
            nn.GELU(),
            nn.Linear(WIDENING * channels, channels),
            nn.Dropout(dropout),
        )
        self.norm = nn.LayerNorm(channels, eps=NORM_EPS)

    def forward(self, states: Tensor) -> Tensor:
        """Return [batch, element, channel] for `states` of that shape."""
        return self.norm(states + self.layers(states))


class TransformerLayer(nn.Module):
    """Attend to oneself, then feed forward."""

    def __init__(self, channels: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(channels, heads, dropout)
        self.feed_forward = FeedForward(channels, dropout)

    def forward(self, stream: Stream) -> Stream:
        """Return `stream` with new states; mask and prompts stay."""
        return replace(stream, states=self.feed_forward(self.attention(stream.states, stream)))


class CrossLayer(nn.Module):
    """Let each of several sequences attend to another one, then to itself, and feed forward.

    `attends`: {sequence: the one it attends to}. All look at what came in, not at what another has just become. One
    that would look at a sequence which is not there goes on unchanged.
    """

    def __init__(self, attends: Mapping[str, str], channels: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attends = dict(attends)
        self.cross = nn.ModuleDict({name: Attention(channels, heads, dropout) for name in attends})
        self.own = nn.ModuleDict({name: TransformerLayer(channels, heads, dropout) for name in attends})

    def forward(self, streams: Mapping[str, Stream], still: Mapping[str, Stream]) -> dict[str, Stream]:
        """Return {sequence: stream} with new states for `streams`; those in `still` are only looked at."""
        contexts = {**streams, **still}
        changed = {}
        for name, stream in streams.items():
            context = contexts.get(self.attends[name])
            states = stream.states if context is None else self.cross[name](stream.states, context)
            changed[name] = self.own[name](replace(stream, states=states))
        return changed


def start_as_bert(module: nn.Module) -> None:
    """Draw the weights of a linear layer or an embedding from N(0, 0.02), with biases of zero; for `Module.apply`."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=START_DEVIATION)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
