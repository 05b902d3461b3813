"""Exposure: under which conditions training answers a question, and over which answers a loss is averaged."""

import pytest
import torch
from small_avqa import small_backbone, small_batch

from pipeline.store.schema import MODALITIES
from train import processes
from train.data.scenarios import SAMPLED_MISSING
from train.methods.exposure import conditions, mean_over_parts
from train.methods.losses import cross_entropy
from train.methods.registry import make_method

# Methods whose exposure is an option; the losses of ActionMAE's answers are comparable without smoothing.
METHODS = {
    "modality-dropout": {},
    "retrieval-fill": {},
    "actionmae": {"smoothing": 0.0},
    "shaspec": {},
    "drfuse": {},
    "prompts": {},
    "reference": {"inputs": "audio,question"},
}


def build(name: str, **options):
    """Return a method whose randomness is off, prepared on its own training batch."""
    method = make_method(name, small_backbone(), **METHODS[name], **options).eval()
    if hasattr(method, "prepare"):
        batch = small_batch()
        method.prepare([batch], [batch.without(*MODALITIES)])
    return method


def test_all_conditions_are_the_whole_batch_complete_and_without_either_modality():
    batch = small_batch()
    parts = conditions(batch, "all")
    missing = [tuple(m for m in MODALITIES if m not in part.available) for _, part in parts]
    assert missing == list(SAMPLED_MISSING)
    assert all(part.question_id == batch.question_id for _, part in parts)
    assert all(rows.tolist() == list(range(len(batch))) for rows, _ in parts)


@pytest.mark.parametrize("exposure", ["sampled", "all"])
@pytest.mark.parametrize("missing", [("audio",), ("visual",), MODALITIES])
def test_a_question_with_a_naturally_missing_modality_is_answered_once(exposure, missing):
    batch = small_batch().without(*missing)
    ((rows, part),) = conditions(batch, exposure)
    assert (part.available, len(part), len(rows)) == (batch.available, len(batch), len(batch))


@pytest.mark.parametrize("name", METHODS)
def test_the_answer_loss_under_all_conditions_is_the_mean_of_three_answers(name):
    method, batch = build(name, exposure="all"), small_batch()
    answers = [cross_entropy(method.predict(batch.without(*missing)), batch.answer) for missing in SAMPLED_MISSING]
    losses = method.training_loss(batch)
    torch.testing.assert_close(losses["answer"], torch.stack(answers).mean())
    assert method.sees == "all"


@pytest.mark.parametrize("name", METHODS)
def test_a_sampled_condition_is_the_only_one_in_which_a_question_is_answered(name, monkeypatch):
    method, batch = build(name, exposure="sampled"), small_batch()
    monkeypatch.setattr(torch, "randint", lambda *_, **__: torch.full((len(batch),), 2))
    losses = method.training_loss(batch)
    expected = cross_entropy(method.predict(batch.without(*SAMPLED_MISSING[2])), batch.answer)
    torch.testing.assert_close(losses["answer"], expected)
    assert method.sees == "sampled"


@pytest.mark.parametrize("name", ["modality-dropout", "retrieval-fill", "actionmae", "reference"])
def test_an_answer_weighs_as_much_for_a_complete_question_as_for_one_with_a_single_modality(name, monkeypatch):
    method = build(name, exposure="all")
    complete = method.training_loss(small_batch())
    own = {loss: value for loss, value in complete.items() if loss != "total"}
    torch.testing.assert_close(complete["total"], 3 * torch.stack([*own.values()]).sum())
    natural = method.training_loss(small_batch().without("audio"))
    own = {loss: value for loss, value in natural.items() if loss != "total"}
    torch.testing.assert_close(natural["total"], torch.stack([*own.values()]).sum())


def test_references_answer_each_question_once_by_default_as_it_is():
    method, batch = build("reference"), small_batch()
    expected = cross_entropy(method.predict(batch), batch.answer)
    torch.testing.assert_close(method.training_loss(batch)["answer"], expected)
    assert method.sees == "nothing"


def test_a_conditional_loss_is_averaged_where_it_is_defined_and_any_other_over_all_answers():
    parts = [
        (3, {"answer": torch.tensor(1.0), "match": torch.tensor(8.0), "error": torch.tensor(6.0)}),
        (1, {"answer": torch.tensor(5.0), "error": torch.tensor(2.0)}),
        (4, {"answer": torch.tensor(1.0)}),
    ]
    losses = mean_over_parts(parts, ("error", "never"))
    assert {name: float(loss) for name, loss in losses.items()} == {"answer": 1.5, "match": 3.0, "error": 5.0}


def test_a_conditional_loss_of_two_processes_is_the_mean_over_the_answers_of_both(monkeypatch):
    parts = [
        [(1, {"error": torch.tensor(6.0)}), (3, {})],
        [(2, {"error": torch.tensor(3.0)})],
    ]
    counts = [(4, {"error": 1}), (2, {"error": 2})]
    monkeypatch.setattr(processes, "collect", lambda value: counts if value in counts else pytest.fail(str(value)))
    means = [float(mean_over_parts(of_process, ("error",))["error"]) for of_process in parts]
    # A step weighs the losses of each process by its questions: 4 and 2 of 6.
    assert (4 * means[0] + 2 * means[1]) / 6 == pytest.approx((6 + 3 + 3) / 3)


@pytest.mark.parametrize(
    ("name", "conditional", "with_it"),
    [
        ("actionmae", "reconstruction", SAMPLED_MISSING[1:]),
        ("shaspec", "alignment", SAMPLED_MISSING[:1]),
        ("drfuse", "aligned", SAMPLED_MISSING[:1]),
        ("drfuse", "audio_answer", [SAMPLED_MISSING[0], ("visual",)]),
        ("drfuse", "visual_disentangled", [SAMPLED_MISSING[0], ("audio",)]),
    ],
)
def test_a_method_s_own_loss_weighs_as_much_for_any_share_of_questions_that_have_it(
    name, conditional, with_it, monkeypatch
):
    method, batch = build(name, exposure="sampled"), small_batch()
    batch = batch.select(torch.zeros(6, dtype=torch.long))
    states = [SAMPLED_MISSING.index(tuple(missing)) for missing in with_it]
    without = next(state for state in range(len(SAMPLED_MISSING)) if state not in states)
    found = []
    for number in (1, 3, 6):
        sampled = torch.tensor([states[0]] * number + [without] * (6 - number))
        monkeypatch.setattr(torch, "randint", lambda *_, sampled=sampled, **__: sampled)
        found.append(method.training_loss(batch)[conditional].item())
    assert found[0] > 0
    assert found == pytest.approx([found[0]] * 3, rel=1e-5)
