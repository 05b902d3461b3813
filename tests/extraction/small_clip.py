"""A small CLIP configuration for tests, and an independent implementation of CLIP's forward pass. Not a test."""

import torch
from torch import Tensor
from torch.nn import functional

HEAD_CHANNELS = 64
CONFIG = {
    "embed_dim": 512,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 224, "layers": 2, "width": 64, "patch_size": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2},
}


def image_tokens(state: dict[str, Tensor], images: Tensor) -> Tensor:
    """Return [frame, 50, 512] of normalised images [frame, 3, 224, 224]; `state`: tensors of the image encoder."""
    own = {name.removeprefix("visual."): value for name, value in state.items() if name.startswith("visual.")}
    patches = images.unfold(2, 32, 32).unfold(3, 32, 32).permute(0, 2, 3, 1, 4, 5).reshape(len(images), 49, -1)
    embedded = patches @ own["conv1.weight"].flatten(1).T
    first = own["class_embedding"].expand(len(images), 1, -1)
    tokens = torch.cat([first, embedded], 1) + own["positional_embedding"]
    tokens = _blocks(own, _norm(own, "ln_pre", tokens), None)
    return _norm(own, "ln_post", tokens) @ own["proj"]


def word_tokens(state: dict[str, Tensor], indices: Tensor) -> Tensor:
    """Return [text, 77, 512] of token indices [text, 77]; `state`: tensors of the text encoder."""
    length = indices.shape[1]
    tokens = state["token_embedding.weight"][indices] + state["positional_embedding"]
    tokens = _blocks(state, tokens, torch.ones(length, length).tril().bool())
    return _norm(state, "ln_final", tokens) @ state["text_projection"]


def _blocks(state: dict[str, Tensor], tokens: Tensor, allowed: Tensor | None) -> Tensor:
    count = len({name.split(".")[2] for name in state if name.startswith("transformer.")})
    for number in range(count):
        name = f"transformer.resblocks.{number}"
        tokens = tokens + _attend(state, f"{name}.attn", _norm(state, f"{name}.ln_1", tokens), allowed)
        hidden = _linear(state, f"{name}.mlp.c_fc", _norm(state, f"{name}.ln_2", tokens))
        tokens = tokens + _linear(state, f"{name}.mlp.c_proj", hidden * torch.sigmoid(1.702 * hidden))
    return tokens


def _attend(state: dict[str, Tensor], name: str, tokens: Tensor, allowed: Tensor | None) -> Tensor:
    mixed = tokens @ state[f"{name}.in_proj_weight"].T + state[f"{name}.in_proj_bias"]
    heads = tokens.shape[-1] // HEAD_CHANNELS
    query, key, value = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in mixed.chunk(3, dim=-1))
    scores = query @ key.transpose(-1, -2) / HEAD_CHANNELS**0.5
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -torch.inf)
    return _linear(state, f"{name}.out_proj", (scores.softmax(-1) @ value).transpose(1, 2).flatten(2))


def _norm(state: dict[str, Tensor], name: str, tokens: Tensor) -> Tensor:
    return functional.layer_norm(tokens, tokens.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])


def _linear(state: dict[str, Tensor], name: str, tokens: Tensor) -> Tensor:
    return tokens @ state[f"{name}.weight"].T + state[f"{name}.bias"]
