"""Floors: majorities back off in order, break ties by first appearance, reach the known figures."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.manifests.manifest import Manifest, Question
from train.evaluation.floors import always, filled_majority, learning_questions, template_majority


def ask(text: str, answer: str, template: str = "T?") -> Question:
    return Question(f"{text}{answer}", "v", text, template, answer, "Audio Counting", "Audio")


def test_the_most_frequent_answer_of_the_template_is_given() -> None:
    train = [ask("a?", "one"), ask("b?", "two"), ask("c?", "two")]
    test = [ask("a?", "one"), ask("a?", "two"), ask("z?", "two")]
    assert template_majority(train, test).overall.correct == 2


def test_the_filled_question_wins_over_its_template() -> None:
    train = [ask("a?", "one"), ask("b?", "two"), ask("c?", "two")]
    assert filled_majority(train, [ask("a?", "one")]).overall.correct == 1
    assert template_majority(train, [ask("a?", "one")]).overall.correct == 0


def test_an_unseen_question_backs_off_to_its_template_and_then_to_the_overall_majority() -> None:
    train = [ask("a?", "one", "S?"), ask("b?", "two"), ask("c?", "two")]
    assert filled_majority(train, [ask("new?", "one", "S?"), ask("new?", "two", "U?")]).overall.correct == 2


def test_of_equally_frequent_answers_the_first_met_is_given() -> None:
    for first, second in (("one", "two"), ("two", "one")):
        accuracies = template_majority([ask("a?", first), ask("a?", second)], [ask("a?", first)])
        assert accuracies.overall.correct == 1


def test_of_a_multiple_choice_question_the_majority_among_its_choices_is_given() -> None:
    answers = ["one"] * 3 + ["two"] * 2 + ["three"]
    train = [*(ask("a?", answer) for answer in answers), ask("b?", "four", "U?")]

    def given(text: str, choices: tuple[str, ...], template: str = "T?") -> list[str]:
        found = []
        for answer in ("one", "two", "three", "four", "five"):
            question = replace(ask(text, answer, template), choices=choices)
            by_template, by_text = template_majority(train, [question]), filled_majority(train, [question])
            assert by_template.overall.correct == by_text.overall.correct
            found += [answer] * by_template.overall.correct
        return found

    assert given("a?", ("three", "two")) == ["two"]
    assert given("a?", ("five", "three")) == ["three"]
    assert given("a?", ("four", "five")) == ["four"]
    assert given("b?", ("three", "two"), "U?") == ["two"]
    assert given("a?", ("five", "six")) == []


def test_floors_carry_groups_and_types() -> None:
    accuracies = always("one", [ask("a?", "one"), ask("a?", "two")])
    assert accuracies.groups["Audio"].accuracy == accuracies.types["Audio Counting"].accuracy == 50


def test_nothing_to_learn_from_is_refused() -> None:
    with pytest.raises(ValueError, match="learn"):
        template_majority([], [ask("a?", "one")])


def test_floors_never_learn_from_the_split_they_judge() -> None:
    train, val = (ask("a?", "one"),), (ask("b?", "two"),)
    manifest = Manifest("m", "r", "l", (), {"train": train, "val": val})
    assert learning_questions(manifest, "test") == train
    assert learning_questions(manifest, "train") == val
    assert learning_questions(Manifest("m", "r", "l", (), {"val": val}), "val") == ()


def read_official(path: Path) -> list[Question]:
    """Read an official file directly: an independent check, not the project's reader."""
    questions = []
    for record in json.loads(path.read_text(encoding="utf-8")):
        template = record["question_content"].strip().replace("？", "?")
        fillers = iter(json.loads(record["templ_values"]))
        text = " ".join(next(fillers) if "<" in word else word for word in template.rstrip("?").split(" "))
        modality, kind = json.loads(record["type"])
        identity = str(record["question_id"])
        questions.append(
            Question(identity, record["video_id"], text, template, record["anser"], f"{modality} {kind}", modality)
        )
    return questions


@pytest.mark.real
@pytest.mark.parametrize(
    ("learnt_on", "by_template", "by_filled_question"),
    [
        ("json_update/avqa-val.json", 51.05, 51.81),
        ("train_recovered/avqa-train.recovered.json", 50.65, 52.66),
    ],
)
def test_majorities_reach_the_known_figures_on_the_updated_test_split(
    shared_data: Path, learnt_on: str, by_template: float, by_filled_question: float
) -> None:
    folder = shared_data / "annotations" / "music-avqa"
    train, test = read_official(folder / learnt_on), read_official(folder / "json_update" / "avqa-test.json")
    assert len(test) == 9129
    assert round(template_majority(train, test).overall.accuracy, 2) == by_template
    assert round(filled_majority(train, test).overall.accuracy, 2) == by_filled_question


@pytest.mark.real
def test_groups_of_the_template_floor_and_always_yes_are_the_known_ones(shared_data: Path) -> None:
    folder = shared_data / "annotations" / "music-avqa" / "json_update"
    train, test = read_official(folder / "avqa-val.json"), read_official(folder / "avqa-test.json")
    groups = template_majority(train, test).groups
    figures = {name: round(count.accuracy, 2) for name, count in groups.items()}
    assert figures == {"Audio": 61.51, "Visual": 41.87, "Audio-Visual": 52.10}
    assert round(always("yes", test).overall.accuracy, 2) == 26.15
