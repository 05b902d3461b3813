"""What is said of odd questions when a manifest is built or checked."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pipeline.cli.manifest import manifest

HEAD = "video,question,answer,split\n"
KNOWN = "a,How many?,Two,train\nb,How many?,one,train\n"


def build(tmp_path: Path, rows: str, *options: str) -> Result:
    (tmp_path / "qa.csv").write_text(HEAD + rows, encoding="utf-8")
    arguments = ["build", "table", "--csv", str(tmp_path / "qa.csv"), "--out", str(tmp_path / "mine"), *options]
    result = CliRunner().invoke(manifest, arguments)
    assert result.exit_code == 0, result.output
    return result


@pytest.mark.parametrize(
    ("rows", "messages"),
    [
        (KNOWN + "c,How many?,one,test\n", []),
        (
            KNOWN + "c,How many?,two,test\nc,How many?,one,test\n",
            [
                "1 of 2 questions of 'test' have answers outside the vocabulary, such as 'two': they always count as",
                "2 answers differ from another one only in case, spaces or Unicode form, such as 'Two' and 'two': they",
                "1 questions are repeated on the same video with other answers, such as 'How many?' on 'c': 'two' and",
            ],
        ),
        (
            KNOWN + "c,How many lutes?,one,test\nc,How many?,one,val\n",
            ["1 of 1 questions of 'test' have words outside the vocabulary, such as 'lutes': they are read as <unk>"],
        ),
        (
            "a,视频中有几种乐器？,one,train\nb,Why?,one,train\n",
            ["1 of 2 question texts are one word each, such as '视频中有几种乐器?': words are separated by spaces"],
        ),
    ],
)
def test_building_says_what_is_odd_with_numbers_and_an_example(tmp_path: Path, rows: str, messages: list[str]) -> None:
    lines = build(tmp_path, rows).stderr.splitlines()
    assert len(lines) == len(messages)
    for line, message in zip(lines, messages, strict=True):
        assert line.startswith(f"note: {message}")
    notes = json.loads(build(tmp_path, rows, "--json").stdout)["notes"]
    assert [f"note: {note}" for note in notes] == lines


def test_choices_distinguish_questions_and_odd_questions_are_warnings_of_the_check(tmp_path: Path) -> None:
    rows = "a,Which?,lute,train\na,Which?,Lute,train\n"
    build(tmp_path, rows)
    checked = CliRunner().invoke(manifest, ["check", str(tmp_path / "mine"), "--json"])
    kinds = [warning["kind"] for warning in json.loads(checked.stdout)["warnings"]]
    assert (checked.exit_code, kinds) == (0, ["answers alike", "contradicting answers"])
    (tmp_path / "qa.csv").write_text("video,question,answer,choices\na,Which?,lute,lute|oud\na,Which?,oud,oud|lyre\n")
    arguments = ["build", "table", "--csv", str(tmp_path / "qa.csv"), "--out", str(tmp_path / "mine"), "--json"]
    assert json.loads(CliRunner().invoke(manifest, arguments).stdout)["notes"] == [
        "no splits given: all questions are in 'train'"
    ]
