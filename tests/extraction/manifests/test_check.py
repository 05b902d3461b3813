"""What a check of a manifest proves: each fault is found, and nothing is found where there is none."""

import hashlib
import json
from dataclasses import replace

import pytest

from pipeline.errors import UserError
from pipeline.manifests.check import check_manifest
from pipeline.manifests.manifest import Manifest, Question, Video, Vocabulary


def ask(question_id="1", video_id="a", text="Is it loud?", answer="yes", choices=None):
    return Question(question_id, video_id, text, text, answer, "Audio Counting", "Audio", choices)


SOUND = Manifest(
    name="mine",
    release="r1",
    licence="free",
    videos=(Video("a", "a.mp4"), Video("b", "b.mp4")),
    questions={"train": (ask("1"), ask("2", "b")), "test": (ask("3", "b", answer="no"),)},
    vocabulary=Vocabulary(("<pad>", "Is", "it", "loud"), ("yes", "no")),
)


def kinds(manifest, videos=None):
    return [(finding.kind, finding.subject) for finding in check_manifest(manifest, videos).errors]


def test_a_sound_manifest_has_no_errors_and_is_counted():
    report = check_manifest(SOUND, None)
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
        ({"train": (ask("1", "zz"), ask("2", "zz"))}, [("unknown video", "zz")]),
        ({"train": (ask("1"), ask("1"))}, [("repeated id", "1")]),
        ({"train": (ask("1"),), "test": (ask("1"),)}, [("repeated id", "1")]),
        ({"test": (ask(answer="perhaps"),)}, [("unknown answer", "perhaps")]),
        ({"val": (ask(text="Is it quiet?"),)}, [("unknown word", "quiet")]),
        ({"val": (ask(choices=("no", "maybe")),)}, [("answer is no choice", "1")]),
        ({"val": (ask(text=" ".join(["it"] * 15)),)}, [("long question", " ".join(["it"] * 15))]),
        ({"val": (ask(text=" ".join(["it"] * 14)),)}, []),
    ],
)
def test_each_fault_of_the_questions_is_found(change, found):
    assert kinds(replace(SOUND, questions=change)) == found


@pytest.mark.parametrize(
    ("vocabulary", "subject"),
    [
        (Vocabulary(("Is", "it", "loud", "<pad>"), ("yes", "no")), "<pad>"),
        (Vocabulary(("<pad>", "Is", "it", "loud", "it"), ("yes", "no")), "it"),
        (Vocabulary(("<pad>", "Is", "it", "loud"), ("yes", "no", "yes")), "yes"),
    ],
)
def test_a_vocabulary_that_cannot_index_is_found(vocabulary, subject):
    assert kinds(replace(SOUND, vocabulary=vocabulary)) == [("vocabulary", subject)]


def test_what_an_open_vocabulary_cannot_answer_is_a_warning_and_no_error():
    odd = (ask("4", text="Is it quiet?"), ask("5", answer="perhaps"), ask("6", choices=("no", "maybe")))
    closed = replace(SOUND, questions={**SOUND.questions, "val": odd})
    tokens = (*SOUND.vocabulary.tokens, "<unk>")
    report = check_manifest(replace(closed, vocabulary=replace(SOUND.vocabulary, tokens=tokens)), None)
    assert report.errors == ()
    assert {finding.kind for finding in report.warnings} == {"unknown word", "unknown answer", "answer is no choice"}
    assert check_manifest(closed, None).errors == report.warnings
    assert json.loads(json.dumps(report.to_json()))["ok"] is True


def test_a_vocabulary_of_longer_questions_lets_them_be():
    long = replace(SOUND, questions={"val": (ask(text=" ".join(["it"] * 15)),)})
    assert kinds(long) == [("long question", " ".join(["it"] * 15))]
    assert kinds(replace(long, vocabulary=replace(SOUND.vocabulary, question_length=15))) == []


def test_missing_and_changed_files_are_found(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"clip")
    right = replace(SOUND, videos=(Video("a", "a.mp4", hashlib.sha256(b"clip").hexdigest()), Video("b", "b.mp4")))
    assert kinds(right, tmp_path) == [("missing file", "b")]
    long = replace(right, videos=(right.videos[0], Video("b", "b" * 300)))
    assert kinds(long, tmp_path) == [("missing file", "b")]
    (tmp_path / "b.mp4").touch()
    assert kinds(right, tmp_path) == []
    (tmp_path / "a.mp4").write_bytes(b"clap")
    assert kinds(right, tmp_path) == [("different file", "a")]
    assert check_manifest(right, tmp_path).files_checked


def test_a_missing_videos_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="is not there"):
        check_manifest(SOUND, tmp_path / "absent")
