"""What is specific to AVSD: words and padding, selected frames, levels, its two variants."""

from dataclasses import replace

import pytest
import torch

from train.backbones.avsd import spread_evenly
from train.backbones.registry import make_backbone
from train.backbones.sizes import ModelSizes
from train.data.batch import Batch
from train.interfaces import Representation

TINY = ModelSizes(words=20, answers=7, input_shapes={"vggish": (8,), "resnet18-map": (6, 14, 14)}, channels=16)
VARIANTS = ("paper", "released")
each_variant = pytest.mark.parametrize("variant", VARIANTS)


def make(variant: str, sizes: ModelSizes = TINY):
    torch.manual_seed(0)
    return make_backbone("avsd", sizes, variant).eval()


def make_batch(rows: int = 3, time: int = 10) -> Batch:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(1, 20, (rows, 7), generator=generator)
    tokens[1:, 5:] = 0
    maps = torch.randn(rows, time, 6, 14, 14, generator=generator)
    mask = torch.ones(rows, time, dtype=torch.bool)
    return Batch(
        question={"tokens": tokens},
        audio={"vggish": torch.randn(rows, time, 8, generator=generator)},
        visual={"resnet18-map": maps},
        audio_mask=mask,
        visual_mask=mask,
        answer=torch.zeros(rows, dtype=torch.long),
        type=("",) * rows,
        question_id=tuple(map(str, range(rows))),
        video_id=tuple(map(str, range(rows))),
        negatives={"resnet18-map": maps.flip(0)},
    )


def with_maps(batch: Batch, maps: torch.Tensor) -> Batch:
    return replace(batch, visual={"resnet18-map": maps})


@torch.no_grad()
def logits(backbone, batch: Batch) -> torch.Tensor:
    return backbone.answer(backbone.encode(batch)).logits


@pytest.mark.parametrize(("variant", "count"), [("paper", 2_796_745), ("released", 4_968_661)])
def test_has_the_documented_number_of_parameters(variant, count):
    shapes = {"vggish": (128,), "resnet18-map": (512, 14, 14)}
    backbone = make(variant, ModelSizes(words=93, answers=42, input_shapes=shapes))
    assert sum(p.numel() for p in backbone.parameters()) == count


@each_variant
def test_padding_the_question_has_no_effect(variant):
    backbone, batch = make(variant), make_batch()
    longer = torch.nn.functional.pad(batch.question["tokens"], (0, 4))
    padded = replace(batch, question={"tokens": longer})
    torch.testing.assert_close(logits(backbone, padded), logits(backbone, batch))
    torch.testing.assert_close(backbone.encode(padded).question, backbone.encode(batch).question)


@torch.no_grad()
def test_the_question_is_the_lstm_state_after_its_last_word():
    backbone, batch = make("paper"), make_batch()
    encoded = backbone.encode(batch)
    assert encoded.word_mask.sum(1).tolist() == [7, 5, 5]
    for row, last in enumerate((6, 4, 4)):
        assert torch.equal(encoded.question[row], encoded.words[row, last])
        words = backbone.embedding(batch.question["tokens"][row : row + 1, : last + 1])
        torch.testing.assert_close(backbone.word_lstm(words)[1][0].flatten(), encoded.question[row])


@torch.no_grad()
def test_the_prior_points_at_the_last_word():
    backbone, batch = make("paper"), make_batch()
    backbone.attention.mixture["question"].weight[0, -1] = 1e4
    encoded = backbone.encode(batch)
    torch.testing.assert_close(backbone._attend(encoded)["question"], encoded.question)


@pytest.mark.parametrize(
    ("available", "selected"),
    [
        ("1111111111", [0, 3, 6, 9]),
        ("1111100000", [0, 1, 2, 4]),
        ("1100000000", [0, 0, 0, 1]),
        ("1000000000", [0, 0, 0, 0]),
        ("0110110000", [1, 2, 4, 5]),
        ("0000000000", [0, 0, 0, 0]),
    ],
)
def test_frames_are_spread_evenly_over_the_available_steps(available, selected):
    mask = torch.tensor([[step == "1" for step in available]])
    assert spread_evenly(mask, 4).tolist() == [selected]
    assert spread_evenly(torch.nn.functional.pad(mask, (0, 5)), 4).tolist() == [selected]


def test_the_released_variant_reads_four_frames_and_the_paper_variant_all():
    batch = make_batch()
    for variant, read in (("paper", range(10)), ("released", (0, 3, 6, 9))):
        backbone = make(variant)
        expected = logits(backbone, batch)
        for frame in range(10):
            maps = batch.visual["resnet18-map"].clone()
            maps[:, frame] += 3 * torch.randn(6, 14, 14, generator=torch.Generator().manual_seed(2))
            assert torch.allclose(logits(backbone, with_maps(batch, maps)), expected, atol=1e-6) == (frame not in read)


@torch.no_grad()
def test_a_step_has_the_vector_of_the_latest_selected_frame():
    encoded = make("released").encode(make_batch())
    steps = make("released").steps(encoded)["visual"]
    latest = [0, 0, 0, 3, 3, 3, 6, 6, 6, 9]
    assert torch.equal(steps, steps[:, latest])
    assert len({tuple(frame) for frame in steps[0].tolist()}) == 4


