"""Every backbone at the seam, as a product over the table: a new one is picked up without an edit here."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tiny_store import QUESTION_SHAPES, SHAPES, SIZES, of_modality

from pipeline.errors import UserError
from pipeline.store.schema import MODALITIES
from train.backbones.registry import BACKBONES, backbone_variants, make_backbone
from train.data.batch import Batch
from train.interfaces import Representation
from train.methods.constant_answer import ConstantAnswer
from train.networks.layers import InputWhitening

TIME, TOKENS = SIZES.time_steps, 6
READINGS = [(name, variant) for name in BACKBONES for variant in backbone_variants(name) or ("paper",)]
each_reading = pytest.mark.parametrize(("name", "variant"), READINGS)


def make(name: str, variant: str):
    torch.manual_seed(3)
    return make_backbone(name, SIZES, variant).eval()


def make_batch(rows: int = 5, time: int = TIME, seed: int = 0, negatives: bool = False) -> Batch:
    """Return a complete batch of everything that a store of the tests holds."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    tokens = torch.randint(1, SIZES.words, (rows, TOKENS), generator=generator)
    tokens[:, -2:] = 0
    visual = {name: draw(rows, time, *SHAPES[name]) for name in of_modality("visual")}
    there = torch.ones(rows, time, dtype=torch.bool)
    return Batch(
        question={"tokens": tokens, **{name: draw(rows, *shape) for name, shape in QUESTION_SHAPES.items()}},
        audio={name: draw(rows, time, *SHAPES[name]) for name in of_modality("audio")},
        visual=visual,
        audio_mask=there,
        visual_mask=there,
        answer=torch.randint(0, SIZES.answers, (rows,), generator=generator),
        type=("",) * rows,
        question_id=tuple(f"q{row}" for row in range(rows)),
        video_id=tuple(f"v{row}" for row in range(rows)),
        negatives={name: values.flip(0) for name, values in visual.items()} if negatives else None,
    )


def lengthen(batch: Batch, steps: int) -> Batch:
    """Return the batch with `steps` more steps that are not there, NaN as a dataset gives them."""

    def longer(values: torch.Tensor) -> torch.Tensor:
        fill = False if values.dtype == torch.bool else torch.nan
        return torch.cat((values, values.new_full((len(values), steps, *values.shape[2:]), fill)), 1)

    return replace(
        batch,
        audio={name: longer(values) for name, values in batch.audio.items()},
        visual={name: longer(values) for name, values in batch.visual.items()},
        audio_mask=longer(batch.audio_mask),
        visual_mask=longer(batch.visual_mask),
    )


def overwrite(values: torch.Tensor, there: torch.Tensor, fill: float) -> torch.Tensor:
    """Return `values` [batch, time, ...] with `fill` at the steps that are not `there`."""
    return values.masked_fill(~there.view(*there.shape, *[1] * (values.dim() - 2)), fill)


@torch.no_grad()
def logits(backbone, batch: Batch) -> torch.Tensor:
    return backbone.answer(backbone.encode(batch)).logits


@each_reading
def test_names_the_tensors_of_its_features(name, variant):
    backbone, batch = make(name, variant), make_batch()
    entered = backbone.encode(batch)
    assert entered.question.shape == (5, backbone.channels)
    assert set(backbone.feature_shapes) == set(MODALITIES)
    for modality in MODALITIES:
        assert entered.features[modality].shape == (5, TIME, *backbone.feature_shapes[modality])
        assert set(backbone.needs[modality]) <= set(of_modality(modality))
        for feature in backbone.needs[modality]:
            assert tuple(backbone.input_shapes[feature]) == SHAPES[feature]
            scale = backbone.input_whitening[feature]
            assert isinstance(scale, InputWhitening)
            assert len(scale.mean) == SHAPES[feature][scale.axis]
    assert backbone.time_steps >= TIME


@each_reading
def test_what_is_absent_is_gone_before_any_fusion(name, variant):
    for modality in MODALITIES:
        entered = make(name, variant).encode(make_batch().without(modality))
        assert entered.level(modality) is None
        assert modality not in entered.masks
        assert entered.negatives is None or modality == "audio"


@each_reading
def test_gradient_reaches_every_parameter(name, variant):
    backbone, batch = make(name, variant), make_batch(negatives=True)
    answer = backbone.answer(backbone.encode(batch))
    (F.cross_entropy(answer.logits, batch.answer) + sum(answer.losses.values())).backward()
    # Rounding gives a parameter that nothing depends on some 1e-11.
    unreached = [n for n, p in backbone.named_parameters() if p.grad is None or not p.grad.abs().max() > 1e-8]
    assert unreached == []


