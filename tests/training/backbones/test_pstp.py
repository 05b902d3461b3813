"""What is specific to PSTP-Net: selection and its gradient, the fused sequence, few and odd numbers of steps."""

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
# Segments of two steps, the last of one step; three of six patches are selected.
OPTIONS = {"segments": 3, "top_segments": 2, "top_patches": 3}


def tiny_pstp(variant: str = "paper", **options: int):
    torch.manual_seed(4)
    return make_backbone("pstp", TINY, variant, **{**OPTIONS, **options}).eval()


def make_batch(rows: int = 3, sizes: ModelSizes = TINY, time: int | None = None) -> Batch:
    generator = torch.Generator().manual_seed(6)
    time = sizes.time_steps if time is None else time

    def sample(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    mask = torch.ones(rows, time, dtype=torch.bool)
    return Batch(
        question={name: sample(rows, *shape) for name, shape in sizes.question_shapes.items()},
        audio={"vggish": sample(rows, time, *sizes.input_shapes["vggish"])},
        visual={"clip-vit-b32": sample(rows, time, *sizes.input_shapes["clip-vit-b32"])},
        audio_mask=mask,
        visual_mask=mask,
        answer=torch.zeros(rows, dtype=torch.int64),
        type=("Audio Counting",) * rows,
        question_id=tuple(map(str, range(rows))),
        video_id=tuple(map(str, range(rows))),
    )


def with_steps(batch: Batch, audio: list[int], visual: list[int]) -> Batch:
    """Return the batch in which only the first steps of each row are available, as many as given."""
    positions = torch.arange(batch.audio_mask.shape[1])
    masks = {m: positions < torch.tensor(steps)[:, None] for m, steps in (("audio", audio), ("visual", visual))}
    return replace(batch, audio_mask=masks["audio"], visual_mask=masks["visual"])


def cut(batch: Batch, steps: int) -> Batch:
    """Return the batch with only the first `steps` steps of every video."""
    shortened = {m: {n: v[:, :steps] for n, v in batch.features(m).items()} for m in ("audio", "visual")}
    return replace(batch, **shortened, audio_mask=batch.audio_mask[:, :steps], visual_mask=batch.visual_mask[:, :steps])


def change_patches(batch: Batch) -> Batch:
    tokens = batch.visual["clip-vit-b32"].clone()
    tokens[:, :, 1:] = tokens[:, :, 1:].flip(0)
    return replace(batch, visual={"clip-vit-b32": tokens})


def logits(backbone, batch: Batch) -> torch.Tensor:
    return backbone.answer(backbone.encode(batch)).logits


def steps_of(backbone, batch: Batch) -> dict[str, Tokens]:
    encoded = backbone.encode(batch)
    return {m: Tokens(values, encoded.masks[m]) for m, values in backbone.steps(encoded).items()}


def lengths(backbone, representation) -> dict[str, int]:
    return {name: int(t.mask.sum(1).max()) for name, t in backbone._tokens(representation).items()}


@pytest.mark.parametrize(
    ("variant", "parameters", "tokens"),
    [
        ("paper", 8_495_658, {"audio": 130, "visual": 390, "words": 77}),
        ("released", 2_453_546, {"audio": 60, "visual": 60, "words": 77}),
    ],
)
@torch.no_grad()
def test_has_the_documented_numbers_of_parameters_and_tokens(variant, parameters, tokens):
    backbone = make_backbone("pstp", PAPER, variant)
    assert sum(p.numel() for p in backbone.parameters()) == parameters
    encoded = backbone.encode(make_batch(1, PAPER))
    assert lengths(backbone, encoded) == tokens
    expected = {m: int(backbone._expected_tokens(encoded, m)) for m in ("audio", "visual")}
    assert expected == {m: tokens[m] for m in expected}


def test_every_sample_selects_its_own_segments_in_the_order_of_time():
    backbone, batch = tiny_pstp(), make_batch(12)
    question, steps = backbone.encode(batch).question, steps_of(backbone, batch)
    segments, _ = backbone.perception.segments(steps)
    weights = backbone.perception.segment_selector.weights(question, segments.unsqueeze(1)).squeeze(1)
    selected, _ = backbone.perception.select_segments(question, steps)
    gathered = backbone.perception.gather_steps(steps["audio"].values, selected)
    for row in range(12):
        assert selected[row].tolist() == sorted(weights[row].topk(2).indices.tolist())
        for position, segment in enumerate(selected[row].tolist()):
            expected = steps["audio"].values[row, 2 * segment : 2 * segment + 2]
            assert torch.equal(gathered[row, 2 * position : 2 * position + len(expected)], expected)
    assert len({tuple(segments) for segments in selected.tolist()}) > 1


def test_every_step_of_every_sample_selects_its_own_regions():
    backbone = tiny_pstp()
    question, patches = backbone.encode(make_batch()).question, torch.randn(3, 5, PATCHES, CHANNELS)
    weights = backbone.perception.patch_selector.weights(question, patches)
    regions = backbone.perception.select_regions(question, patches)
    selections = set()
    for row in range(3):
        for step in range(5):
            selected = sorted(weights[row, step].topk(3).indices.tolist())
            assert torch.equal(regions[row, step], patches[row, step, selected])
            selections.add(tuple(selected))
    assert len(selections) > 3


def test_weights_are_those_of_a_multi_head_attention():
    torch.manual_seed(0)
    selector, attention = Selector(CHANNELS, 2, 3), torch.nn.MultiheadAttention(CHANNELS, 2, batch_first=True)
    torch.nn.init.normal_(attention.in_proj_bias)
    selector.query.weight.data, selector.key.weight.data = attention.in_proj_weight.data.split(CHANNELS)[:2]
    selector.query.bias.data = attention.in_proj_bias.data[:CHANNELS]
    question, items = torch.randn(4, CHANNELS), torch.randn(4, 6, CHANNELS)
    _, expected = attention(question.unsqueeze(1), items, items)
    torch.testing.assert_close(selector.weights(question, items.unsqueeze(1)), expected)


def test_selection_is_hard_and_carries_the_gradient_of_the_weights():
    weights = torch.tensor([[[0.3, 0.1, 0.4, 0.2]]], requires_grad=True)
    positions, gates = Selector(CHANNELS, 2, 2).select(weights)
    assert positions.tolist() == [[[0, 2]]]
    assert torch.equal(gates, torch.ones(1, 1, 2))
    (gates * torch.tensor([5.0, 7.0])).sum().backward()
    assert weights.grad.tolist() == [[[5.0, 0.0, 7.0, 0.0]]]


def test_missing_items_are_selected_last_even_if_all_weights_are_zero():
    selector, weights = Selector(CHANNELS, 2, 2), torch.tensor([[[0.0, 0.0, 0.0, 1.0]]])
    positions, _ = selector.select(weights, torch.tensor([[[False, False, True, True]]]))
    assert positions.tolist() == [[[2, 3]]]
    positions, _ = selector.select(weights, torch.tensor([[[False, False, False, True]]]))
    assert positions[0, 0, -1] == 3


def test_selectors_learn_from_the_answer():
    backbone, batch = tiny_pstp(), make_batch()
    F.cross_entropy(logits(backbone, batch), batch.answer).backward()
    selecting = [(n, p) for n, p in backbone.named_parameters() if "selector" in n or "segment_stem" in n]
    assert len(selecting) == 7
    for name, parameter in selecting:
        assert parameter.grad.abs().max() > 1e-7, name


def test_the_segment_selector_has_a_gradient_through_each_kind_of_token():
    backbone, batch = tiny_pstp(), make_batch()
    representation = backbone.encode(batch)
    steps = {m: Tokens(v, representation.masks[m]) for m, v in backbone.steps(representation).items()}
    patches = representation.features["visual"][:, :, 1:]
    perceived = backbone.perception(representation.question, steps, patches)
    selecting = backbone.perception.segment_stem.weight
    # Global-local tokens do not depend on the selection; selected steps, regions and audio-guided steps do.
    for modality, dependent in (("audio", 1), ("visual", 3)):
        first, *rest = perceived[modality]
        assert len(rest) == dependent
        assert torch.autograd.grad(first.values.sum(), selecting, retain_graph=True, allow_unused=True) == (None,)
        for tokens in rest:
            (gradient,) = torch.autograd.grad(tokens.values.square().sum(), selecting, retain_graph=True)
            assert gradient.abs().max() > 1e-9


def test_selection_is_deterministic_in_training():
    backbone, batch = tiny_pstp(), make_batch(8)
    in_evaluation, in_training = backbone.encode(batch), backbone.train().encode(batch)
    steps = steps_of(backbone, batch)
    selected = [backbone.perception.select_segments(e.question, steps)[0] for e in (in_evaluation, in_training)]
    assert torch.equal(*selected)
    assert not torch.equal(backbone.answer(in_training).logits, backbone.eval().answer(in_evaluation).logits)


def test_a_segment_is_the_mean_of_its_available_steps():
    backbone, batch = tiny_pstp(), with_steps(make_batch(1), [5], [2])
    steps = steps_of(backbone, batch)
    segments, is_available = backbone.perception.segments(steps)
    assert is_available.tolist() == [[True, True, True, False]]
    halves = torch.cat((steps["audio"].values[0, 4], torch.zeros(CHANNELS)))
    torch.testing.assert_close(segments[0, 2], backbone.perception.segment_stem(torch.tanh(halves)))


@pytest.mark.parametrize("steps", range(1, TIME))
def test_missing_steps_at_the_end_equal_a_shorter_batch(steps):
    backbone, batch = tiny_pstp(layers=2), make_batch(3)
    batch = with_steps(batch, [steps] * 3, [steps] * 3)
    torch.testing.assert_close(logits(backbone, batch), logits(backbone, cut(batch, steps)))


def test_more_segments_and_patches_than_available_select_all_of_them():
    backbone = tiny_pstp(segments=40, top_segments=30, top_patches=90, layers=3)
    batch = make_batch()
    tokens = lengths(backbone, backbone.encode(batch))
    assert tokens == {"audio": 3 * TIME, "visual": (4 + PATCHES) * TIME, "words": 4}
    F.cross_entropy(logits(backbone, batch), batch.answer).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in backbone.parameters())


