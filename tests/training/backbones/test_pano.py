"""What is specific to Pano: objects and coordinates, cross-attention, levels, sizes."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from pipeline.store.schema import MODALITIES
from train.backbones.pano import Pano, _split_side
from train.backbones.sizes import ModelSizes
from train.data.batch import Batch
from train.interfaces import Representation
from train.methods.both_missing import ConstantAnswer

PAPER = ModelSizes(words=93, answers=42, input_shapes={"vggish": (128,), "resnet18-map": (512, 14, 14)})
ONE_CROSS_LAYER = (1, 1, 1, 1)


def sizes(*map_shape: int) -> ModelSizes:
    shapes = {"vggish": (8,), "resnet18-map": (16, *map_shape)}
    return ModelSizes(words=20, answers=7, input_shapes=shapes, channels=16, time_steps=4)


def make(*map_shape: int, **options) -> Pano:
    """Return a Pano in evaluation mode with weights so large that every path changes its outputs."""
    torch.manual_seed(0)
    backbone = Pano(sizes(*(map_shape or (4, 4))), **options).eval()
    with torch.no_grad():
        for parameter in backbone.parameters():
            if parameter.dim() == 2:
                parameter.mul_(10)
    return backbone


def make_batch(*map_shape: int, rows: int = 3, time: int = 4) -> Batch:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, 20, (rows, 14), generator=generator)
    tokens[:, 9:] = 0
    mask = torch.ones(rows, time, dtype=torch.bool)
    return Batch(
        question={"tokens": tokens},
        audio={"vggish": torch.randn(rows, time, 8, generator=generator)},
        visual={"resnet18-map": torch.randn(rows, time, 16, *(map_shape or (4, 4)), generator=generator)},
        audio_mask=mask,
        visual_mask=mask,
        answer=torch.randint(0, 7, (rows,), generator=generator),
        type=("",) * rows,
        question_id=("",) * rows,
        video_id=("",) * rows,
    )


def embedding_inputs(backbone: Pano, representation: Representation) -> dict[str, tuple[torch.Tensor, ...]]:
    """Return {modality: (elements, coordinates, mask)}, the inputs of the modalities' embeddings."""
    found = {}
    hooks = [
        backbone.embeddings[m].register_forward_pre_hook(lambda _, inputs, m=m: found.__setitem__(m, inputs))
        for m in MODALITIES
    ]
    backbone.pool(representation)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize(
    ("options", "parameters"),
    [({}, 53_855_274), ({"hidden": 768, "heads": 12, "layers": (9, 5, 5, 5)}, 291_438_378)],
    ids=["small", "faithful"],
)
def test_has_the_documented_number_of_parameters(options, parameters):
    with torch.device("meta"):
        backbone = Pano(PAPER, **options)
    assert sum(p.numel() for p in backbone.parameters()) == parameters
    assert f"{parameters:,}" in Pano.__doc__


def test_layers_are_question_visual_audio_and_cross_modal():
    backbone = make(layers=[4, 3, 2, 1])
    assert [len(backbone.stacks[name]) for name in ("question", "visual", "audio")] == [4, 3, 2]
    assert len(backbone.cross_layers) == 1


@pytest.mark.parametrize(("channels", "heads", "used"), [(16, 8, 8), (12, 8, 6), (16, 12, 8), (7, 8, 7), (18, 4, 3)])
def test_uses_the_largest_number_of_heads_that_divides_the_width(channels, heads, used):
    backbone = Pano(sizes(4, 4), hidden=channels, heads=heads)
    assert backbone.cross_layers[0].cross["audio"].heads == used


def test_weights_are_initialised_as_in_bert_except_the_audio_stem():
    torch.manual_seed(0)
    backbone = Pano(PAPER, layers=ONE_CROSS_LAYER)
    for name, parameter in backbone.named_parameters():
        if name.startswith("audio_stem"):
            continue
        if parameter.dim() == 2:
            assert abs(float(parameter.detach().std()) - 0.02) < 2e-3, name
        else:
            assert (parameter == float(name.endswith("weight"))).all(), name


def test_every_layer_norm_has_the_epsilon_of_the_paper():
    norms = [module for module in make().modules() if isinstance(module, torch.nn.LayerNorm)]
    assert len(norms) > 20
    assert {norm.eps for norm in norms} == {1e-12}


@pytest.mark.parametrize("shape", [(14, 14), (2, 2), (7, 5), (3, 2), (1, 4), (1, 1)])
def test_maps_are_pooled_to_at_most_two_by_two_objects(shape):
    backbone, batch = make(*shape), make_batch(*shape)
    sides = tuple(min(side, 2) for side in shape)
    maps = batch.visual["resnet18-map"]
    expected = F.adaptive_avg_pool2d(maps.flatten(0, 1), sides).unflatten(0, (3, 4)).flatten(3).transpose(2, 3)
    elements, coordinates, _ = embedding_inputs(backbone, backbone.encode(batch))["visual"]
    torch.testing.assert_close(elements, expected)
    assert coordinates.shape == (4, sides[0] * sides[1], 5)