@each_reading
def test_a_batch_of_one_equals_its_row_in_a_batch(name, variant):
    backbone, batch = make(name, variant), make_batch()
    alone = torch.cat([logits(backbone, batch.select(torch.tensor([row]))) for row in range(len(batch))])
    torch.testing.assert_close(alone, logits(backbone, batch))


@each_reading
def test_permuting_the_questions_permutes_the_logits(name, variant):
    backbone, batch, order = make(name, variant), make_batch(), torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(logits(backbone, batch.select(order)), logits(backbone, batch)[order])


@each_reading
@pytest.mark.parametrize("steps", [1, 3])
def test_padding_more_steps_changes_nothing(name, variant, steps):
    backbone, batch = make(name, variant), make_batch()
    torch.testing.assert_close(logits(backbone, lengthen(batch, steps)), logits(backbone, batch))


@each_reading
def test_a_row_with_fewer_steps_does_not_read_what_stands_after_its_end(name, variant):
    backbone, batch = make(name, variant), make_batch()
    short = torch.arange(TIME) < torch.tensor([TIME, 2, TIME, 1, 3])[:, None]
    batch = replace(batch, audio_mask=short, visual_mask=short)
    expected = logits(backbone, batch)
    for fill in (torch.nan, 7.0):
        hidden = {m: {n: overwrite(v, short, fill) for n, v in batch.features(m).items()} for m in MODALITIES}
        torch.testing.assert_close(logits(backbone, replace(batch, **hidden)), expected)


@each_reading
def test_every_modality_counts(name, variant):
    backbone, batch = make(name, variant), make_batch()
    expected = logits(backbone, batch)
    for changed in (
        replace(batch, audio={n: v.flip(0) for n, v in batch.audio.items()}),
        replace(batch, visual={n: v.flip(0) for n, v in batch.visual.items()}),
        replace(batch, question={n: v.flip(0) for n, v in batch.question.items()}),
    ):
        assert not torch.allclose(logits(backbone, changed), expected)


@each_reading
@pytest.mark.parametrize("level", ["steps", "pooled"])
@pytest.mark.parametrize("replaced", [("audio",), ("visual",), MODALITIES])
def test_a_modality_may_enter_at_any_level(name, variant, level, replaced):
    backbone, batch = make(name, variant), make_batch()
    entered = backbone.encode(batch.without(*replaced))
    shape = (5, TIME, backbone.channels) if level == "steps" else (5, backbone.channels)
    values = {m: torch.randn(shape, generator=torch.Generator().manual_seed(8), requires_grad=True) for m in replaced}
    answered = backbone.answer(replace(entered, **{level: values})).logits
    answered.square().sum().backward()
    assert answered.shape == (5, SIZES.answers)
    assert answered.isfinite().all()
    assert all(value.grad is not None and value.grad.abs().sum() > 0 for value in values.values())


@each_reading
def test_steps_and_pooled_vectors_have_the_width_it_says(name, variant):
    backbone, batch = make(name, variant), make_batch()
    entered = backbone.encode(batch)
    steps, pooled = backbone.steps(entered), backbone.pool(entered)
    prompts = {m: torch.randn(3, backbone.channels) for m in MODALITIES}
    prompted = backbone.pool(entered, prompts)
    for modality in MODALITIES:
        assert steps[modality].shape == (5, TIME, backbone.channels)
        assert pooled[modality].shape == (5, backbone.channels)
        assert not torch.allclose(prompted[modality], pooled[modality])
    alone = backbone.pool(backbone.encode(batch.without("audio")))
    assert set(alone) == {"visual"}


@each_reading
def test_says_what_nothing_stands_for(name, variant):
    backbone = make(name, variant)
    for modality in MODALITIES:
        with pytest.raises(ValueError, match=f"nothing stands for {modality}"):
            backbone.answer(backbone.encode(make_batch().without(modality)))


@each_reading
def test_constants_answer_where_no_video_is_there(name, variant):
    backbone, batch = make(name, variant), make_batch()
    constants = ConstantAnswer(backbone)
    entered = backbone.encode(batch.without(*MODALITIES))
    expected = constants.logits(backbone, entered)
    assert expected.shape == (5, SIZES.answers)
    assert torch.equal(constants.logits(backbone, backbone.encode(batch)), expected)
    assert isinstance(entered, Representation)


@pytest.mark.gpu
@each_reading
def test_a_gpu_agrees(name, variant):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    backbone, batch = make(name, variant), make_batch()
    expected = logits(backbone, batch)
    found = logits(backbone.cuda(), batch.to("cuda"))
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-3, atol=1e-4)


def test_sizes_that_do_not_fit_are_told_apart_from_faults_of_the_program():
    with pytest.raises(UserError, match="backbone 'avst' cannot be built: AVST compares maps"):
        make_backbone("avst", SIZES.model_copy(update={"channels": 4 * SIZES.channels}))
