"""The contract of `Backbone` for every backbone and variant in the registry."""

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
from train.methods.both_missing import ConstantAnswer
from train.networks.layers import InputWhitening

TIME, TOKENS = SIZES.time_steps, 6
VARIANTS = [(name, variant) for name in BACKBONES for variant in backbone_variants(name) or (None,)]
each_variant = pytest.mark.parametrize(("name", "variant"), VARIANTS)


def make(name: str, variant: str | None):
    torch.manual_seed(3)
    return make_backbone(name, SIZES, variant).eval()


def make_batch(rows: int = 5, time: int = TIME, negatives: bool = False) -> Batch:
    """Return a complete batch with every feature of the tests' stores."""
    generator = torch.Generator().manual_seed(0)

    def sample(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    tokens = torch.randint(1, SIZES.words, (rows, TOKENS), generator=generator)
    tokens[:, -2:] = 0
    visual = {name: sample(rows, time, *SHAPES[name]) for name in of_modality("visual")}
    mask = torch.ones(rows, time, dtype=torch.bool)
    return Batch(
        question={"tokens": tokens, **{name: sample(rows, *shape) for name, shape in QUESTION_SHAPES.items()}},
        audio={name: sample(rows, time, *SHAPES[name]) for name in of_modality("audio")},
        visual=visual,
        audio_mask=mask,
        visual_mask=mask,
        answer=torch.randint(0, SIZES.answers, (rows,), generator=generator),
        type=("",) * rows,
        question_id=tuple(f"q{row}" for row in range(rows)),
        video_id=tuple(f"v{row}" for row in range(rows)),
        negatives={name: values.flip(0) for name, values in visual.items()} if negatives else None,
    )


def lengthen(batch: Batch, steps: int) -> Batch:
    """Return the batch with `steps` additional missing steps, NaN as in a dataset's batches."""

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


def overwrite_missing(values: torch.Tensor, mask: torch.Tensor, fill: float) -> torch.Tensor:
    """Return `values` [batch, time, ...] with `fill` where `mask` [batch, time] is False."""
    return values.masked_fill(~mask.view(*mask.shape, *[1] * (values.dim() - 2)), fill)


@torch.no_grad()
def logits(backbone, batch: Batch) -> torch.Tensor:
    return backbone.answer(backbone.encode(batch)).logits


@each_variant
def test_shapes_and_needs_describe_its_features_and_inputs(name, variant):
    backbone, batch = make(name, variant), make_batch()
    encoded = backbone.encode(batch)
    assert encoded.question.shape == (5, backbone.channels)
    assert set(backbone.feature_shapes) == set(MODALITIES)
    for modality in MODALITIES:
        assert encoded.features[modality].shape == (5, TIME, *backbone.feature_shapes[modality])
        assert set(backbone.needs[modality]) <= set(of_modality(modality))
        for feature in backbone.needs[modality]:
            assert tuple(backbone.input_shapes[feature]) == SHAPES[feature]
            whitening = backbone.input_whitening[feature]
            assert isinstance(whitening, InputWhitening)
            assert len(whitening.mean) == SHAPES[feature][whitening.axis]
    assert backbone.time_steps >= TIME


@each_variant
def test_a_missing_modality_is_missing_in_the_representation(name, variant):
    for modality in MODALITIES:
        encoded = make(name, variant).encode(make_batch().without(modality))
        assert encoded.level(modality) is None
        assert modality not in encoded.masks
        assert encoded.negatives is None or modality == "audio"


@each_variant
def test_gradient_reaches_every_parameter(name, variant):
    backbone, batch = make(name, variant), make_batch(negatives=True)
    answer = backbone.answer(backbone.encode(batch))
    (F.cross_entropy(answer.logits, batch.answer) + sum(answer.losses.values())).backward()
    # By rounding, a parameter without any effect may have a gradient of about 1e-11.
    unreached = [n for n, p in backbone.named_parameters() if p.grad is None or not p.grad.abs().max() > 1e-8]
    assert unreached == []


@each_variant
def test_a_row_does_not_depend_on_its_batch(name, variant):
    backbone, batch = make(name, variant), make_batch()
    alone = torch.cat([logits(backbone, batch.select(torch.tensor([row]))) for row in range(len(batch))])
    torch.testing.assert_close(alone, logits(backbone, batch))


@each_variant
def test_permuting_the_questions_permutes_the_logits(name, variant):
    backbone, batch, order = make(name, variant), make_batch(), torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(logits(backbone, batch.select(order)), logits(backbone, batch)[order])


@each_variant
@pytest.mark.parametrize("steps", [1, 3])
def test_additional_missing_steps_have_no_effect(name, variant, steps):
    backbone, batch = make(name, variant), make_batch()
    torch.testing.assert_close(logits(backbone, lengthen(batch, steps)), logits(backbone, batch))


@each_variant
def test_values_at_missing_steps_are_not_read(name, variant):
    backbone, batch = make(name, variant), make_batch()
    mask = torch.arange(TIME) < torch.tensor([TIME, 2, TIME, 1, 3])[:, None]
    batch = replace(batch, audio_mask=mask, visual_mask=mask)
    expected = logits(backbone, batch)
    for fill in (torch.nan, 7.0):
        filled = {m: {n: overwrite_missing(v, mask, fill) for n, v in batch.features(m).items()} for m in MODALITIES}
        torch.testing.assert_close(logits(backbone, replace(batch, **filled)), expected)


@each_variant
def test_every_input_changes_the_answer(name, variant):
    backbone, batch = make(name, variant), make_batch()
    expected = logits(backbone, batch)
    for changed in (
        replace(batch, audio={n: v.flip(0) for n, v in batch.audio.items()}),
        replace(batch, visual={n: v.flip(0) for n, v in batch.visual.items()}),
        replace(batch, question={n: v.flip(0) for n, v in batch.question.items()}),
    ):
        assert not torch.allclose(logits(backbone, changed), expected)


@each_variant
@pytest.mark.parametrize("level", ["steps", "pooled"])
@pytest.mark.parametrize("replaced", [("audio",), ("visual",), MODALITIES])
def test_a_modality_may_enter_at_any_level(name, variant, level, replaced):
    backbone, batch = make(name, variant), make_batch()
    encoded = backbone.encode(batch.without(*replaced))
    shape = (5, TIME, backbone.channels) if level == "steps" else (5, backbone.channels)
    values = {m: torch.randn(shape, generator=torch.Generator().manual_seed(8), requires_grad=True) for m in replaced}
    found = backbone.answer(replace(encoded, **{level: values})).logits
    found.square().sum().backward()
    assert found.shape == (5, SIZES.answers)
    assert found.isfinite().all()
    assert all(value.grad is not None and value.grad.abs().sum() > 0 for value in values.values())


@each_variant
def test_steps_and_pooled_vectors_have_its_number_of_channels(name, variant):
    backbone, batch = make(name, variant), make_batch()
    encoded = backbone.encode(batch)
    steps, pooled = backbone.steps(encoded), backbone.pool(encoded)
    prompts = {m: torch.randn(3, backbone.channels) for m in MODALITIES}
    prompted = backbone.pool(encoded, prompts)
    for modality in MODALITIES:
        assert steps[modality].shape == (5, TIME, backbone.channels)
        assert pooled[modality].shape == (5, backbone.channels)
        assert not torch.allclose(prompted[modality], pooled[modality])
    alone = backbone.pool(backbone.encode(batch.without("audio")))
    assert set(alone) == {"visual"}


@each_variant
def test_a_modality_that_is_missing_at_all_levels_is_refused(name, variant):
    backbone = make(name, variant)
    for modality in MODALITIES:
        with pytest.raises(ValueError, match=f"{modality} is missing: pass its features"):
            backbone.answer(backbone.encode(make_batch().without(modality)))


@each_variant
def test_learned_constants_answer_if_both_modalities_are_missing(name, variant):
    backbone, batch = make(name, variant), make_batch()
    constants = ConstantAnswer(backbone)
    encoded = backbone.encode(batch.without(*MODALITIES))
    expected = constants.logits(backbone, encoded)
    assert expected.shape == (5, SIZES.answers)
    assert torch.equal(constants.logits(backbone, backbone.encode(batch)), expected)
    assert isinstance(encoded, Representation)


@pytest.mark.gpu
@each_variant
def test_equals_its_answer_on_a_gpu(name, variant):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    backbone, batch = make(name, variant), make_batch()
    expected = logits(backbone, batch)
    found = logits(backbone.cuda(), batch.to("cuda"))
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-3, atol=1e-4)


def test_sizes_that_do_not_fit_are_reported_as_a_user_error():
    with pytest.raises(UserError, match="backbone 'avst' cannot be built: AVST compares maps"):
        make_backbone("avst", SIZES.model_copy(update={"channels": 4 * SIZES.channels}))