def test_coordinates_of_an_object_are_its_time_and_box():
    backbone = make(4, 4)
    coordinates = embedding_inputs(backbone, backbone.encode(make_batch(4, 4)))["visual"][1]
    assert coordinates[0].tolist() == [
        [0, 0.25, 0.25, 0.5, 0.5],
        [0, 0.75, 0.25, 0.5, 0.5],
        [0, 0.25, 0.75, 0.5, 0.5],
        [0, 0.75, 0.75, 0.5, 0.5],
    ]
    assert coordinates[:, 0, 0].tolist() == [0, 0.25, 0.5, 0.75]


def test_parts_of_an_odd_side_share_its_middle_cell():
    weights, extents = _split_side(3)
    assert weights.tolist() == [[0.5, 0], [0.5, 0.5], [0, 0.5]]
    torch.testing.assert_close(extents, torch.tensor([[1 / 3, 2 / 3], [2 / 3, 2 / 3]]))


def test_coordinates_of_audio_are_its_start_and_duration():
    backbone = make()
    coordinates = embedding_inputs(backbone, backbone.encode(make_batch(time=3)))["audio"][1]
    assert coordinates.tolist() == [[[0, 0.25]], [[0.25, 0.25]], [[0.5, 0.25]]]


def test_the_order_of_time_steps_changes_the_result():
    backbone, batch = make(), make_batch()
    for modality in MODALITIES:
        reversed_batch = replace(batch, **{modality: {n: v.flip(1) for n, v in batch.features(modality).items()}})
        expected = backbone.pool(backbone.encode(batch))[modality]
        assert not torch.allclose(backbone.pool(backbone.encode(reversed_batch))[modality], expected)


@pytest.mark.parametrize("modality", MODALITIES)
def test_cls_is_the_embedded_mean_of_the_available_elements(modality):
    backbone, batch = make(), make_batch()
    mask = torch.tensor([[True] * 4, [True, True, False, False], [False] * 4])
    representation = backbone.encode(replace(batch, **{f"{modality}_mask": mask}))
    elements, coordinates, _ = embedding_inputs(backbone, representation)[modality]
    embedded = backbone._embed(representation, modality)
    assert embedded.mask.tolist() == [
        [row.any().item(), *row.repeat_interleave(elements.shape[2]).tolist()] for row in mask
    ]
    embedding = backbone.embeddings[modality]
    for row, steps in ((0, 4), (1, 2)):
        mean = elements[row, :steps].flatten(0, 1).mean(0), coordinates[:steps].flatten(0, 1).mean(0)
        expected = (embedding.feature(mean[0]) + embedding.coordinate(mean[1])) / 2
        torch.testing.assert_close(embedded.states[row, 0], expected)


def test_a_row_without_available_steps_is_pooled_as_if_the_modality_were_missing():
    backbone, batch = make(), make_batch()
    alone = backbone.pool(backbone.encode(batch.without("visual")))["audio"]
    without_steps = replace(batch, visual_mask=torch.tensor([[True] * 4, [False] * 4, [True] * 4]))
    found = backbone.pool(backbone.encode(without_steps))
    assert all(vectors.isfinite().all() for vectors in found.values())
    torch.testing.assert_close(found["audio"][1], alone[1])
    assert not torch.allclose(found["audio"][0], alone[0])


def test_the_question_is_cls_and_neither_it_nor_the_words_depend_on_the_video():
    backbone, batch = make(), make_batch()
    encoded = backbone.encode(batch)
    assert encoded.words.shape == (3, 15, 16)
    assert torch.equal(encoded.question, encoded.words[:, 0])
    assert encoded.word_mask.sum(1).tolist() == [10, 10, 10]
    assert torch.equal(backbone.encode(batch.without(*MODALITIES)).words, encoded.words)


def test_padding_tokens_have_no_effect_and_the_order_of_words_does():
    backbone, batch = make(), make_batch()
    tokens = batch.question["tokens"]
    expected = backbone.answer(backbone.encode(batch)).logits
    shorter = backbone.answer(backbone.encode(replace(batch, question={"tokens": tokens[:, :9]}))).logits
    torch.testing.assert_close(shorter, expected)
    reordered = torch.cat((tokens[:, :9].flip(1), tokens[:, 9:]), 1)
    assert not torch.allclose(
        backbone.answer(backbone.encode(replace(batch, question={"tokens": reordered}))).logits, expected
    )


