import json
import math
from dataclasses import replace

import paths
import pytest
import torch
from recipe import gaussian, probe
from small_avqa import CHANNELS, SIDE, TIME, small_backbone, small_batch

from pipeline.errors import UserError
from train.methods.imputation import AvailableSteps, RunningMoments, with_imputed
from train.methods.rmm import RECALL_VARIANTS, RelationMemory, Rmm, recall_loss, recalled_features

GOLDEN = json.loads((paths.GOLDEN / "rmm_avr.json").read_text())
SHAPES = {"audio": (512,), "visual": (512, 14, 14)}
VARIANTS = list(RECALL_VARIANTS)


def golden_memory(variant: str) -> RelationMemory:
    memory = RelationMemory(SHAPES, 512, settings=RECALL_VARIANTS[variant])
    with torch.no_grad():
        for position, name in enumerate(("question", "audio", "visual")):
            memory.slots[name].copy_(gaussian(tuple(memory.slots[name].shape), 100.0 * position))
        if variant == "recommended":
            for sharpness in memory.log_sharpness.values():
                sharpness.fill_(math.log(10))
    return memory


def golden_rows() -> dict[str, torch.Tensor]:
    audio, visual = gaussian((1, 10, 512), 4000.0)[0], gaussian((1, 10, 512, 14, 14), 5000.0)[0].abs()
    return {"audio": audio, "visual": visual, "question": gaussian((1, 512), 6000.0).expand(10, -1)}


def small_memory(variant: str = "recommended", **changes) -> RelationMemory:
    torch.manual_seed(1)
    settings = replace(RECALL_VARIANTS[variant], **changes)
    return RelationMemory({"audio": (6,), "visual": (6, 2, 2)}, 6, slots=5, settings=settings)


def small_rows(rows: int = 7) -> dict[str, torch.Tensor]:
    torch.manual_seed(2)
    return {
        "question": torch.randn(rows, 6),
        "audio": torch.randn(rows, 6),
        "visual": torch.rand(rows, 6, 2, 2),
    }


def test_has_as_many_parameters_as_released():
    memory = RelationMemory(SHAPES, 512, settings=RECALL_VARIANTS["paper"])
    assert sum(p.numel() for p in memory.parameters()) == 7_603_200


def test_recalls_the_same_features_as_the_released_memory():
    memory, rows = golden_memory("released"), golden_rows()
    expected = GOLDEN["memory"]
    with torch.no_grad():
        recalled = {
            "audio": memory.recall("audio", rows["visual"], rows["question"]),
            "visual": memory.recall("visual", rows["audio"], rows["question"]),
        }
        loss = sum(memory.error(m, recalled[m], rows[m]) for m in recalled)
    for modality, values in recalled.items():
        assert values.square().mean().item() == pytest.approx(expected[f"{modality}_mean_square"], rel=1e-5)
        assert probe(values) == pytest.approx(expected[f"{modality}_probe"], rel=1e-4)
        assert values.flatten()[:4].tolist() == pytest.approx(expected[f"{modality}_first"], rel=1e-4)
    assert loss.item() == pytest.approx(expected["loss"], rel=1e-6)


def test_initial_weights_are_neither_uniform_nor_concentrated_on_one_slot():
    memory, rows = golden_memory("recommended"), golden_rows()
    memory.log_sharpness.load_state_dict(RelationMemory(SHAPES, 512).log_sharpness.state_dict())
    memory.observe(rows, len(rows["question"]))
    with torch.no_grad():
        weights = memory.weights("visual", rows["visual"], rows["question"])
    spread = weights.amax(1) / weights.amin(1)
    assert spread.min() > 1.1
    assert spread.max() < 100


@pytest.mark.parametrize("variant", VARIANTS)
def test_weights_equal_the_golden_values(variant):
    memory, rows = golden_memory(variant), golden_rows()
    with torch.no_grad():
        for modality, expected in GOLDEN["weights"][variant].items():
            weights = memory.weights(modality, rows[modality], rows["question"])
            assert weights[0, :5].tolist() == pytest.approx(expected, rel=1e-5)