def test_audio_guides_only_the_steps_that_have_audio():
    backbone, batch = tiny_pstp(top_segments=4), with_steps(make_batch(1), [3], [7])
    tokens = lengths(backbone, backbone.encode(batch))
    assert tokens == {"audio": 3 * 3, "visual": 3 * 7 + 3 * 7 + 3, "words": 4}


def test_audio_guided_attention_is_independent_for_each_step():
    backbone = tiny_pstp()
    audio, regions = torch.randn(2, 4, CHANNELS), torch.randn(2, 4, 3, CHANNELS)
    before = backbone.perception.attend_to_regions(audio, regions)
    audio[0, 1] += 1
    changed = (backbone.perception.attend_to_regions(audio, regions) != before).any(2)
    assert changed.tolist() == [[False, True, False, False], [False] * 4]


def test_in_global_local_perception_visual_attends_to_the_updated_audio():
    backbone = tiny_pstp()
    steps, layer = steps_of(backbone, make_batch()), backbone.perception.global_local[0]
    audio = layer(steps["audio"], steps["visual"])
    visual = layer(steps["visual"], audio)
    found = backbone.perception.attend_globally(steps)
    torch.testing.assert_close(found["audio"].values, audio.values)
    torch.testing.assert_close(found["visual"].values, visual.values)
    assert not torch.allclose(found["audio"].values, steps["audio"].values)


