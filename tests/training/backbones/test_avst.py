"""What is specific to AVST: sizes, masks, levels, the match loss."""

import pytest
import torch

from train.backbones.registry import make_backbone
from train.backbones.sizes import ModelSizes
from train.data.batch import Batch
from train.interfaces import Representation

TINY = ModelSizes(
    words=20,
    answers=7,
    input_shapes={"vggish": (8,), "resnet18-map": (16, 3, 2)},
    channels=16,
    heads=2,
    time_steps=4,
)


def make_batch(rows: int, time: int = 4, negatives: bool = False) -> Batch:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(rows, time, 16, 3, 2, generator=generator).relu()
    return Batch(
        question={"tokens": torch.randint(0, 20, (rows, 14), generator=generator)},
        audio={"vggish": torch.randn(rows, time, 8, generator=generator)},
        visual={"resnet18-map": maps},
        audio_mask=torch.ones(rows, time, dtype=torch.bool),
        visual_mask=torch.ones(rows, time, dtype=torch.bool),
        answer=torch.randint(0, 7, (rows,), generator=generator),
        type=("Audio Counting",) * rows,
        question_id=tuple(f"q{row}" for row in range(rows)),
        video_id=tuple(f"v{row}" for row in range(rows)),
        negatives={"resnet18-map": maps.flip(0)} if negatives else None,
    )


def tiny_avst():
    torch.manual_seed(0)
    return make_backbone("avst", TINY).eval()


def logits(backbone, batch: Batch) -> torch.Tensor:
    return backbone.answer(backbone.encode(batch)).logits


def test_has_the_documented_number_of_parameters():
    shapes = {"vggish": (128,), "resnet18-map": (512, 14, 14)}
    backbone = make_backbone("avst", ModelSizes(words=93, answers=42, input_shapes=shapes))
    assert sum(p.numel() for p in backbone.parameters()) == 7_916_716


def test_gradient_reaches_every_parameter():
    backbone = tiny_avst()
    batch = make_batch(3, negatives=True)
    answer = backbone.answer(backbone.encode(batch))
    (torch.nn.functional.cross_entropy(answer.logits, batch.answer) + answer.losses["match"]).backward()
    unreached = [n for n, p in backbone.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert unreached == []


def test_a_row_does_not_depend_on_its_batch():
    backbone, batch = tiny_avst(), make_batch(5)
    alone = torch.cat([logits(backbone, batch.select(torch.tensor([row]))) for row in range(5)])
    torch.testing.assert_close(alone, logits(backbone, batch))


def test_permuting_the_questions_permutes_the_logits():
    backbone, batch, order = tiny_avst(), make_batch(5), torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(logits(backbone, batch.select(order)), logits(backbone, batch)[order])


def pad(batch: Batch, steps: int) -> Batch:
    def longer(values: torch.Tensor, fill: float) -> torch.Tensor:
        tail = values.new_full((len(values), steps, *values.shape[2:]), fill)
        return torch.cat((values, tail), dim=1)

    return Batch(
        question=batch.question,
        audio={"vggish": longer(batch.audio["vggish"], float("nan"))},
        visual={"resnet18-map": longer(batch.visual["resnet18-map"], float("nan"))},
        audio_mask=longer(batch.audio_mask, False),
        visual_mask=longer(batch.visual_mask, False),
        answer=batch.answer,
        type=batch.type,
        question_id=batch.question_id,
        video_id=batch.video_id,
        negatives={"resnet18-map": longer(batch.negatives["resnet18-map"], 1.0)},
    )


def test_missing_steps_have_no_effect():
    backbone, batch = tiny_avst(), make_batch(3, negatives=True)
    short, long = (backbone.answer(backbone.encode(b)) for b in (batch, pad(batch, 3)))
    torch.testing.assert_close(long.logits, short.logits)
    torch.testing.assert_close(long.losses["match"], short.losses["match"])


def test_spatial_grounding_uses_audio_and_equal_weights_without_it():
    backbone, batch = tiny_avst(), make_batch(3)
    both = backbone.encode(batch)
    visual_only = backbone.encode(batch.without("audio"))
    maps = visual_only.features["visual"].flatten(3)
    mean_of_normalised = torch.nn.functional.normalize(maps, dim=2).mean(3)
    joined = torch.tanh(torch.cat((maps.mean(3), mean_of_normalised), dim=-1))
    expected = backbone.spatial_grounding.output(joined)
    torch.testing.assert_close(backbone.steps(visual_only)["visual"], expected)
    assert not torch.allclose(backbone.steps(both)["visual"], expected)


def test_a_modality_that_is_missing_at_all_levels_is_refused():
    backbone, batch = tiny_avst(), make_batch(2)
    for modality in ("audio", "visual"):
        with pytest.raises(ValueError, match=modality):
            logits(backbone, batch.without(modality))


def test_every_level_of_a_representation_gives_the_same_answer():
    backbone = tiny_avst()
    encoded = backbone.encode(make_batch(3))
    steps = Representation(encoded.question, steps=backbone.steps(encoded), masks=encoded.masks)
    pooled = Representation(encoded.question, pooled=backbone.pool(encoded))
    for other in (steps, pooled):
        torch.testing.assert_close(backbone.answer(other).logits, backbone.answer(encoded).logits)


def test_match_loss_needs_negatives_and_both_modalities_at_the_features_level():
    backbone, batch = tiny_avst(), make_batch(3, negatives=True)
    encoded = backbone.encode(batch)
    assert set(backbone.answer(encoded).losses) == {"match"}
    assert backbone.answer(backbone.encode(make_batch(3))).losses == {}
    at_steps = Representation(
        encoded.question,
        dict(encoded.features),
        backbone.steps(encoded),
        {},
        encoded.masks,
        encoded.negatives,
    )
    assert backbone.answer(at_steps).losses == {}


def test_prompts_change_only_their_own_modality():
    backbone = tiny_avst()
    encoded = backbone.encode(make_batch(3))
    plain = backbone.pool(encoded)
    prompted = backbone.pool(encoded, {"audio": torch.randn(2, 16)})
    torch.testing.assert_close(prompted["visual"], plain["visual"])
    assert not torch.allclose(prompted["audio"], plain["audio"])