def test_paper_weights_equal_a_direct_computation():
    memory, rows = golden_memory("paper"), golden_rows()
    with torch.no_grad():
        visual = (rows["visual"][0].reshape(1, -1) @ memory.slots["visual"].T / math.sqrt(512)).softmax(-1)
        question = (rows["question"][:1] @ memory.slots["question"].T / math.sqrt(512)).softmax(-1)
        expected = (visual * question).softmax(-1)
        recalled = memory.recall("audio", rows["visual"][:1], rows["question"][:1])
    torch.testing.assert_close(recalled, expected @ memory.slots["audio"])


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("combination", ["paper_softmax", "normalised_product", "tau"])
def test_weights_are_positive_and_sum_to_one(variant, combination):
    memory, rows = small_memory(variant, combination=combination, tau=0.01), small_rows()
    weights = memory.weights("visual", rows["visual"], rows["question"])
    assert weights.min() > 0
    torch.testing.assert_close(weights.sum(1), torch.ones(7))


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_weights_of_the_paper_and_the_released_variant_stay_within_their_bounds(scale):
    rows = {name: scale * values for name, values in small_rows(50).items()}
    for variant, largest in (("paper", 1.0), ("released", (math.e / (math.e + 4 / math.e)) ** 2)):
        weights = small_memory(variant).weights("visual", rows["visual"], rows["question"])
        assert weights.min() >= 1 / (4 + math.exp(largest)) - 1e-6
        assert weights.max() <= math.exp(largest) / (4 + math.exp(largest)) + 1e-6


def test_normalised_product_exceeds_the_bounds_of_the_other_combinations():
    rows = {name: 10 * values for name, values in small_rows(50).items()}

    def spread(**changes) -> float:
        weights = small_memory("paper", **changes).weights("audio", rows["audio"], rows["question"]).detach()
        return float((weights.max(1).values / weights.min(1).values).median())

    assert spread() <= math.e
    assert spread(combination="tau", tau=0.05) > spread()
    assert spread(combination="normalised_product") > 100


@pytest.mark.parametrize("variant", VARIANTS)
def test_recalled_features_depend_on_the_available_modality_and_the_question(variant):
    memory, rows = small_memory(variant), small_rows(1)
    recalled = memory.recall("audio", rows["visual"], rows["question"])
    assert not torch.equal(recalled, memory.recall("audio", rows["visual"].flip(1), rows["question"]))
    assert not torch.equal(recalled, memory.recall("audio", rows["visual"], -rows["question"]))


def test_error_is_a_sum_a_mean_or_a_share_of_the_variance():
    recalled, real = torch.zeros(2, 6, 2, 2), torch.full((2, 6, 2, 2), 2.0)
    assert small_memory("paper", error="sum").error("visual", recalled, real).item() == 96
    assert small_memory("paper").error("visual", recalled, real).item() == 4
    assert small_memory("released").error("visual", recalled, real).item() == 4
    memory = small_memory("recommended")
    memory.moments["visual"].variance.fill_(8.0)
    assert memory.error("visual", recalled, real).item() == 0.5


def test_only_the_recommended_variant_gives_no_gradient_to_the_targets():
    for variant, has_gradient in (("paper", True), ("released", True), ("recommended", False)):
        real = torch.ones(2, 6, requires_grad=True)
        error = small_memory(variant).error("audio", torch.zeros(2, 6, requires_grad=True), real)
        error.backward()
        assert (real.grad is not None) == has_gradient


def test_slots_are_initialised_with_the_three_features_of_one_real_step():
    memory, rows = small_memory(), small_rows(8)
    memory.observe(rows, samples=4)
    assert int(memory.placed) == 4
    for slot in range(4):
        (source,) = (rows["audio"] == memory.slots["audio"][slot]).all(1).nonzero()[0].tolist()
        assert torch.equal(memory.slots["visual"][slot], rows["visual"][source].flatten())
        assert torch.equal(memory.slots["question"][slot], rows["question"][source])
    before = memory.slots["audio"].detach().clone()
    memory.observe(rows, samples=4)
    memory.observe(rows, samples=4)
    assert int(memory.placed) == 5
    assert torch.equal(memory.slots["audio"][:4], before[:4])


def test_slots_of_the_paper_variant_are_not_initialised_with_real_steps():
    memory = small_memory("paper")
    before = memory.slots["audio"].detach().clone()
    memory.observe(small_rows(), samples=4)
    assert torch.equal(memory.slots["audio"], before)


