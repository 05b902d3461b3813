"""Evaluation: scenarios hide what they say, natural stands apart, batch size changes nothing."""

import dataclasses

import pytest
import torch
from tiny_store import CLASSES, SIZES, make_manifest, make_store, offer

from pipeline.errors import UserError
from pipeline.manifests.manifest import Question
from pipeline.store.schema import State
from train.backbones.registry import make_backbone
from train.data.batch import Batch
from train.data.dataset import QuestionDataset
from train.data.feature_bank import FeatureBank
from train.evaluation.predict import UNANSWERED, Evaluation, choose_answers, evaluate, evaluate_scenarios
from train.interfaces import inputs_of


class Listener(torch.nn.Module):
    """A method that answers what sounds, without sound what is seen, and the first answer otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, ...]] = []
        self.modes: set[bool] = set()

    def predict(self, batch: Batch) -> torch.Tensor:
        self.seen += [batch.present] * len(batch)
        self.modes.add(self.training)
        if batch.audio is not None:
            return batch.audio["vggish"].nanmean(1)[:, : len(CLASSES)]
        if batch.visual is not None:
            return batch.visual["resnet18-map"].float().nanmean((1, 3, 4))[:, : len(CLASSES)]
        return torch.eye(len(CLASSES))[:1].repeat(len(batch), 1)


@pytest.fixture
def dataset() -> QuestionDataset:
    """The questions of the split whose first two videos lack the sound or the picture."""
    store = make_store()
    return QuestionDataset(FeatureBank(store), make_manifest(store), "train", inputs_of(make_backbone("avst", SIZES)))


def run(dataset: QuestionDataset, scenario: str, **settings: object) -> tuple[Evaluation, Listener]:
    method = Listener()
    found = evaluate(method, dataset, scenario, CLASSES, **settings)  # type: ignore[arg-type]
    assert found is not None
    return found, method


@pytest.mark.parametrize(
    ("scenario", "present"),
    [
        ("complete", {("audio", "visual")}),
        ("audio-missing", {("visual",)}),
        ("visual-missing", {("audio",)}),
        ("both-missing", {()}),
        ("natural", {("audio",), ("visual",)}),
    ],
)
def test_a_scenario_hides_its_modalities_and_nothing_else(
    dataset: QuestionDataset, scenario: str, present: set[tuple[str, ...]]
) -> None:
    assert set(run(dataset, scenario)[1].seen) == present


def test_natural_questions_stand_in_no_other_scenario(dataset: QuestionDataset) -> None:
    natural = {q.question_id for q in run(dataset, "natural")[0].questions}
    assert natural == {"0-audio", "0-visual", "1-audio", "1-visual"}
    for scenario in ("complete", "audio-missing"):
        asked = [q.question_id for q in run(dataset, scenario)[0].questions]
        assert len(asked) == len(dataset) - 4
        assert not natural & set(asked)


def test_questions_on_videos_that_failed_are_asked_nowhere() -> None:
    store = make_store()
    store.states["visual"][1] = State.FAILED
    dataset = QuestionDataset(
        FeatureBank(store), make_manifest(store), "train", inputs_of(make_backbone("avst", SIZES))
    )
    asked = {q.question_id for scenario in ("natural", "complete") for q in run(dataset, scenario)[0].questions}
    assert {q.question_id for q in dataset.questions} - asked == {"1-audio", "1-visual"}


def test_the_right_answers_are_counted_by_type(dataset: QuestionDataset) -> None:
    heard = run(dataset, "visual-missing")[0].accuracies.types
    assert heard["Audio Counting"].accuracy == 100
    assert heard["Visual Counting"].accuracy < 100
    seen = run(dataset, "audio-missing")[0].accuracies.types
    assert seen["Visual Counting"].accuracy == 100


@pytest.mark.parametrize("batch_size", [1, 3, 1000])
def test_batch_size_changes_nothing(dataset: QuestionDataset, batch_size: int) -> None:
    assert run(dataset, "natural", batch_size=batch_size)[0] == run(dataset, "natural")[0]
    assert run(dataset, "complete", batch_size=batch_size)[0] == run(dataset, "complete")[0]


def test_masks_replace_what_the_scenario_hides(dataset: QuestionDataset) -> None:
    hidden = {question.question_id: ("audio",) for question in dataset.questions[::2]}
    found, method = run(dataset, "masked", masks=hidden)
    assert found.scenario == "masked"
    assert set(method.seen) == {("audio", "visual"), ("visual",)}


def test_a_split_without_natural_questions_leaves_the_scenario_out() -> None:
    store = make_store(incomplete=False)
    dataset = QuestionDataset(FeatureBank(store), make_manifest(store), "test", inputs_of(make_backbone("avst", SIZES)))
    assert evaluate(Listener(), dataset, "natural", CLASSES) is None
    names = [found.scenario for found in evaluate_scenarios(Listener(), dataset, CLASSES)]
    assert names == ["complete", "audio-missing", "visual-missing", "both-missing"]


def test_the_method_is_evaluated_without_dropout_and_given_back_as_it_was(dataset: QuestionDataset) -> None:
    method = Listener().train()
    evaluate(method, dataset, "complete", CLASSES)
    assert method.modes == {False}
    assert method.training


def test_an_answer_outside_the_frozen_list_is_wrong(dataset: QuestionDataset) -> None:
    found, _ = run(dataset, "visual-missing")
    odd = tuple(dataclasses.replace(question, answer="hurdy-gurdy") for question in found.questions)
    assert dataclasses.replace(found, questions=odd).accuracies.overall.correct == 0


def test_single_predictions_say_which_are_right(dataset: QuestionDataset) -> None:
    found, _ = run(dataset, "audio-missing")
    records = found.records()
    assert sum(record.correct for record in records) == found.accuracies.overall.correct
    assert [record.question_id for record in records] == [q.question_id for q in found.questions]


@pytest.mark.parametrize("scenario", ["complete", "visual-missing", "natural"])
def test_a_question_is_answered_among_its_choices_and_the_others_as_ever(scenario: str) -> None:
    store = make_store()
    manifest = make_manifest(store)
    plain = QuestionDataset(FeatureBank(store), manifest, "train", inputs_of(make_backbone("avst", SIZES)))
    best = {q.question_id: given for q, given in pairs(run(plain, scenario)[0])}
    offered = {name: tuple(c for c in CLASSES if c != given) for name, given in best.items() if "audio" in name}
    dataset = QuestionDataset(
        FeatureBank(store), offer(manifest, offered), "train", inputs_of(make_backbone("avst", SIZES))
    )
    given = {q.question_id: given for q, given in pairs(run(dataset, scenario, batch_size=5)[0])}
    assert given.keys() == best.keys()
    for name, answer in given.items():
        assert answer in offered[name] if name in offered else answer == best[name]
    one = {name: (CLASSES[row % 3], "kazoo") for row, name in enumerate(best)}
    dataset = QuestionDataset(
        FeatureBank(store), offer(manifest, one), "train", inputs_of(make_backbone("avst", SIZES))
    )
    assert run(dataset, scenario)[0].predictions == tuple(choices[0] for choices in one.values())


def test_the_best_of_the_choices_is_given_whatever_the_sign_of_its_logit() -> None:
    logits = torch.tensor([[3.0, -2.0, -1.0], [3.0, -1.0, -1.0], [0.0, 0.0, 0.0]])
    offered = torch.tensor([[False, True, True], [False, True, True], [False, False, False]])
    assert choose_answers(logits, offered) == [2, 1, UNANSWERED]
    assert choose_answers(logits, None) == [0, 0, 0]


def test_a_question_none_of_whose_choices_is_known_is_wrong() -> None:
    store = make_store()
    made = offer(make_manifest(store), {"5-audio": ("kazoo", "cowbell")})
    odd = tuple(dataclasses.replace(q, answer="kazoo") if q.choices else q for q in made.questions["train"])
    manifest = dataclasses.replace(made, questions={"train": odd})
    dataset = QuestionDataset(FeatureBank(store), manifest, "train", inputs_of(make_backbone("avst", SIZES)))
    found, _ = run(dataset, "complete")
    (record,) = (record for record in found.records() if record.question_id == "5-audio")
    assert (record.prediction, record.answer, record.correct) == ("", "kazoo", False)


def pairs(found: Evaluation) -> list[tuple[Question, str]]:
    return list(zip(found.questions, found.predictions, strict=True))


def test_an_unknown_scenario_is_named(dataset: QuestionDataset) -> None:
    with pytest.raises(UserError, match="smell-missing"):
        evaluate(Listener(), dataset, "smell-missing", CLASSES)


def test_logits_that_are_not_finite_are_an_error_and_no_answer(dataset: QuestionDataset) -> None:
    method = Listener()
    method.predict = lambda batch: torch.full((len(batch), len(CLASSES)), torch.nan)  # type: ignore[method-assign]
    with pytest.raises(FloatingPointError, match="not finite"):
        evaluate(method, dataset, "complete", CLASSES)
