"""The check of a manifest: each fault is reported, and a valid manifest has none."""

import hashlib
import json
from dataclasses import replace

import pytest

from pipeline.errors import UserError
from pipeline.manifests.check import check_manifest
from pipeline.manifests.manifest import Manifest, Question, Video, Vocabulary


def question(question_id="1", video_id="a", text="Is it loud?", answer="yes", choices=None):
    return Question(question_id, video_id, text, text, answer, "Audio Counting", "Audio", choices)


VALID = Manifest(
    name="mine",
    release="r1",
    licence="free",
    videos=(Video("a", "a.mp4"), Video("b", "b.mp4")),
    questions={"train": (question("1"), question("2", "b")), "test": (question("3", "b", answer="no"),)},
    vocabulary=Vocabulary(("<pad>", "Is", "it", "loud"), ("yes", "no")),
)


def kinds(manifest, videos=None):
    return [(finding.kind, finding.subject) for finding in check_manifest(manifest, videos).errors]


def test_a_valid_manifest_has_no_errors_and_is_counted():
    report = check_manifest(VALID, None)
    assert report.errors == ()
    assert not report.files_checked
    assert report.counts["splits"]["train"] == {
        "questions": 2,
        "videos": 2,
        "multiple_choice": 0,
        "types": {"Audio Counting": 2},
        "answers": {"yes": 2},
    }
    assert report.counts["shared"] == {"train, test": {"videos": 1, "questions": 1}}
    assert json.loads(json.dumps(report.to_json()))["ok"] is True


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"train": (question("1", "zz"), question("2", "zz"))}, [("unknown video", "zz")]),
        ({"train": (question("1"), question("1"))}, [("repeated id", "1")]),
        ({"train": (question("1"),), "test": (question("1"),)}, [("repeated id", "1")]),
        ({"test": (question(answer="perhaps"),)}, [("unknown answer", "perhaps")]),
        ({"val": (question(text="Is it quiet?"),)}, [("unknown word", "quiet")]),
        ({"val": (question(choices=("no", "maybe")),)}, [("answer is no choice", "1")]),
        ({"val": (question(text=" ".join(["it"] * 15)),)}, [("long question", " ".join(["it"] * 15))]),
        ({"val": (question(text=" ".join(["it"] * 14)),)}, []),
    ],
)
def test_each_fault_of_the_questions_is_reported(change, found):
    assert kinds(replace(VALID, questions=change)) == found


@pytest.mark.parametrize(
    ("vocabulary", "subject"),
    [
        (Vocabulary(("Is", "it", "loud", "<pad>"), ("yes", "no")), "<pad>"),
        (Vocabulary(("<pad>", "Is", "it", "loud", "it"), ("yes", "no")), "it"),
        (Vocabulary(("<pad>", "Is", "it", "loud"), ("yes", "no", "yes")), "yes"),
    ],
)
def test_an_invalid_vocabulary_is_reported(vocabulary, subject):
    assert kinds(replace(VALID, vocabulary=vocabulary)) == [("vocabulary", subject)]


def test_unknown_words_and_answers_are_warnings_if_the_vocabulary_is_open():
    irregular = (
        question("4", text="Is it quiet?"),
        question("5", answer="perhaps"),
        question("6", choices=("no", "maybe")),
    )
    closed = replace(VALID, questions={**VALID.questions, "val": irregular})
    tokens = (*VALID.vocabulary.tokens, "<unk>")
    report = check_manifest(replace(closed, vocabulary=replace(VALID.vocabulary, tokens=tokens)), None)
    assert report.errors == ()
    assert {finding.kind for finding in report.warnings} == {"unknown word", "unknown answer", "answer is no choice"}
    assert check_manifest(closed, None).errors == report.warnings
    assert json.loads(json.dumps(report.to_json()))["ok"] is True


def test_a_larger_question_length_allows_longer_questions():
    long = replace(VALID, questions={"val": (question(text=" ".join(["it"] * 15)),)})
    assert kinds(long) == [("long question", " ".join(["it"] * 15))]
    assert kinds(replace(long, vocabulary=replace(VALID.vocabulary, question_length=15))) == []


def test_missing_and_changed_files_are_reported(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"clip")
    manifest = replace(VALID, videos=(Video("a", "a.mp4", hashlib.sha256(b"clip").hexdigest()), Video("b", "b.mp4")))
    assert kinds(manifest, tmp_path) == [("missing file", "b")]
    long = replace(manifest, videos=(manifest.videos[0], Video("b", "b" * 300)))
    assert kinds(long, tmp_path) == [("missing file", "b")]
    (tmp_path / "b.mp4").touch()
    assert kinds(manifest, tmp_path) == []
    (tmp_path / "a.mp4").write_bytes(b"clap")
    assert kinds(manifest, tmp_path) == [("different file", "a")]
    assert check_manifest(manifest, tmp_path).files_checked


def test_a_missing_videos_folder_is_an_error(tmp_path):
    with pytest.raises(UserError, match="absent' does not exist"):
        check_manifest(VALID, tmp_path / "absent")