def test_running_moments_equal_the_moments_of_the_rows():
    moments, rows = RunningMoments(3), torch.randn(4000, 3) * torch.tensor([1.0, 2.0, 3.0]) + 5
    for part in rows.split(100):
        moments.update(part)
    torch.testing.assert_close(moments.mean, rows.mean(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(moments.variance, rows.var(0), rtol=0.05, atol=0.01)


def test_rows_are_ordered_sample_by_sample():
    steps = AvailableSteps(torch.tensor([[True, True, False], [True, False, False]]))
    assert len(steps) == 3
    assert steps.take(torch.arange(6).reshape(2, 3)).tolist() == [0, 1, 3]
    assert steps.repeat(torch.tensor([[7.0], [8.0]])).flatten().tolist() == [7, 7, 8]
    assert steps.put(torch.tensor([1.0, 2.0, 3.0])).tolist() == [[1, 2, 0], [3, 0, 0]]


def test_rows_of_all_steps_are_views():
    steps, values = AvailableSteps(torch.ones(2, 3, dtype=torch.bool)), torch.rand(2, 3, 4)
    rows = steps.take(values)
    assert rows.shape == (6, 4)
    assert steps.put(rows).data_ptr() == rows.data_ptr() == values.data_ptr()
    assert steps.repeat(torch.tensor([[7.0], [8.0]])).flatten().tolist() == [7, 7, 7, 8, 8, 8]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("missing", ["audio", "visual"])
def test_permuting_samples_permutes_the_recalled_features(variant, missing):
    model = Rmm(small_backbone(), variant=variant, slots=5).eval()
    batch, order = small_batch(6).without(missing), torch.tensor([4, 2, 0, 5, 1, 3])
    with torch.no_grad():
        recalled, shuffled = (
            recalled_features(model.memory, model.backbone.encode(b), missing) for b in (batch, batch.select(order))
        )
    torch.testing.assert_close(recalled[order], shuffled)
    assert (recalled[0] - recalled[1]).abs().max() > 0


def test_missing_steps_recall_nothing_and_enter_no_loss():
    complete = small_batch(3, visual_steps=torch.tensor([4, 2, 1]))
    model = Rmm(small_backbone(), slots=5)
    losses = {name: loss.item() for name, loss in model.training_loss(complete).items()}
    assert all(math.isfinite(loss) for loss in losses.values())
    recalled = recalled_features(model.memory, model.backbone.encode(complete.without("audio")), "audio")
    assert recalled.shape == (3, TIME, CHANNELS)
    assert not recalled[~complete.visual_mask].any()
    assert recalled[complete.visual_mask].abs().sum(-1).min() > 0


@pytest.mark.parametrize(("missing", "available"), [("audio", "visual"), ("visual", "audio")])
def test_imputed_features_have_the_mask_of_the_available_modality(missing, available):
    batch = small_batch(2, audio_steps=torch.tensor([4, 1]), visual_steps=torch.tensor([2, 3]))
    representation = small_backbone().encode(batch)
    completed = with_imputed(representation, {missing: torch.zeros_like(representation.features[missing])}, available)
    assert torch.equal(completed.masks[missing], batch.mask(available))
    assert torch.equal(completed.masks[available], batch.mask(available))
    assert not completed.features[missing].any()
    assert torch.equal(completed.features[available], representation.features[available])


def test_recall_loss_is_over_the_steps_with_both_modalities():
    memory_shapes = {"audio": (CHANNELS,), "visual": (CHANNELS, SIDE, SIDE)}
    backbone = small_backbone()
    memory = RelationMemory(memory_shapes, CHANNELS, slots=5, settings=RECALL_VARIANTS["paper"])
    batch = small_batch(2, audio_steps=torch.tensor([4, 1]), visual_steps=torch.tensor([2, 3]))
    representation = backbone.encode(batch)
    recalled = {m: recalled_features(memory, representation, m) for m in ("audio", "visual")}
    both = batch.audio_mask & batch.visual_mask
    expected = sum(
        (recalled[m] - representation.features[m]).square().flatten(2).mean(2)[both].mean() for m in ("audio", "visual")
    )
    torch.testing.assert_close(recall_loss(memory, representation, recalled), expected)


def test_an_unknown_variant_raises():
    with pytest.raises(UserError, match=r"variant 'best' is unknown: choose one of paper, released, recommended"):
        Rmm(small_backbone(), variant="best")


def test_gradients_of_a_first_batch_of_one_question_are_bounded():
    torch.manual_seed(0)
    model = Rmm(small_backbone(), slots=5)
    model.training_loss(small_batch(1))["total"].backward()
    assert max(float(p.grad.norm()) for p in model.parameters() if p.grad is not None) < 1e5
