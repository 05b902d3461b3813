"""AVSD at the seam: words and their padding, which frames are read, what each level means, its two variants."""

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
    there = torch.ones(rows, time, dtype=torch.bool)
    return Batch(
        question={"tokens": tokens},
        audio={"vggish": torch.randn(rows, time, 8, generator=generator)},
        visual={"resnet18-map": maps},
        audio_mask=there,
        visual_mask=there,
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
def test_parameter_count_on_the_papers_shapes(variant, count):
    shapes = {"vggish": (128,), "resnet18-map": (512, 14, 14)}
    backbone = make(variant, ModelSizes(words=93, answers=42, input_shapes=shapes))
    assert sum(p.numel() for p in backbone.parameters()) == count


@each_variant
def test_padding_the_question_changes_nothing(variant):
    backbone, batch = make(variant), make_batch()
    longer = torch.nn.functional.pad(batch.question["tokens"], (0, 4))
    padded = replace(batch, question={"tokens": longer})
    torch.testing.assert_close(logits(backbone, padded), logits(backbone, batch))
    torch.testing.assert_close(backbone.encode(padded).question, backbone.encode(batch).question)


@torch.no_grad()
def test_the_question_is_the_state_after_its_last_word():
    backbone, batch = make("paper"), make_batch()
    entered = backbone.encode(batch)
    assert entered.word_mask.sum(1).tolist() == [7, 5, 5]
    for row, last in enumerate((6, 4, 4)):
        assert torch.equal(entered.question[row], entered.words[row, last])
        words = backbone.embedding(batch.question["tokens"][row : row + 1, : last + 1])
        torch.testing.assert_close(backbone.word_lstm(words)[1][0].flatten(), entered.question[row])


@torch.no_grad()
def test_the_prior_points_at_the_last_word():
    backbone, batch = make("paper"), make_batch()
    backbone.attention.mixture["question"].weight[0, -1] = 1e4
    entered = backbone.encode(batch)
    torch.testing.assert_close(backbone._attend(entered)["question"], entered.question)


@pytest.mark.parametrize(
    ("there", "chosen"),
    [
        ("1111111111", [0, 3, 6, 9]),
        ("1111100000", [0, 1, 2, 4]),
        ("1100000000", [0, 0, 0, 1]),
        ("1000000000", [0, 0, 0, 0]),
        ("0110110000", [1, 2, 4, 5]),
        ("0000000000", [0, 0, 0, 0]),
    ],
)
def test_frames_are_spread_evenly_over_the_steps_that_are_there(there, chosen):
    mask = torch.tensor([[step == "1" for step in there]])
    assert spread_evenly(mask, 4).tolist() == [chosen]
    assert spread_evenly(torch.nn.functional.pad(mask, (0, 5)), 4).tolist() == [chosen]


def test_the_released_variant_reads_four_frames_and_the_paper_all():
    batch = make_batch()
    for variant, read in (("paper", range(10)), ("released", (0, 3, 6, 9))):
        backbone = make(variant)
        expected = logits(backbone, batch)
        for frame in range(10):
            maps = batch.visual["resnet18-map"].clone()
            maps[:, frame] += 3 * torch.randn(6, 14, 14, generator=torch.Generator().manual_seed(2))
            assert torch.allclose(logits(backbone, with_maps(batch, maps)), expected, atol=1e-6) == (frame not in read)


@torch.no_grad()
def test_a_second_shows_the_last_frame_that_has_begun():
    entered = make("released").encode(make_batch())
    steps = make("released").steps(entered)["visual"]
    begun = [0, 0, 0, 3, 3, 3, 6, 6, 6, 9]
    assert torch.equal(steps, steps[:, begun])
    assert len({tuple(frame) for frame in steps[0].tolist()}) == 4


@each_variant
def test_a_frame_amid_others_that_is_not_there_is_not_read(variant):
    backbone, batch = make(variant), make_batch()
    there = torch.ones(3, 10, dtype=torch.bool)
    there[0, 3] = False
    holed = replace(batch, visual_mask=there)
    expected = logits(backbone, holed)
    assert not torch.allclose(expected[0], logits(backbone, batch)[0])
    maps = batch.visual["resnet18-map"].clone()
    maps[0, 3] = torch.nan
    torch.testing.assert_close(logits(backbone, with_maps(holed, maps)), expected)


@torch.no_grad()
def test_the_lstm_passes_over_frames_that_are_not_there():
    backbone, sequence = make("paper"), torch.randn(2, 5, 8)
    mask = torch.tensor([[True, False, True, True, False], [True, True, True, True, True]])
    kept = backbone.sequence_lstm(sequence[:1, [0, 2, 3]])[0][:, -1]
    whole = backbone.sequence_lstm(sequence[1:])[0][:, -1]
    torch.testing.assert_close(backbone._read(sequence, mask), torch.cat((kept, whole)))


@each_variant
@torch.no_grad()
def test_the_lstm_hears_the_sound_first_and_then_sees_the_frames_in_their_order(variant, monkeypatch):
    backbone, batch = make(variant), make_batch()
    representation = backbone.encode(batch)
    attended, read = backbone._attend(representation), []
    whole = backbone._read
    monkeypatch.setattr(backbone, "_read", lambda sequence, mask: read.append(sequence) or whole(sequence, mask))
    backbone.answer(representation)
    torch.testing.assert_close(read[0], torch.cat((attended["audio"].unsqueeze(1), attended["visual"]), dim=1))


@each_variant
def test_large_maps_are_pooled_by_two_and_small_ones_kept(variant):
    batch = make_batch()
    maps = batch.visual["resnet18-map"]
    pooled = torch.nn.functional.avg_pool2d(maps.flatten(0, 1), 2).unflatten(0, maps.shape[:2])
    torch.testing.assert_close(logits(make(variant), with_maps(batch, pooled)), logits(make(variant), batch))
    blurred = pooled.mean((3, 4), keepdim=True).expand_as(pooled)
    assert not torch.allclose(logits(make(variant), with_maps(batch, blurred)), logits(make(variant), batch))


@each_variant
@torch.no_grad()
def test_a_pooled_modality_takes_no_part_in_the_attention(variant):
    backbone, batch = make(variant), make_batch()
    entered = backbone.encode(batch)
    alone = backbone.pool(backbone.encode(batch.without("visual")))["audio"]
    pooled = replace(entered, pooled={"visual": torch.randn(3, 8)})
    assert torch.equal(backbone.pool(pooled)["audio"], alone)
    assert torch.equal(backbone.pool(pooled)["visual"], pooled.pooled["visual"])
    assert not torch.allclose(backbone.pool(entered)["audio"], alone)


@each_variant
@torch.no_grad()
def test_a_frame_at_the_steps_level_is_what_is_attended_to_in_it(variant):
    backbone = make(variant)
    entered = backbone.encode(make_batch())
    located = replace(entered, steps=backbone.steps(entered))
    torch.testing.assert_close(backbone.steps(located), backbone.steps(entered))
    torch.testing.assert_close(backbone.pool(located)["visual"], backbone.pool(entered)["visual"])


@torch.no_grad()
def test_a_prompt_is_read_like_one_more_second_of_the_sound():
    backbone = make("paper")
    entered = backbone.encode(make_batch())
    prompt, sound = torch.randn(2, 8), backbone.steps(entered)["audio"]
    longer = torch.cat((prompt.expand(3, 2, 8), sound), 1)
    joined = replace(entered, steps={"audio": longer}, masks={"visual": entered.masks["visual"]})
    torch.testing.assert_close(backbone.pool(entered, {"audio": prompt}), backbone.pool(joined))


@torch.no_grad()
def test_prompts_do_not_bring_back_a_frame_that_is_not_there():
    backbone, prompts = make("paper"), {"visual": torch.randn(2, 8)}
    short = replace(make_batch(), visual_mask=torch.arange(10).expand(3, 10) < 6)
    shorter = make_batch(time=10).visual["resnet18-map"][:, :6]
    cut = replace(with_maps(short, shorter), visual_mask=short.visual_mask[:, :6])
    found, expected = (backbone.pool(backbone.encode(batch), prompts) for batch in (short, cut))
    torch.testing.assert_close(found, expected)


@each_variant
def test_dropout_acts_in_training_only(variant):
    backbone, batch = make(variant), make_batch()
    assert torch.equal(logits(backbone, batch), logits(backbone, batch))
    backbone.train()
    assert not torch.allclose(logits(backbone, batch), logits(backbone, batch))


def test_the_answer_is_its_only_loss():
    backbone = make("paper")
    assert backbone.answer(backbone.encode(make_batch())).losses == {}


def test_refuses_a_question_without_words_and_steps_without_weights():
    backbone, batch = make("paper"), make_batch()
    question = backbone.encode(batch).question
    with pytest.raises(ValueError, match="word by word"):
        backbone.answer(Representation(question, pooled={m: torch.zeros(3, 8) for m in ("audio", "visual")}))
    with pytest.raises(ValueError, match="weights for 10 steps: the batch has 11"):
        backbone.encode(make_batch(time=11))