@each_variant
def test_a_missing_frame_between_others_is_not_read(variant):
    backbone, batch = make(variant), make_batch()
    mask = torch.ones(3, 10, dtype=torch.bool)
    mask[0, 3] = False
    incomplete = replace(batch, visual_mask=mask)
    expected = logits(backbone, incomplete)
    assert not torch.allclose(expected[0], logits(backbone, batch)[0])
    maps = batch.visual["resnet18-map"].clone()
    maps[0, 3] = torch.nan
    torch.testing.assert_close(logits(backbone, with_maps(incomplete, maps)), expected)


@torch.no_grad()
def test_the_lstm_skips_missing_frames():
    backbone, sequence = make("paper"), torch.randn(2, 5, 8)
    mask = torch.tensor([[True, False, True, True, False], [True, True, True, True, True]])
    available = backbone.sequence_lstm(sequence[:1, [0, 2, 3]])[0][:, -1]
    complete = backbone.sequence_lstm(sequence[1:])[0][:, -1]
    torch.testing.assert_close(backbone._run_lstm(sequence, mask), torch.cat((available, complete)))


@each_variant
@torch.no_grad()
def test_the_lstm_reads_the_audio_and_then_the_frames_in_order(variant, monkeypatch):
    backbone, batch = make(variant), make_batch()
    representation = backbone.encode(batch)
    attended, sequences = backbone._attend(representation), []
    run = backbone._run_lstm
    monkeypatch.setattr(backbone, "_run_lstm", lambda sequence, mask: sequences.append(sequence) or run(sequence, mask))
    backbone.answer(representation)
    torch.testing.assert_close(sequences[0], torch.cat((attended["audio"].unsqueeze(1), attended["visual"]), dim=1))


@each_variant
def test_large_maps_are_pooled_by_two_and_small_ones_are_not(variant):
    batch = make_batch()
    maps = batch.visual["resnet18-map"]
    pooled = torch.nn.functional.avg_pool2d(maps.flatten(0, 1), 2).unflatten(0, maps.shape[:2])
    torch.testing.assert_close(logits(make(variant), with_maps(batch, pooled)), logits(make(variant), batch))
    uniform = pooled.mean((3, 4), keepdim=True).expand_as(pooled)
    assert not torch.allclose(logits(make(variant), with_maps(batch, uniform)), logits(make(variant), batch))


@each_variant
@torch.no_grad()
def test_a_pooled_modality_takes_no_part_in_the_attention(variant):
    backbone, batch = make(variant), make_batch()
    encoded = backbone.encode(batch)
    alone = backbone.pool(backbone.encode(batch.without("visual")))["audio"]
    pooled = replace(encoded, pooled={"visual": torch.randn(3, 8)})
    assert torch.equal(backbone.pool(pooled)["audio"], alone)
    assert torch.equal(backbone.pool(pooled)["visual"], pooled.pooled["visual"])
    assert not torch.allclose(backbone.pool(encoded)["audio"], alone)


@each_variant
@torch.no_grad()
def test_a_frame_at_the_steps_level_is_its_attended_vector(variant):
    backbone = make(variant)
    encoded = backbone.encode(make_batch())
    at_steps = replace(encoded, steps=backbone.steps(encoded))
    torch.testing.assert_close(backbone.steps(at_steps), backbone.steps(encoded))
    torch.testing.assert_close(backbone.pool(at_steps)["visual"], backbone.pool(encoded)["visual"])


@torch.no_grad()
def test_a_prompt_is_read_like_an_audio_step():
    backbone = make("paper")
    encoded = backbone.encode(make_batch())
    prompt, audio = torch.randn(2, 8), backbone.steps(encoded)["audio"]
    longer = torch.cat((prompt.expand(3, 2, 8), audio), 1)
    joined = replace(encoded, steps={"audio": longer}, masks={"visual": encoded.masks["visual"]})
    torch.testing.assert_close(backbone.pool(encoded, {"audio": prompt}), backbone.pool(joined))


@torch.no_grad()
def test_prompts_do_not_make_a_missing_frame_available():
    backbone, prompts = make("paper"), {"visual": torch.randn(2, 8)}
    masked = replace(make_batch(), visual_mask=torch.arange(10).expand(3, 10) < 6)
    shorter = make_batch(time=10).visual["resnet18-map"][:, :6]
    cut = replace(with_maps(masked, shorter), visual_mask=masked.visual_mask[:, :6])
    found, expected = (backbone.pool(backbone.encode(batch), prompts) for batch in (masked, cut))
    torch.testing.assert_close(found, expected)


@each_variant
def test_dropout_is_active_only_in_training(variant):
    backbone, batch = make(variant), make_batch()
    assert torch.equal(logits(backbone, batch), logits(backbone, batch))
    backbone.train()
    assert not torch.allclose(logits(backbone, batch), logits(backbone, batch))


def test_has_no_auxiliary_losses():
    backbone = make("paper")
    assert backbone.answer(backbone.encode(make_batch())).losses == {}


def test_a_question_without_words_and_too_many_steps_are_refused():
    backbone, batch = make("paper"), make_batch()
    question = backbone.encode(batch).question
    with pytest.raises(ValueError, match="word by word"):
        backbone.answer(Representation(question, pooled={m: torch.zeros(3, 8) for m in ("audio", "visual")}))
    with pytest.raises(ValueError, match="weights for 10 steps, but the batch has 11"):
        backbone.encode(make_batch(time=11))
