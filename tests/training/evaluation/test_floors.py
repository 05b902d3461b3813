"""Floors: majority answers, their fallbacks and ties, and the published accuracies."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.manifests.manifest import Manifest, Question
from train.evaluation.floors import filled_majority, floor_training_questions, template_majority
from train.runs.results import tally


def make_question(text: str, answer: str, template: str = "T?") -> Question:
    return Question(f"{text}{answer}", "v", text, template, answer, "Audio Counting", "Audio")


def test_the_template_majority_is_the_most_frequent_answer_of_the_template() -> None:
    train = [make_question("a?", "one"), make_question("b?", "two"), make_question("c?", "two")]
    test = [make_question("a?", "one"), make_question("a?", "two"), make_question("z?", "two")]
    assert template_majority(train, test).overall.correct == 2


def test_the_filled_question_takes_precedence_over_its_template() -> None:
    train = [make_question("a?", "one"), make_question("b?", "two"), make_question("c?", "two")]
    assert filled_majority(train, [make_question("a?", "one")]).overall.correct == 1
    assert template_majority(train, [make_question("a?", "one")]).overall.correct == 0


def test_an_unknown_question_falls_back_to_its_template_and_then_to_the_overall_majority() -> None:
    train = [make_question("a?", "one", "S?"), make_question("b?", "two"), make_question("c?", "two")]
    assert (
        filled_majority(train, [make_question("new?", "one", "S?"), make_question("new?", "two", "U?")]).overall.correct
        == 2
    )


@pytest.mark.parametrize(("elsewhere", "majority"), [((), "one"), (("two",), "two")])
def test_of_equally_frequent_answers_that_of_all_questions_else_the_first_by_name_is_given_in_any_order(
    elsewhere: tuple[str, ...], majority: str
) -> None:
    train = [make_question("a?", answer) for answer in ("two", "one", "two", "one", "three")]
    train += [make_question("b?", answer, "U?") for answer in elsewhere]
    for given in (train, train[::-1]):
        assert template_majority(given, [make_question("a?", majority)]).overall.correct == 1


def test_a_multiple_choice_question_gets_the_majority_answer_among_its_choices() -> None:
    answers = ["one"] * 3 + ["two"] * 2 + ["three"]
    train = [*(make_question("a?", answer) for answer in answers), make_question("b?", "four", "U?")]

    def correct_answers(text: str, choices: tuple[str, ...], template: str = "T?") -> list[str]:
        correct = []
        for answer in ("one", "two", "three", "four", "five"):
            question = replace(make_question(text, answer, template), choices=choices)
            by_template, by_text = template_majority(train, [question]), filled_majority(train, [question])
            assert by_template.overall.correct == by_text.overall.correct
            correct += [answer] * by_template.overall.correct
        return correct

    assert correct_answers("a?", ("three", "two")) == ["two"]
    assert correct_answers("a?", ("five", "three")) == ["three"]
    assert correct_answers("a?", ("four", "five")) == ["four"]
    assert correct_answers("b?", ("three", "two"), "U?") == ["two"]
    assert correct_answers("a?", ("five", "six")) == []


def test_a_floor_without_training_questions_is_an_error() -> None:
    with pytest.raises(ValueError, match="no training questions"):
        template_majority([], [make_question("a?", "one")])


def test_the_floors_of_a_split_never_use_its_own_questions() -> None:
    train, val = (make_question("a?", "one"),), (make_question("b?", "two"),)
    manifest = Manifest("m", "r", "l", (), {"train": train, "val": val})
    assert floor_training_questions(manifest, "test") == train
    assert floor_training_questions(manifest, "train") == val
    assert floor_training_questions(Manifest("m", "r", "l", (), {"val": val}), "val") == ()


def read_official(path: Path) -> list[Question]:
    """Read an official file directly, independently of the project's reader."""
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
    ("training_file", "by_template", "by_filled_question"),
    [
        ("json_update/avqa-val.json", 51.05, 51.98),
        ("train_recovered/avqa-train.recovered.json", 50.65, 52.70),
    ],
)
def test_majorities_have_the_known_accuracies_on_the_updated_test_split(
    shared_data: Path, training_file: str, by_template: float, by_filled_question: float
) -> None:
    folder = shared_data / "annotations" / "music-avqa"
    train, test = read_official(folder / training_file), read_official(folder / "json_update" / "avqa-test.json")
    assert len(test) == 9129
    assert round(template_majority(train, test).overall.accuracy, 2) == by_template
    assert round(filled_majority(train, test).overall.accuracy, 2) == by_filled_question


@pytest.mark.real
def test_the_template_floor_by_group_and_always_yes_have_the_known_accuracies(shared_data: Path) -> None:
    folder = shared_data / "annotations" / "music-avqa" / "json_update"
    train, test = read_official(folder / "avqa-val.json"), read_official(folder / "avqa-test.json")
    groups = template_majority(train, test).groups
    accuracies = {name: round(count.accuracy, 2) for name, count in groups.items()}
    assert accuracies == {"Audio": 61.51, "Visual": 41.87, "Audio-Visual": 52.10}
    assert round(tally(test, ["yes"] * len(test)).overall.accuracy, 2) == 26.15
