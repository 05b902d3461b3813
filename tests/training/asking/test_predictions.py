"""Tables of answers, and the commands that write and print them."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from asking_toys import Trained, registered
from click.testing import CliRunner, Result

from pipeline.store.schema import State
from train.asking.predictions import COLUMNS, PredictedRow, predict_split, read_questions
from train.cli.ask import ask
from train.cli.predict import predict
from train.data.feature_bank import FeatureBank
from train.data.scenarios import ALL_SCENARIOS, hidden_in
from train.evaluation.evaluate_run import evaluate_run
from train.runs.results import predictions_path, read_predictions

TEXT = "Is there a voiceover?"


def invoke(command: object, *words: object) -> Result:
    return CliRunner().invoke(command, [str(word) for word in words])  # type: ignore[arg-type]


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("scenario", ALL_SCENARIOS)
def test_the_answers_to_a_split_are_the_predictions_of_an_evaluation(copied, scenario):
    bank = FeatureBank(copied.opened)
    (row, *_) = evaluate_run(copied.run, copied.manifest, bank, "train", (scenario,))
    expected = {p.question_id: p.prediction for p in read_predictions(predictions_path(copied.run, row))}
    rows = list(predict_split(copied.run, copied.manifest, bank, "train", drop=hidden_in(scenario)))
    assert len(rows) == len(copied.manifest.questions["train"])
    assert {row.question_id: row.answer for row in rows if row.question_id in expected} == expected
    assert {row.missing for row in rows if row.question_id in expected} == {
        "complete": {""},
        "natural": {"audio", "visual"},
    }.get(scenario, {"+".join(hidden_in(scenario))})


def test_a_table_of_questions_has_its_answers_by_video_and_the_reasons_of_failed_rows(trained, answerer, tmp_path):
    (mute, *_), (video, *_) = (
        [trained.opened.video_ids[row] for row in np.flatnonzero(trained.opened.presence("audio") == state)]
        for state in (State.ABSENT, State.COMPLETE)
    )
    table, out = tmp_path / "questions.csv", tmp_path / "answers.csv"
    lines = [
        ("question_id", "video", "question", "choices"),
        ("a", video, TEXT, ""),
        ("b", f"{mute}.mp4", TEXT, "yes|no"),
        ("c", "nowhere", TEXT, ""),
        ("d", video, "Klingt es gut?", ""),
        ("e", f"{video}.mp4", TEXT, "maybe"),
    ]
    table.write_text("\n".join(map(",".join, lines)))
    with registered():
        ended = invoke(
            predict, trained.run, "--questions", table, "--videos", trained.data / "videos", "--out", out, "--json"
        )
    assert ended.exit_code == 3, ended.output
    rows = {row["question_id"]: row for row in read_table(out)}
    assert list(rows["a"]) == list(COLUMNS)
    assert list(rows) == ["d", "a", "b", "c", "e"]
    expected = answerer.ask(trained.clip(video), TEXT)
    assert (rows["a"]["answer"], rows["a"]["missing"]) == (
        expected.questions[0].best.answer,
        "+".join(expected.missing),
    )
    assert float(rows["a"]["probability"]) == pytest.approx(expected.questions[0].best.probability, abs=1e-6)
    assert rows["b"]["answer"] in ("yes", "no")
    assert (rows["b"]["missing"], rows["b"]["reason"], rows["b"]["calibrated"]) == ("audio", "", "no")
    for name, reason in (("c", "no video 'nowhere' in"), ("d", "no word that the run knows"), ("e", "'maybe'")):
        assert (rows[name]["answer"], rows[name]["probability"]) == ("", "")
        assert reason in rows[name]["reason"]
    document = json.loads(ended.stdout)
    assert (document["questions"], [failure["question_id"] for failure in document["failures"]]) == (5, ["d", "c", "e"])


def test_a_split_is_written_as_a_table_with_exit_code_0(trained, tmp_path):
    out = tmp_path / "answers.csv"
    ended = invoke(predict, trained.run, "--split", "test", "--drop", "audio", "--out", out)
    assert ended.exit_code == 0, ended.output
    assert ended.stdout == ""
    questions = trained.manifest.questions["test"]
    assert [row["question_id"] for row in read_table(out)] == [question.question_id for question in questions]
    assert f"{len(questions)} of {len(questions)} questions answered" in ended.stderr
    assert list(tmp_path.iterdir()) == [out]


def test_ask_prints_answers_and_what_was_missing_and_one_document_with_json(trained):
    clip = trained.clip(trained.opened.video_ids[-1])
    shown = invoke(ask, trained.run, clip, TEXT, "--drop", "visual", "--top", "2")
    assert (shown.exit_code, shown.stdout) == (0, "")
    for text in (TEXT, "visual: missing, dropped on request", "zero-fill", "not calibrated", "floor", " %  "):
        assert text in shown.stderr
    assert shown.stderr.count(" %  ") == 2
    printed = invoke(ask, trained.run, clip, TEXT, "How many fluts?", "--json", "--top", "1")
    assert printed.exit_code == 2
    printed = invoke(ask, trained.run, clip, TEXT, "--json", "--top", "1")
    document = json.loads(printed.stdout)
    assert document["questions"][0]["question"] == TEXT
    assert len(document["questions"][0]["answers"]) == 1
    assert document["calibrated"] is False
    assert document["questions"][0]["why_unknown"]


@pytest.fixture
def places(trained: Trained, tmp_path: Path) -> dict[str, Path]:
    names = {"run": trained.run, "clip": trained.clip(trained.opened.video_ids[0]), "here": tmp_path}
    (tmp_path / "text.csv").write_text("video,text\na,b\n")
    (tmp_path / "good.csv").write_text(f"video,question\na,{TEXT}\n")
    (tmp_path / "twice.csv").write_text(f"video,question,question_id\na,{TEXT},1\na,{TEXT},1\n")
    (tmp_path / "empty.mp4").write_bytes(b"")
    return names


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("ask {here} {clip} Why", "is not a run folder"),
        ("ask {run} {here}/none.mp4 " + "Is", "none.mp4 does not exist"),
        ("ask {run} {here}/empty.mp4 Is", "neither audio nor frames that can be used"),
        ("ask {run} {clip} Warum", "has no word that the run knows"),
        ("ask {run} {clip} Is --device gpu", "gpu"),
        ("ask {run} {clip} Is --store {here}/none.zarr", "none.zarr is missing"),
        ("ask {run} {clip} Is --weights {here}/none", "none' are not a folder"),
        ("predict {run} --out {here}/a.csv", "pass --questions with --videos"),
        ("predict {run} --out {here}/a.csv --split test --questions {here}/good.csv", "pass --questions with"),
        ("predict {run} --out {here}/a.csv --split test --weights seeded", "--weights has no effect with --split"),
        ("predict {run} --out {here}/a.csv --questions {here}/good.csv", "pass --videos"),
        ("predict {run} --out {here}/a.csv --questions {here}/good.csv --videos {here}/v", "does not exist"),
        (
            "predict {run} --out {here}/a.csv --questions {here}/text.csv --videos {here}",
            "column 'question' is missing",
        ),
        ("predict {run} --out {here}/a.csv --questions {here}/twice.csv --videos {here}", "already used in line 2"),
        ("predict {run} --out {here}/a.csv --questions {here}/no.csv --videos {here}", "no.csv' does not exist"),
        ("predict {run} --out {here}/a.csv --split test --store {here}/none.zarr", "none.zarr is missing"),
    ],
)
def test_wrong_use_ends_in_one_line_with_exit_code_2_and_without_a_table(line, problem, places):
    name, *words = line.format(**places).split()
    ended = invoke({"ask": ask, "predict": predict}[name], *words)
    assert ended.exit_code == 2, ended.output
    errors = [line for line in ended.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1
    assert problem in errors[0]
    assert not list(places["here"].glob("a.csv"))


def test_rows_of_a_table_are_grouped_by_video_and_numbered(tmp_path):
    (tmp_path / "q.csv").write_text("Video,Question\na,one\nb,two\na,three\n")
    read = read_questions(tmp_path / "q.csv")
    assert {video: [row["question_id"] for row in rows] for video, rows in read.items()} == {
        "a": ["1", "3"],
        "b": ["2"],
    }
    assert PredictedRow("1", "a", "b").answer == ""
