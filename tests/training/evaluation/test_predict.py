"""Predictions per scenario: hidden modalities, natural questions, choices; independence of the batch size."""

import dataclasses

import pytest
import torch
from tiny_store import CLASSES, SIZES, make_manifest, make_store, offer

from pipeline.errors import UserError
from pipeline.store.schema import State
from train.backbones.registry import make_backbone
from train.data.batch import Batch
from train.data.dataset import QuestionDataset
from train.data.feature_bank import FeatureBank
from train.data.scenarios import ALL_SCENARIOS
from train.evaluation.predict import UNANSWERED, Evaluation, choose_answers, evaluate
from train.interfaces import inputs_of


class Classifier(torch.nn.Module):
    """A method that classifies the audio, without audio the video, and else gives the first answer."""

    def __init__(self) -> None:
        super().__init__()
        self.available: list[tuple[str, ...]] = []
        self.modes: set[bool] = set()

    def predict(self, batch: Batch) -> torch.Tensor:
        self.available += [batch.available] * len(batch)
        self.modes.add(self.training)
        if batch.audio is not None:
            return batch.audio["vggish"].nanmean(1)[:, : len(CLASSES)]
        if batch.visual is not None:
            return batch.visual["resnet18-map"].float().nanmean((1, 3, 4))[:, : len(CLASSES)]
        return torch.eye(len(CLASSES))[:1].repeat(len(batch), 1)


@pytest.fixture
def dataset() -> QuestionDataset:
    """The questions of a split whose first two videos have no audio or no video."""
    store = make_store()
    return QuestionDataset(FeatureBank(store), make_manifest(store), "train", inputs_of(make_backbone("avst", SIZES)))


def run(dataset: QuestionDataset, scenario: str, **settings: object) -> tuple[Evaluation, Classifier]:
    method = Classifier()
    evaluation = evaluate(method, dataset, scenario, CLASSES, **settings)  # type: ignore[arg-type]
    assert evaluation is not None
    return evaluation, method


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
    assert set(run(dataset, scenario)[1].available) == present


def test_natural_questions_are_in_no_other_scenario(dataset: QuestionDataset) -> None:
    natural = {q.question_id for q in run(dataset, "natural")[0].questions}
    assert natural == {"0-audio", "0-visual", "1-audio", "1-visual"}
    for scenario in ("complete", "audio-missing"):
        others = [q.question_id for q in run(dataset, scenario)[0].questions]
        assert len(others) == len(dataset) - 4
        assert not natural & set(others)


def test_questions_on_failed_videos_are_in_no_scenario() -> None:
    store = make_store()
    store.states["visual"][1] = State.FAILED
    dataset = QuestionDataset(
        FeatureBank(store), make_manifest(store), "train", inputs_of(make_backbone("avst", SIZES))
    )
    evaluated = {q.question_id for scenario in ("natural", "complete") for q in run(dataset, scenario)[0].questions}
    assert {q.question_id for q in dataset.questions} - evaluated == {"1-audio", "1-visual"}


def test_correct_answers_are_counted_by_type(dataset: QuestionDataset) -> None:
    audio_only = run(dataset, "visual-missing")[0].accuracies.types
    assert audio_only["Audio Counting"].accuracy == 100
    assert audio_only["Visual Counting"].accuracy < 100
    visual_only = run(dataset, "audio-missing")[0].accuracies.types
    assert visual_only["Visual Counting"].accuracy == 100


@pytest.mark.parametrize("batch_size", [1, 3, 1000])
def test_the_result_does_not_depend_on_the_batch_size(dataset: QuestionDataset, batch_size: int) -> None:
    assert run(dataset, "natural", batch_size=batch_size)[0] == run(dataset, "natural")[0]
    assert run(dataset, "complete", batch_size=batch_size)[0] == run(dataset, "complete")[0]


def test_masks_replace_the_scenarios_hidden_modalities(dataset: QuestionDataset) -> None:
    hidden = {question.question_id: ("audio",) for question in dataset.questions[::2]}
    evaluation, method = run(dataset, "masked", masks=hidden)
    assert evaluation.scenario == "masked"
    assert set(method.available) == {("audio", "visual"), ("visual",)}


def test_the_natural_scenario_is_omitted_without_natural_questions() -> None:
    store = make_store(incomplete=False)
    dataset = QuestionDataset(FeatureBank(store), make_manifest(store), "test", inputs_of(make_backbone("avst", SIZES)))
    assert evaluate(Classifier(), dataset, "natural", CLASSES) is None
    names = [name for name in ALL_SCENARIOS if evaluate(Classifier(), dataset, name, CLASSES)]
    assert names == ["complete", "audio-missing", "visual-missing", "both-missing"]


