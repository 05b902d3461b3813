"""The shared blocks, each compared with its formula."""

import torch
import torch.nn.functional as F
from tiny_store import SIZES

from train.backbones.registry import make_backbone
from train.networks.layers import (
    LearnedConstants,
    MatchHead,
    QuestionEncoder,
    SpatialGrounding,
    TemporalGrounding,
    masked_mean,
    zero_missing_steps,
)


def test_spatial_grounding_is_attention_over_normalised_locations():
    torch.manual_seed(0)
    block, maps, audio = SpatialGrounding(6), torch.randn(2, 3, 6, 4, 5), torch.randn(2, 3, 6)
    locations = F.normalize(maps.flatten(3).transpose(2, 3), dim=-1)
    weights = (locations @ F.normalize(audio, dim=-1).unsqueeze(-1)).squeeze(-1).softmax(-1)
    grounded = (weights.unsqueeze(-1) * locations).sum(2)
    expected = block.output(torch.tanh(torch.cat((maps.mean((3, 4)), grounded), -1)))
    torch.testing.assert_close(block(maps, audio), expected)


def test_spatial_grounding_of_a_map_of_zeros_is_finite():
    block = SpatialGrounding(6)
    assert block(torch.zeros(1, 2, 6, 3, 3), torch.randn(1, 2, 6)).isfinite().all()


def test_temporal_grounding_reads_only_available_steps():
    torch.manual_seed(0)
    block, question, steps = TemporalGrounding(8, 2, 0.1).eval(), torch.randn(2, 8), torch.randn(2, 5, 8)
    mask = torch.tensor([[True, True, True, False, False]] * 2)
    changed = steps.clone()
    changed[:, 3:] = 9.0
    torch.testing.assert_close(block(question, changed, mask), block(question, steps, mask))
    torch.testing.assert_close(block(question, steps, mask), block(question, steps[:, :3], mask[:, :3]))


def test_a_prompt_is_read_like_a_step():
    torch.manual_seed(0)
    block, question, steps = TemporalGrounding(8, 2, 0.1).eval(), torch.randn(2, 8), torch.randn(2, 5, 8)
    mask, prompts = torch.ones(2, 5, dtype=torch.bool), torch.randn(3, 8)
    joined = torch.cat((prompts.expand(2, 3, 8), steps), 1)
    expected = block(question, joined, torch.ones(2, 8, dtype=torch.bool))
    torch.testing.assert_close(block(question, steps, mask, prompts), expected)


def test_gradients_of_repeated_questions_are_deterministic_on_two_threads():
    encoder, tokens = QuestionEncoder(9, 512), torch.randint(0, 9, (8, 6)).repeat(16, 1)
    weights = torch.randn(len(tokens), 512)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        gradients = []
        for _ in range(8):
            encoder.zero_grad()
            (encoder(tokens) * weights).sum().backward()
            gradients.append(encoder.output.weight.grad.clone())
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(gradients[0], repeated) for repeated in gradients)


def test_question_encoder_reads_the_last_hidden_and_cell_state():
    torch.manual_seed(0)
    encoder, tokens = QuestionEncoder(9, 8), torch.randint(0, 9, (3, 6))
    hidden = cell = torch.zeros(3, 8)
    for position in range(6):
        words = torch.tanh(encoder.embedding(tokens[:, position]))
        gates = F.linear(words, encoder.lstm.weight_ih_l0, encoder.lstm.bias_ih_l0)
        gates = gates + F.linear(hidden, encoder.lstm.weight_hh_l0, encoder.lstm.bias_hh_l0)
        input_gate, forget_gate, candidate, output_gate = gates.chunk(4, 1)
        cell = forget_gate.sigmoid() * cell + input_gate.sigmoid() * candidate.tanh()
        hidden = output_gate.sigmoid() * cell.tanh()
    expected = encoder.output(torch.tanh(torch.cat((hidden, cell), -1)))
    torch.testing.assert_close(encoder(tokens), expected)


def test_match_head_halves_its_width_at_each_layer():
    widths = [tuple(layer.weight.shape) for layer in MatchHead(512).layers if hasattr(layer, "weight")]
    assert widths == [(512, 1024), (256, 512), (128, 256), (2, 128)]


def test_learned_constants_are_the_same_vector_for_every_question():
    constants = LearnedConstants(make_backbone("avst", SIZES))
    vectors = constants(("audio",), 3)
    assert vectors.keys() == {"audio"}
    assert vectors["audio"].shape == (3, SIZES.channels)
    vectors["audio"].sum().backward()
    assert constants.vectors["audio"].grad.tolist() == [3.0] * SIZES.channels


def test_masked_mean_and_blank_ignore_missing_steps():
    steps = torch.tensor([[[2.0], [4.0], [float("nan")]]])
    mask = torch.tensor([[True, True, False]])
    assert zero_missing_steps(steps, mask).tolist() == [[[2.0], [4.0], [0.0]]]
    assert masked_mean(zero_missing_steps(steps, mask), mask).tolist() == [[3.0]]
