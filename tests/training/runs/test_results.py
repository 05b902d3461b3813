"""Result rows: pooled counts, files that read back, later rows that replace earlier ones, errors of corrupt files."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import result_rows
from pydantic import ValidationError

from pipeline.errors import UserError
from pipeline.manifests.manifest import Question
from train.runs.results import (
    Accuracies,
    Count,
    Feature,
    Prediction,
    ResultRow,
    Subject,
    hash_questions,
    predictions_path,
    read_predictions,
    read_results,
    save_results,
    tally,
    to_records,
    write_predictions,
)


def question(type_: str, answer: str) -> Question:
    return Question("1", "v", "Q?", "Q?", answer, type_, type_.rsplit(" ", 1)[0])


def row(
    run: str = "r", scenario: str = "complete", correct: int = 1, checkpoint: str = "cc", questions: str = "00"
) -> ResultRow:
    count = Count(correct=correct, questions=4)
    return ResultRow(
        kind="model",
        run=run,
        subject=Subject(
            run_id="aa",
            checkpoint_sha256=checkpoint,
            split="test",
            questions_sha256=questions,
            seconds=60,
            features={"vggish": Feature(fingerprint="ab", weights="seeded", sha256="dd")},
        ),
        scenario=scenario,
        method="zero-fill",
        backbone="avst",
        variant="recommended",
        inputs="all",
        seed=0,
        dataset="demo",
        release="1",
        training={"missing_rate": {}},
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


@pytest.mark.parametrize("field", ["multiple_choice", "unknown_answers"])
def test_a_row_without_a_field_of_later_versions_is_read(tmp_path: Path, field: str) -> None:
    path = tmp_path / "results.jsonl"
    record = json.loads(row().model_dump_json())
    del record[field]
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


def test_the_records_of_a_row_are_of_all_questions_each_group_and_each_type() -> None:
    found = result_rows.row("rmm-avr", seed=3, correct=8)
    records = to_records([found])
    assert [record["level"] for record in records] == ["overall"] + ["group"] * 3 + ["type"] * 9
    assert {(record["method"], record["seed"], record["split"]) for record in records} == {("rmm-avr", 3, "test")}
    counting = next(record for record in records if record["group"] == "Audio Counting")
    assert counting["accuracy"] == found.accuracies.types["Audio Counting"].accuracy
    for level in ("group", "type"):
        of_level = [record for record in records if record["level"] == level]
        assert sum(record["correct"] for record in of_level) == records[0]["correct"]


def test_rows_read_back_and_later_ones_replace_earlier_ones(tmp_path: Path) -> None:
    path = tmp_path / "run" / "results.jsonl"
    save_results(path.parent, [row(), row(scenario="audio-missing")])
    save_results(path.parent, [row(correct=4)])
    assert read_results(path) == [row(scenario="audio-missing"), row(correct=4)]


def test_rows_of_another_name_are_replaced_and_rows_on_other_questions_kept(tmp_path: Path) -> None:
    save_results(tmp_path, [row("before")])
    save_results(tmp_path, [row("renamed", correct=2), row("renamed", questions="11")])
    assert [(r.run, r.accuracies.overall.correct) for r in read_results(tmp_path)] == [("renamed", 2), ("renamed", 1)]


def test_rows_of_an_earlier_checkpoint_go_with_their_predictions(tmp_path: Path) -> None:
    earlier, other_run = row(checkpoint="cc"), row().model_copy(update={"subject": subject_of_another_run()})
    for result in (earlier, other_run):
        save_results(tmp_path, [result])
        write_predictions(predictions_path(tmp_path, result), [])
    later = row(scenario="audio-missing", checkpoint="dd")
    save_results(tmp_path, [later])
    assert read_results(tmp_path) == [other_run, later]
    assert not predictions_path(tmp_path, earlier).exists()
    assert predictions_path(tmp_path, other_run).exists()


def subject_of_another_run() -> Subject:
    return row().subject.model_copy(update={"run_id": "bb"})


def test_rows_of_the_first_format_are_replaced(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text('{"format": 1, "run": "r"}\n')
    with pytest.raises(UserError, match="no results of this version of mavqa"):
        read_results(path)
    save_results(tmp_path, [row()])
    assert read_results(path) == [row()]


@pytest.mark.parametrize("line", ["not json", '{"format": 2}', "[]", '{"format": 7}', "[" * 100_000])
def test_the_error_for_an_invalid_line_has_its_file_and_number(tmp_path: Path, line: str) -> None:
    path = tmp_path / "results.jsonl"
    save_results(tmp_path, [row()])
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(UserError, match=r"results\.jsonl:2"):
        read_results(path)


def test_the_error_for_a_missing_file_has_the_command_that_creates_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="mavqa-evaluate"):
        read_results(tmp_path / "results.jsonl")


def test_predictions_read_back(tmp_path: Path) -> None:
    predictions = [Prediction(question_id="7#2", video_id="v", prediction="two", answer="drei Flöten", correct=False)]
    path = predictions_path(tmp_path, row(scenario="audio-missing"))
    write_predictions(path, predictions)
    assert path.name == f"predictions-test-audio-missing-{row(scenario='audio-missing').key}.jsonl"
    assert read_predictions(path) == predictions


def test_texts_may_contain_other_line_separators(tmp_path: Path) -> None:
    predictions = [Prediction(question_id="1", video_id="v", prediction="a\u2028b", answer="c\x85", correct=False)]
    write_predictions(tmp_path / "p.jsonl", predictions)
    assert read_predictions(tmp_path / "p.jsonl", Count(correct=0, questions=1)) == predictions


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{}", r"p.jsonl:2: not a prediction \(question_id: Field required\): evaluate the run again"),
        (b"[]", "p.jsonl:2: not a prediction .Input should be an object"),
        (b"{", "p.jsonl:2: not a prediction .Invalid JSON"),
        (b"\xff", "p.jsonl is corrupt .*: remove it and evaluate the run again"),
        (b"", "p.jsonl has 1 correct of 1 predictions, results.jsonl 1 of 2: evaluate the run again"),
    ],
)
def test_the_error_for_corrupt_predictions_has_their_file_and_line(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "p.jsonl"
    write_predictions(path, [Prediction(question_id="1", video_id="v", prediction="a", answer="a", correct=True)])
    path.write_bytes(path.read_bytes() + line)
    with pytest.raises(UserError, match=message):
        read_predictions(path, Count(correct=1, questions=2))
    with pytest.raises(UserError, match=r"nowhere.jsonl is missing: evaluate the run again"):
        read_predictions(tmp_path / "nowhere.jsonl")


def test_the_error_for_results_that_are_not_text_has_their_file(tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"results\.jsonl is corrupt"):
        read_results(tmp_path / "results.jsonl")
    with pytest.raises(UserError, match=r"results\.jsonl is corrupt"):
        save_results(tmp_path, [row()])


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
    plain = row(scenario=scenario)
    odd = plain.model_copy(update={"subject": plain.subject.model_copy(update={"split": split})})
    with pytest.raises(UserError, match=rf"{problem}.*: evaluate the run again with 'mavqa-evaluate"):
        predictions_path(tmp_path, odd)
