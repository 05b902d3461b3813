"""Result rows: pooled counts, files that read back, later rows that replace earlier ones, errors of corrupt files."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import ValidationError

from pipeline.errors import UserError
from pipeline.manifests.manifest import Question
from train.runs.results import (
    Accuracies,
    Count,
    Feature,
    Prediction,
    ResultRow,
    append_results,
    hash_questions,
    predictions_path,
    read_predictions,
    read_results,
    tally,
    write_predictions,
)


def question(type_: str, answer: str) -> Question:
    return Question("1", "v", "Q?", "Q?", answer, type_, type_.rsplit(" ", 1)[0])


def row(run: str = "r", scenario: str = "complete", correct: int = 1) -> ResultRow:
    count = Count(correct=correct, questions=4)
    return ResultRow(
        kind="model",
        run=run,
        split="test",
        scenario=scenario,
        method="zero-fill",
        backbone="avst",
        variant="recommended",
        inputs="all",
        seed=0,
        dataset="demo",
        release="1",
        training={"missing_rate": {}},
        questions_sha256="00",
        features={"vggish": Feature(fingerprint="ab", weights="seeded")},
        accuracies=Accuracies(overall=count, groups={"Audio": count}, types={"Audio Counting": count}),
    )


def test_groups_are_pooled_over_questions_not_averaged_over_types() -> None:
    questions = [question("Audio Counting", "one")] * 3 + [question("Audio Comparative", "yes")]
    accuracies = tally(questions, ["one", "one", "one", "no"])
    assert accuracies.groups["Audio"].accuracy == 75
    assert accuracies.types["Audio Comparative"].accuracy == 0


def test_predictions_and_questions_must_have_the_same_length() -> None:
    with pytest.raises(ValueError):
        tally([question("Audio Counting", "one")], ["one", "two"])


def test_the_hash_of_questions_depends_on_their_answers_but_not_on_their_order() -> None:
    one, two = question("Audio Counting", "one"), question("Audio Counting", "two")
    assert hash_questions([one, two]) == hash_questions([two, one])
    assert hash_questions([one]) != hash_questions([two])


def test_the_hash_of_questions_depends_on_their_choices_and_has_its_first_form_without_them() -> None:
    plain = question("Audio Counting", "one")
    with_choices = replace(plain, choices=("one", "two"))
    hashes = {hash_questions([q]) for q in (plain, with_choices, replace(plain, choices=("one",)))}
    assert len(hashes) == 3
    expected = hashlib.sha256(b'["1", "v", "Q?", "one"]').hexdigest()
    assert hash_questions([plain]) == expected


def test_a_row_without_the_field_multiple_choice_is_read(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    record = json.loads(row().model_dump_json())
    del record["multiple_choice"]
    path.write_text(json.dumps(record) + "\n")
    assert read_results(path) == [row()]


def test_a_count_needs_at_least_one_question() -> None:
    with pytest.raises(ValidationError):
        Count(correct=0, questions=0)


def test_the_document_has_percentages_and_counts() -> None:
    document = row(correct=3).accuracies.to_document()
    assert document["overall"] == 75
    assert document["questions"] == 4
    assert document["types"]["Audio Counting"] == {"accuracy": 75, "correct": 3, "questions": 4}


def test_rows_read_back_and_later_ones_replace_earlier_ones(tmp_path: Path) -> None:
    path = tmp_path / "run" / "results.jsonl"
    append_results(path, [row(), row(scenario="audio-missing")])
    append_results(path, [row(correct=4)])
    assert read_results(path) == [row(correct=4), row(scenario="audio-missing")]
    assert len(path.read_text().splitlines()) == 3


@pytest.mark.parametrize("line", ["not json", '{"format": 1}', "[]", '{"format": 7}', "[" * 100_000])
def test_the_error_for_an_invalid_line_has_its_file_and_number(tmp_path: Path, line: str) -> None:
    path = tmp_path / "results.jsonl"
    append_results(path, [row()])
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(UserError, match=r"results\.jsonl:2"):
        read_results(path)


def test_the_error_for_a_missing_file_has_the_command_that_creates_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="mavqa-evaluate"):
        read_results(tmp_path / "results.jsonl")


def test_predictions_read_back(tmp_path: Path) -> None:
    predictions = [Prediction(question_id="7#2", video_id="v", prediction="two", answer="drei Flöten", correct=False)]
    path = predictions_path(tmp_path, "test", "audio-missing")
    write_predictions(path, predictions)
    assert path.name == "predictions-test-audio-missing.jsonl"
    assert read_predictions(path) == predictions


def test_texts_may_contain_other_line_separators(tmp_path: Path) -> None:
    predictions = [Prediction(question_id="1", video_id="v", prediction="a\u2028b", answer="c\x85", correct=False)]
    write_predictions(tmp_path / "p.jsonl", predictions)
    assert read_predictions(tmp_path / "p.jsonl", 1) == predictions


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{}", r"p.jsonl:2: not a prediction \(question_id: Field required\): evaluate the run again"),
        (b"[]", "p.jsonl:2: not a prediction .Input should be an object"),
        (b"{", "p.jsonl:2: not a prediction .Invalid JSON"),
        (b"\xff", "p.jsonl is corrupt .*: remove it and evaluate the run again"),
        (b"", "p.jsonl has 1 predictions, but results.jsonl counts 2 questions: evaluate the run again"),
    ],
)
def test_the_error_for_corrupt_predictions_has_their_file_and_line(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "p.jsonl"
    write_predictions(path, [Prediction(question_id="1", video_id="v", prediction="a", answer="a", correct=True)])
    path.write_bytes(path.read_bytes() + line)
    with pytest.raises(UserError, match=message):
        read_predictions(path, 2)
    with pytest.raises(UserError, match=r"nowhere.jsonl is missing: evaluate the run again"):
        read_predictions(tmp_path / "nowhere.jsonl")


def test_the_error_for_results_that_are_not_text_has_their_file(tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"results\.jsonl is corrupt"):
        read_results(tmp_path / "results.jsonl")
    with pytest.raises(UserError, match=r"results\.jsonl is corrupt"):
        append_results(tmp_path / "results.jsonl", [row()])


@pytest.mark.parametrize(
    ("split", "scenario", "problem"),
    [
        ("test", "../../evil", "scenario '../../evil' is not a plain name, it has a slash"),
        ("../x", "complete", "split '../x' is not a plain name"),
        ("test", "masked-audio=1-seed" + "1" * 300, "has 319 bytes, more than 200"),
    ],
)
def test_predictions_are_only_read_and_written_in_the_run(
    tmp_path: Path, split: str, scenario: str, problem: str
) -> None:
    with pytest.raises(UserError, match=rf"{problem}.*: evaluate the run again with 'mavqa-evaluate"):
        predictions_path(tmp_path, split, scenario)