def test_only_the_paper_variant_reads_patches():
    batch = make_batch()
    for variant, reads_patches in (("paper", True), ("released", False)):
        backbone = tiny_pstp(variant)
        assert torch.equal(logits(backbone, batch), logits(backbone, change_patches(batch))) != reads_patches


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_all_words_are_read_padding_included(variant):
    backbone, batch = tiny_pstp(variant), make_batch()
    words = batch.question["clip-vit-b32-words"].clone()
    words[:, -1] += 1
    changed = replace(batch, question={**batch.question, "clip-vit-b32-words": words})
    assert not torch.allclose(logits(backbone, changed), logits(backbone, batch))


def test_a_visual_modality_at_the_steps_level_has_no_patches():
    backbone = tiny_pstp(top_segments=4)
    encoded = backbone.encode(make_batch())
    at_steps = replace(encoded, steps=backbone.steps(encoded))
    assert lengths(backbone, at_steps) == {"audio": 3 * TIME, "visual": 3 * TIME, "words": 4}
    at_steps = replace(at_steps, features={})
    assert backbone.answer(at_steps).logits.isfinite().all()


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_pooled_vectors_have_the_weight_of_their_tokens_in_the_mean(variant):
    backbone = tiny_pstp(variant)
    encoded = backbone.encode(make_batch())
    pooled, alone = backbone.pool(encoded), replace(encoded, features={}, masks={})
    words = backbone._fuse(alone)["words"].mean()
    # Four of seven steps are selected; each has three patches and one audio-guided token.
    audio, visual = (2 * 7 + 4, 2 * 7 + 4 * 5) if variant == "paper" else (7, 7)
    mean = (audio * pooled["audio"] + visual * pooled["visual"] + 4 * words) / (audio + visual + 4)
    expected = backbone.classifier(torch.tanh(mean * encoded.question))
    torch.testing.assert_close(backbone.answer(replace(alone, pooled=pooled)).logits, expected)
    one_step = replace(alone, pooled=pooled, masks={"visual": torch.arange(7)[None] < torch.tensor([[7], [7], [1]])})
    torch.testing.assert_close(backbone.answer(one_step).logits[:2], expected[:2])
    assert not torch.allclose(backbone.answer(one_step).logits[2], expected[2])


def test_prompts_of_a_missing_modality_have_no_effect():
    backbone = tiny_pstp()
    encoded = backbone.encode(make_batch().without("audio"))
    plain = backbone.pool(encoded)
    assert torch.equal(backbone.pool(encoded, {"audio": torch.randn(2, CHANNELS)})["visual"], plain["visual"])
    prompted = backbone.pool(encoded, {"visual": torch.randn(2, CHANNELS)})
    assert not torch.allclose(prompted["visual"], plain["visual"])


def test_options_of_zero_and_a_question_without_words_are_refused():
    for options in ({"segments": 0}, {"top_segments": 0}, {"top_patches": 0}, {"layers": 0}):
        with pytest.raises(UserError, match=f"{next(iter(options))} = 0"):
            tiny_pstp(**options)
    backbone = tiny_pstp()
    with pytest.raises(ValueError, match="pass words"):
        backbone.answer(replace(backbone.encode(make_batch()), words=None))