def test_audio_attends_to_visual_visual_to_words_and_words_to_audio():
    """In one cross-modal layer, each vector depends on itself and on the one that it attends to, not on the third."""
    backbone = make(layers=ONE_CROSS_LAYER)
    encoded = backbone.encode(make_batch())
    sources = {"question": encoded.words, **encoded.features}
    leaves = {name: values.detach().requires_grad_() for name, values in sources.items()}
    given = replace(encoded, words=leaves.pop("question"), features=leaves)
    pooled = backbone._pool(given, {})
    for name, context in {"question": "audio", "audio": "visual", "visual": "question"}.items():
        inputs = (given.words, given.features["audio"], given.features["visual"])
        gradients = torch.autograd.grad(pooled[name].square().sum(), inputs, retain_graph=True, allow_unused=True)
        reached = {n for n, g in zip(("question", *MODALITIES), gradients, strict=True) if g is not None and g.any()}
        assert reached == {name, context}


def test_a_pooled_vector_is_attended_to_and_answered_from_unchanged():
    backbone = make(layers=ONE_CROSS_LAYER)
    encoded = backbone.encode(make_batch().without("visual"))
    vectors = torch.randn(2, 3, 16)
    one, other = (backbone.pool(replace(encoded, pooled={"visual": vector})) for vector in vectors)
    assert torch.equal(one["visual"], vectors[0])
    assert not torch.allclose(one["audio"], other["audio"])
    given = replace(encoded, pooled={"visual": vectors[0]})
    pooled = backbone._pool(given, {})
    expected = backbone.classifier(torch.cat((pooled["question"], pooled["audio"], vectors[0]), -1))
    torch.testing.assert_close(backbone.answer(given).logits, expected)


def test_a_step_given_as_a_vector_is_one_object_over_the_whole_frame():
    for options in ({}, {"hidden": 24}):
        backbone = make(1, 1, **options)
        encoded = backbone.encode(make_batch(1, 1))
        given = replace(encoded, features={}, steps=backbone.steps(encoded))
        torch.testing.assert_close(backbone.answer(given).logits, backbone.answer(encoded).logits)
    backbone = make(4, 4)
    encoded = backbone.encode(make_batch(4, 4))
    coordinates = embedding_inputs(backbone, replace(encoded, steps=backbone.steps(encoded)))["visual"][1]
    assert coordinates.shape == (4, 1, 5)
    assert coordinates[:, 0, 1:].tolist() == [[0.5, 0.5, 1, 1]] * 4


def test_a_missing_step_given_as_a_vector_is_not_read():
    backbone = make()
    encoded = backbone.encode(make_batch())
    mask = torch.arange(4).expand(3, 4) < 3
    steps = {m: values.masked_fill(~mask[..., None], torch.nan) for m, values in backbone.steps(encoded).items()}
    given = replace(encoded, steps=steps, masks=dict.fromkeys(MODALITIES, mask))
    shorter = {m: values[:, :3] for m, values in steps.items()}
    expected = backbone.answer(replace(encoded, steps=shorter, masks=dict.fromkeys(MODALITIES, mask[:, :3]))).logits
    torch.testing.assert_close(backbone.answer(given).logits, expected)


def test_a_wider_model_projects_its_features_and_every_parameter_has_a_gradient():
    backbone, batch = make(hidden=24), make_batch()
    encoded = backbone.encode(batch)
    assert backbone.channels == encoded.question.shape[1] == 24
    assert backbone.feature_shapes == {"audio": (16,), "visual": (16, 4, 4)}
    assert {steps.shape[2] for steps in backbone.steps(encoded).values()} == {24}
    F.cross_entropy(backbone.answer(encoded).logits, batch.answer).backward()
    assert [n for n, p in backbone.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_prompts_of_a_modality_reach_what_attends_to_it():
    backbone = make(layers=ONE_CROSS_LAYER)
    encoded = backbone.encode(make_batch())
    plain = backbone.pool(encoded)
    prompted = backbone.pool(encoded, {"visual": torch.randn(2, 16)})
    assert all(not torch.allclose(prompted[m], plain[m]) for m in MODALITIES)
    torch.testing.assert_close(backbone.pool(encoded, {"audio": torch.randn(2, 16)})["visual"], plain["visual"])


def test_learned_constants_at_zero_have_moderate_gradients():
    torch.manual_seed(0)
    backbone, batch = Pano(sizes(4, 4), layers=(1, 1, 1, 5)), make_batch()
    constants = ConstantAnswer(backbone)
    constants.loss(backbone, backbone.encode(batch), batch.answer).backward()
    for parameter in constants.parameters():
        assert 0 < float(parameter.grad.norm()) < 10


def test_a_question_without_words_and_features_that_are_not_maps_are_refused():
    backbone = make()
    encoded = backbone.encode(make_batch())
    with pytest.raises(ValueError, match="word by word"):
        backbone.answer(replace(encoded, words=None))
    with pytest.raises(ValueError, match=r"\(16,\)"):
        Pano(sizes())