def test_the_method_is_in_evaluation_mode_and_returned_in_its_previous_mode(dataset: QuestionDataset) -> None:
    method = Classifier().train()
    evaluate(method, dataset, "complete", CLASSES)
    assert method.modes == {False}
    assert method.training


def test_an_answer_outside_the_vocabulary_is_never_correct(dataset: QuestionDataset) -> None:
    evaluation, _ = run(dataset, "visual-missing")
    unknown = tuple(dataclasses.replace(question, answer="hurdy-gurdy") for question in evaluation.questions)
    assert dataclasses.replace(evaluation, questions=unknown).accuracies.overall.correct == 0


def test_predictions_agree_with_the_counts_and_the_order_of_questions(dataset: QuestionDataset) -> None:
    evaluation, _ = run(dataset, "audio-missing")
    records = evaluation.records()
    assert sum(record.correct for record in records) == evaluation.accuracies.overall.correct
    assert [record.question_id for record in records] == [q.question_id for q in evaluation.questions]


@pytest.mark.parametrize("scenario", ["complete", "visual-missing", "natural"])
def test_choices_restrict_the_answers_of_their_questions_only(scenario: str) -> None:
    store = make_store()
    manifest = make_manifest(store)
    plain = QuestionDataset(FeatureBank(store), manifest, "train", inputs_of(make_backbone("avst", SIZES)))
    best = predictions_by_question(run(plain, scenario)[0])
    choices = {name: tuple(c for c in CLASSES if c != answer) for name, answer in best.items() if "audio" in name}
    dataset = QuestionDataset(
        FeatureBank(store), offer(manifest, choices), "train", inputs_of(make_backbone("avst", SIZES))
    )
    predictions = predictions_by_question(run(dataset, scenario, batch_size=5)[0])
    assert predictions.keys() == best.keys()
    for name, answer in predictions.items():
        assert answer in choices[name] if name in choices else answer == best[name]
    single = {name: (CLASSES[row % 3], "kazoo") for row, name in enumerate(best)}
    dataset = QuestionDataset(
        FeatureBank(store), offer(manifest, single), "train", inputs_of(make_backbone("avst", SIZES))
    )
    assert run(dataset, scenario)[0].predictions == tuple(choices[0] for choices in single.values())


def test_the_highest_logit_among_the_choices_is_chosen_even_if_negative() -> None:
    logits = torch.tensor([[3.0, -2.0, -1.0], [3.0, -1.0, -1.0], [0.0, 0.0, 0.0]])
    choices = torch.tensor([[False, True, True], [False, True, True], [False, False, False]])
    assert choose_answers(logits, choices) == [2, 1, UNANSWERED]
    assert choose_answers(logits, None) == [0, 0, 0]


def test_a_question_with_only_unknown_choices_is_not_answered_correctly() -> None:
    store = make_store()
    offered = offer(make_manifest(store), {"5-audio": ("kazoo", "cowbell")})
    questions = tuple(dataclasses.replace(q, answer="kazoo") if q.choices else q for q in offered.questions["train"])
    manifest = dataclasses.replace(offered, questions={"train": questions})
    dataset = QuestionDataset(FeatureBank(store), manifest, "train", inputs_of(make_backbone("avst", SIZES)))
    evaluation, _ = run(dataset, "complete")
    (record,) = (record for record in evaluation.records() if record.question_id == "5-audio")
    assert (record.prediction, record.answer, record.correct) == ("", "kazoo", False)


def predictions_by_question(evaluation: Evaluation) -> dict[str, str]:
    return {q.question_id: answer for q, answer in zip(evaluation.questions, evaluation.predictions, strict=True)}


def test_an_unknown_scenario_is_an_error_with_its_name(dataset: QuestionDataset) -> None:
    with pytest.raises(UserError, match="smell-missing"):
        evaluate(Classifier(), dataset, "smell-missing", CLASSES)


def test_non_finite_logits_are_an_error(dataset: QuestionDataset) -> None:
    method = Classifier()
    method.predict = lambda batch: torch.full((len(batch), len(CLASSES)), torch.nan)  # type: ignore[method-assign]
    with pytest.raises(UserError, match="not finite: it diverged"):
        evaluate(method, dataset, "complete", CLASSES)
