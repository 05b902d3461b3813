"""Transformer blocks over masked sequences, each compared with its formula."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from train.networks.transformer import (
    Attention,
    CrossLayer,
    FeedForward,
    Stream,
    TransformerLayer,
    WordEmbedding,
    init_bert_weights,
)

WIDTH, HEADS = 12, 3
MASK = torch.tensor([[True, True, False, True], [True, False, False, False]])


def stream(seed: int, mask: torch.Tensor = MASK) -> Stream:
    return Stream(torch.randn(*mask.shape, WIDTH, generator=torch.Generator().manual_seed(seed)), mask)


def test_attention_is_the_softmax_over_available_elements():
    torch.manual_seed(0)
    block, states, context = Attention(WIDTH, HEADS, 0.1).eval(), torch.randn(2, 3, WIDTH), stream(1)
    query = block.query(states)
    key, value = block.key_value(context.states).chunk(2, -1)
    heads = []
    for q, k, v in zip(*(part.split(WIDTH // HEADS, -1) for part in (query, key, value)), strict=True):
        scores = (q @ k.mT / (WIDTH // HEADS) ** 0.5).masked_fill(~MASK[:, None], -torch.inf)
        heads.append(scores.softmax(-1) @ v)
    expected = F.layer_norm(
        states + block.output(torch.cat(heads, -1)), (WIDTH,), block.norm.weight, block.norm.bias, eps=1e-12
    )
    torch.testing.assert_close(block(states, context), expected)


def test_attention_does_not_read_padding():
    torch.manual_seed(0)
    block, states, context = Attention(WIDTH, HEADS, 0.1).eval(), torch.randn(2, 3, WIDTH), stream(1)
    changed = replace(context, states=context.states.masked_fill(~MASK[..., None], 9.0))
    assert torch.equal(block(states, changed), block(states, context))


def test_without_context_states_are_unchanged_and_gradients_finite():
    torch.manual_seed(0)
    block, states = Attention(WIDTH, HEADS, 0.1).eval(), torch.randn(2, 3, WIDTH)
    context = stream(1, torch.tensor([[False] * 4, [True] * 4]))
    found = block(states, context)
    found.square().sum().backward()
    assert torch.equal(found[0], states[0])
    assert not torch.allclose(found[1], states[1])
    assert all(parameter.grad.isfinite().all() for parameter in block.parameters())


def test_prompts_are_read_like_elements():
    torch.manual_seed(0)
    block, states, context = Attention(WIDTH, HEADS, 0.1).eval(), torch.randn(2, 3, WIDTH), stream(1)
    prompts = torch.randn(2, WIDTH)
    longer = Stream(
        torch.cat((context.states, prompts.expand(2, -1, -1)), 1), torch.cat((MASK, torch.ones(2, 2).bool()), 1)
    )
    torch.testing.assert_close(block(states, replace(context, prompts=prompts)), block(states, longer))


def test_feed_forward_has_four_times_the_width_and_the_exact_gelu():
    torch.manual_seed(0)
    block, states = FeedForward(WIDTH, 0.1).eval(), torch.randn(2, 3, WIDTH)
    wide = block.layers[0](states)
    assert wide.shape[-1] == 4 * WIDTH
    wide = wide * (1 + torch.erf(wide / 2**0.5)) / 2
    expected = F.layer_norm(states + block.layers[2](wide), (WIDTH,), eps=1e-12)
    torch.testing.assert_close(block(states), expected)


def test_a_layer_is_self_attention_then_feed_forward_and_keeps_mask_and_prompts():
    torch.manual_seed(0)
    layer, given = TransformerLayer(WIDTH, HEADS, 0.1).eval(), replace(stream(1), prompts=torch.randn(2, WIDTH))
    found = layer(given)
    torch.testing.assert_close(found.states, layer.feed_forward(layer.attention(given.states, given)))
    assert found.mask is given.mask
    assert found.prompts is given.prompts


def test_a_cross_layer_attends_to_the_incoming_states():
    torch.manual_seed(0)
    layer = CrossLayer({"a": "b", "b": "c", "c": "a"}, WIDTH, HEADS, 0.1).eval()
    streams = {name: stream(seed) for seed, name in enumerate("abc")}
    found = layer(streams, {})
    for name, context in layer.attends.items():
        crossed = layer.cross[name](streams[name].states, streams[context])
        expected = layer.own[name](replace(streams[name], states=crossed))
        torch.testing.assert_close(found[name].states, expected.states)


def test_a_sequence_that_attends_to_a_missing_one_skips_cross_attention():
    torch.manual_seed(0)
    layer = CrossLayer({"a": "b", "b": "c", "c": "a"}, WIDTH, HEADS, 0.1).eval()
    streams = {name: stream(seed) for seed, name in enumerate("ab")}
    found = layer(streams, {})
    assert found.keys() == {"a", "b"}
    torch.testing.assert_close(found["b"].states, layer.own["b"](streams["b"]).states)


def test_a_fixed_sequence_is_attended_to_and_not_updated():
    torch.manual_seed(0)
    layer = CrossLayer({"a": "b", "b": "a"}, WIDTH, HEADS, 0.1).eval()
    streams = {name: stream(seed) for seed, name in enumerate("ab")}
    found = layer({"a": streams["a"]}, {"b": streams["b"]})
    assert found.keys() == {"a"}
    torch.testing.assert_close(found["a"].states, layer(streams, {})["a"].states)


def test_words_are_embedded_after_cls_with_positions_and_padding_is_masked():
    torch.manual_seed(0)
    block = WordEmbedding(9, 4, WIDTH, 0.1).eval()
    found = block(torch.tensor([[3, 5, 0, 0]], dtype=torch.int32))
    assert found.mask.tolist() == [[True, True, True, False, False]]
    expected = F.layer_norm(block.word.weight[[9, 3, 5]] + block.position.weight[:3], (WIDTH,), eps=1e-12)
    torch.testing.assert_close(found.states[0, :3], expected)


def test_weights_are_initialised_as_in_bert():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(400, 300), nn.Embedding(300, 400), nn.LayerNorm(300)).apply(init_bert_weights)
    for layer in module[:2]:
        assert abs(float(layer.weight.detach().std()) - 0.02) < 2e-4
        assert abs(float(layer.weight.detach().mean())) < 2e-4
    assert not module[0].bias.any()
    assert (module[2].weight == 1).all()


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="5 heads do not divide 12 channels"):
        Attention(12, 5, 0.1)
