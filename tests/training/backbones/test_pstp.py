"""What is particular to PSTP-Net: its choices, their gradient, the fused sequence, few and odd numbers of steps."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from pipeline.errors import UserError
from train.backbones.registry import make_backbone
from train.backbones.sizes import ModelSizes
from train.data.batch import Batch
from train.networks.progressive_perception import Selector, Tokens

PAPER = ModelSizes(
    words=93,
    answers=42,
    input_shapes={"vggish": (128,), "clip-vit-b32": (50, 512)},
    question_shapes={"clip-vit-b32-sentence": (512,), "clip-vit-b32-words": (77, 512)},
    time_steps=60,
)
TIME, PATCHES, CHANNELS = 7, 6, 16
TINY = ModelSizes(
    words=9,
    answers=5,
    input_shapes={"vggish": (8,), "clip-vit-b32": (1 + PATCHES, 12)},
    question_shapes={"clip-vit-b32-sentence": (12,), "clip-vit-b32-words": (4, 12)},
    channels=CHANNELS,
    heads=2,
    time_steps=TIME,
)
# Segments of two steps, the last of one; three of six patches.
OPTIONS = {"segments": 3, "top_segments": 2, "top_patches": 3}


def tiny_pstp(variant: str = "paper", **options: int):
    torch.manual_seed(4)
    return make_backbone("pstp", TINY, variant, **{**OPTIONS, **options}).eval()


def make_batch(rows: int = 3, sizes: ModelSizes = TINY, time: int | None = None) -> Batch:
    generator = torch.Generator().manual_seed(6)
    time = sizes.time_steps if time is None else time

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    there = torch.ones(rows, time, dtype=torch.bool)
    return Batch(
        question={name: draw(rows, *shape) for name, shape in sizes.question_shapes.items()},
        audio={"vggish": draw(rows, time, *sizes.input_shapes["vggish"])},
        visual={"clip-vit-b32": draw(rows, time, *sizes.input_shapes["clip-vit-b32"])},
        audio_mask=there,
        visual_mask=there,
        answer=torch.zeros(rows, dtype=torch.int64),
        type=("Audio Counting",) * rows,
        question_id=tuple(map(str, range(rows))),
        video_id=tuple(map(str, range(rows))),
    )


def with_steps(batch: Batch, audio: list[int], visual: list[int]) -> Batch:
    """Return the batch with only the first so many steps of each row there."""
    counted = torch.arange(batch.audio_mask.shape[1])
    masks = {m: counted < torch.tensor(steps)[:, None] for m, steps in (("audio", audio), ("visual", visual))}
    return replace(batch, audio_mask=masks["audio"], visual_mask=masks["visual"])


def cut(batch: Batch, steps: int) -> Batch:
    """Return the batch as if no video had more than `steps` steps."""
    shortened = {m: {n: v[:, :steps] for n, v in batch.features(m).items()} for m in ("audio", "visual")}
    return replace(batch, **shortened, audio_mask=batch.audio_mask[:, :steps], visual_mask=batch.visual_mask[:, :steps])


def change_patches(batch: Batch) -> Batch:
    tokens = batch.visual["clip-vit-b32"].clone()
    tokens[:, :, 1:] = tokens[:, :, 1:].flip(0)
    return replace(batch, visual={"clip-vit-b32": tokens})


def logits(backbone, batch: Batch) -> torch.Tensor:
    return backbone.answer(backbone.encode(batch)).logits


def steps_of(backbone, batch: Batch) -> dict[str, Tokens]:
    entered = backbone.encode(batch)
    return {m: Tokens(values, entered.masks[m]) for m, values in backbone.steps(entered).items()}


def lengths(backbone, representation) -> dict[str, int]:
    return {name: int(t.mask.sum(1).max()) for name, t in backbone._sequence(representation).items()}


@pytest.mark.parametrize(
    ("variant", "parameters", "tokens"),
    [
        ("paper", 8_495_658, {"audio": 130, "visual": 390, "words": 77}),
        ("released", 2_453_546, {"audio": 60, "visual": 60, "words": 77}),
    ],
)
@torch.no_grad()
def test_has_the_papers_parameters_and_tokens(variant, parameters, tokens):
    backbone = make_backbone("pstp", PAPER, variant)
    assert sum(p.numel() for p in backbone.parameters()) == parameters
    entered = backbone.encode(make_batch(1, PAPER))
    assert lengths(backbone, entered) == tokens
    expected = {m: int(backbone._expected_tokens(entered, m)) for m in ("audio", "visual")}
    assert expected == {m: tokens[m] for m in expected}


def test_every_sample_has_its_own_segments_in_the_order_of_time():
    backbone, batch = tiny_pstp(), make_batch(12)
    question, steps = backbone.encode(batch).question, steps_of(backbone, batch)
    segments, _ = backbone.perception.segments(steps)
    weights = backbone.perception.segment_selector.weights(question, segments.unsqueeze(1)).squeeze(1)
    chosen, _ = backbone.perception.choose_segments(question, steps)
    gathered = backbone.perception.gather(steps["audio"].values, chosen)
    for row in range(12):
        assert chosen[row].tolist() == sorted(weights[row].topk(2).indices.tolist())
        for place, segment in enumerate(chosen[row].tolist()):
            expected = steps["audio"].values[row, 2 * segment : 2 * segment + 2]
            assert torch.equal(gathered[row, 2 * place : 2 * place + len(expected)], expected)
    assert len({tuple(places) for places in chosen.tolist()}) > 1


def test_every_second_of_every_sample_has_its_own_regions():
    backbone = tiny_pstp()
    question, patches = backbone.encode(make_batch()).question, torch.randn(3, 5, PATCHES, CHANNELS)
    weights = backbone.perception.patch_selector.weights(question, patches)
    regions = backbone.perception.select_regions(question, patches)
    choices = set()
    for row in range(3):
        for second in range(5):
            places = sorted(weights[row, second].topk(3).indices.tolist())
            assert torch.equal(regions[row, second], patches[row, second, places])
            choices.add(tuple(places))
    assert len(choices) > 3


def test_weights_are_those_of_a_multi_head_attention():
    torch.manual_seed(0)
    selector, attention = Selector(CHANNELS, 2, 3), torch.nn.MultiheadAttention(CHANNELS, 2, batch_first=True)
    torch.nn.init.normal_(attention.in_proj_bias)
    selector.query.weight.data, selector.key.weight.data = attention.in_proj_weight.data.split(CHANNELS)[:2]
    selector.query.bias.data = attention.in_proj_bias.data[:CHANNELS]
    question, items = torch.randn(4, CHANNELS), torch.randn(4, 6, CHANNELS)
    _, expected = attention(question.unsqueeze(1), items, items)
    torch.testing.assert_close(selector.weights(question, items.unsqueeze(1)), expected)


def test_a_choice_is_hard_and_carries_the_gradient_of_its_weight():
    weights = torch.tensor([[[0.3, 0.1, 0.4, 0.2]]], requires_grad=True)
    positions, gates = Selector(CHANNELS, 2, 2).choose(weights)
    assert positions.tolist() == [[[0, 2]]]
    assert torch.equal(gates, torch.ones(1, 1, 2))
    (gates * torch.tensor([5.0, 7.0])).sum().backward()
    assert weights.grad.tolist() == [[[5.0, 0.0, 7.0, 0.0]]]


def test_what_is_not_there_is_chosen_last_even_where_no_weight_tells():
    selector, weights = Selector(CHANNELS, 2, 2), torch.tensor([[[0.0, 0.0, 0.0, 1.0]]])
    positions, _ = selector.choose(weights, torch.tensor([[[False, False, True, True]]]))
    assert positions.tolist() == [[[2, 3]]]
    positions, _ = selector.choose(weights, torch.tensor([[[False, False, False, True]]]))
    assert positions[0, 0, -1] == 3


def test_selectors_learn_from_the_answer():
    backbone, batch = tiny_pstp(), make_batch()
    F.cross_entropy(logits(backbone, batch), batch.answer).backward()
    selecting = [(n, p) for n, p in backbone.named_parameters() if "selector" in n or "segment_stem" in n]
    assert len(selecting) == 7
    for name, parameter in selecting:
        assert parameter.grad.abs().max() > 1e-7, name


def test_the_choice_of_segments_learns_through_each_kind_of_token():
    backbone, batch = tiny_pstp(), make_batch()
    representation = backbone.encode(batch)
    steps = {m: Tokens(v, representation.masks[m]) for m, v in backbone.steps(representation).items()}
    patches = representation.features["visual"][:, :, 1:]
    perceived = backbone.perception(representation.question, steps, patches)
    selecting = backbone.perception.segment_stem.weight
    # What attends globally comes before any choice; segments of both, regions and what sound sees in them follow it.
    for modality, chosen in (("audio", 1), ("visual", 3)):
        first, *rest = perceived[modality]
        assert len(rest) == chosen
        assert torch.autograd.grad(first.values.sum(), selecting, retain_graph=True, allow_unused=True) == (None,)
        for tokens in rest:
            (gradient,) = torch.autograd.grad(tokens.values.square().sum(), selecting, retain_graph=True)
            assert gradient.abs().max() > 1e-9


def test_training_chooses_without_noise():
    backbone, batch = tiny_pstp(), make_batch(8)
    calm, noisy = backbone.encode(batch), backbone.train().encode(batch)
    steps = steps_of(backbone, batch)
    chosen = [backbone.perception.choose_segments(entered.question, steps)[0] for entered in (calm, noisy)]
    assert torch.equal(*chosen)
    assert not torch.equal(backbone.answer(noisy).logits, backbone.eval().answer(calm).logits)


def test_a_segment_is_the_mean_of_the_steps_that_are_there():
    backbone, batch = tiny_pstp(), with_steps(make_batch(1), [5], [2])
    steps = steps_of(backbone, batch)
    segments, there = backbone.perception.segments(steps)
    assert there.tolist() == [[True, True, True, False]]
    halves = torch.cat((steps["audio"].values[0, 4], torch.zeros(CHANNELS)))
    torch.testing.assert_close(segments[0, 2], backbone.perception.segment_stem(torch.tanh(halves)))


@pytest.mark.parametrize("steps", range(1, TIME))
def test_a_short_video_is_answered_as_if_there_were_no_longer_ones(steps):
    backbone, batch = tiny_pstp(layers=2), make_batch(3)
    batch = with_steps(batch, [steps] * 3, [steps] * 3)
    torch.testing.assert_close(logits(backbone, batch), logits(backbone, cut(batch, steps)))


def test_more_segments_patches_and_layers_than_there_are_steps_and_patches():
    backbone = tiny_pstp(segments=40, top_segments=30, top_patches=90, layers=3)
    batch = make_batch()
    tokens = lengths(backbone, backbone.encode(batch))
    assert tokens == {"audio": 3 * TIME, "visual": (4 + PATCHES) * TIME, "words": 4}
    F.cross_entropy(logits(backbone, batch), batch.answer).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in backbone.parameters())


def test_a_sound_shorter_than_its_picture_guides_only_its_own_seconds():
    backbone, batch = tiny_pstp(top_segments=4), with_steps(make_batch(1), [3], [7])
    tokens = lengths(backbone, backbone.encode(batch))
    assert tokens == {"audio": 3 * 3, "visual": 3 * 7 + 3 * 7 + 3, "words": 4}


def test_sound_guides_the_eye_second_by_second():
    backbone = tiny_pstp()
    audio, regions = torch.randn(2, 4, CHANNELS), torch.randn(2, 4, 3, CHANNELS)
    before = backbone.perception.guide(audio, regions)
    audio[0, 1] += 1
    changed = (backbone.perception.guide(audio, regions) != before).any(2)
    assert changed.tolist() == [[False, True, False, False], [False] * 4]


def test_global_local_perception_lets_the_picture_read_the_sound_that_read_it():
    backbone = tiny_pstp()
    steps, layer = steps_of(backbone, make_batch()), backbone.perception.global_local[0]
    audio = layer(steps["audio"], steps["visual"])
    visual = layer(steps["visual"], audio)
    found = backbone.perception.attend_globally(steps)
    torch.testing.assert_close(found["audio"].values, audio.values)
    torch.testing.assert_close(found["visual"].values, visual.values)
    assert not torch.allclose(found["audio"].values, steps["audio"].values)


def test_only_the_papers_reading_sees_patches():
    batch = make_batch()
    for variant, sees in (("paper", True), ("released", False)):
        backbone = tiny_pstp(variant)
        assert torch.equal(logits(backbone, batch), logits(backbone, change_patches(batch))) != sees


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_all_words_are_read_padding_included(variant):
    backbone, batch = tiny_pstp(variant), make_batch()
    words = batch.question["clip-vit-b32-words"].clone()
    words[:, -1] += 1
    changed = replace(batch, question={**batch.question, "clip-vit-b32-words": words})
    assert not torch.allclose(logits(backbone, changed), logits(backbone, batch))


def test_a_picture_given_by_the_second_has_no_patches():
    backbone = tiny_pstp(top_segments=4)
    entered = backbone.encode(make_batch())
    by_second = replace(entered, steps=backbone.steps(entered))
    assert lengths(backbone, by_second) == {"audio": 3 * TIME, "visual": 3 * TIME, "words": 4}
    by_second = replace(by_second, features={})
    assert backbone.answer(by_second).logits.isfinite().all()


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_pooled_vectors_weigh_in_the_mean_as_their_tokens_would(variant):
    backbone = tiny_pstp(variant)
    entered = backbone.encode(make_batch())
    pooled, alone = backbone.pool(entered), replace(entered, features={}, masks={})
    words = backbone._fused(alone)["words"].mean()
    # Four of seven steps are selected, each with three patches and one guided look.
    audio, visual = (2 * 7 + 4, 2 * 7 + 4 * 5) if variant == "paper" else (7, 7)
    mean = (audio * pooled["audio"] + visual * pooled["visual"] + 4 * words) / (audio + visual + 4)
    expected = backbone.classifier(torch.tanh(mean * entered.question))
    torch.testing.assert_close(backbone.answer(replace(alone, pooled=pooled)).logits, expected)
    few = replace(alone, pooled=pooled, masks={"visual": torch.arange(7)[None] < torch.tensor([[7], [7], [1]])})
    torch.testing.assert_close(backbone.answer(few).logits[:2], expected[:2])
    assert not torch.allclose(backbone.answer(few).logits[2], expected[2])


def test_prompts_reach_the_sequence_only_with_their_modality():
    backbone = tiny_pstp()
    entered = backbone.encode(make_batch().without("audio"))
    plain = backbone.pool(entered)
    assert torch.equal(backbone.pool(entered, {"audio": torch.randn(2, CHANNELS)})["visual"], plain["visual"])
    prompted = backbone.pool(entered, {"visual": torch.randn(2, CHANNELS)})
    assert not torch.allclose(prompted["visual"], plain["visual"])


def test_refuses_what_it_cannot_be_built_of_or_answer():
    for options in ({"segments": 0}, {"top_segments": 0}, {"top_patches": 0}, {"layers": 0}):
        with pytest.raises(UserError, match=f"{next(iter(options))} = 0"):
            tiny_pstp(**options)
    backbone = tiny_pstp()
    with pytest.raises(ValueError, match="give words"):
        backbone.answer(replace(backbone.encode(make_batch()), words=None))
