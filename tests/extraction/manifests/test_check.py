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
        ({"train": (question("1", "A"),)}, [("unknown video", "A")]),
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
    odd = [finding for finding in report.warnings if finding.kind == "contradicting answers"]
    expected = tuple(finding for finding in report.warnings if finding not in odd)
    assert {finding.kind for finding in expected} == {"unknown word", "unknown answer", "answer is no choice"}
    report = check_manifest(closed, None)
    assert (report.errors, report.warnings) == (expected, tuple(odd))
    report = check_manifest(replace(closed, vocabulary=replace(VALID.vocabulary, tokens=tokens)), None)
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


@pytest.mark.parametrize(
    ("known", "asked", "difference"),
    [
        ("00123", "123", "leading zeros"),
        ("Clip", "clip", "case"),
        ("caf\u00e9", "cafe\u0301", "Unicode normalisation (NFC against NFD)"),
        ("Clip01", "clip1", "case and leading zeros"),
    ],
)
def test_an_unknown_video_whose_id_nearly_matches_gets_a_hint(known, asked, difference):
    manifest = replace(VALID, videos=(Video(known, "a.mp4"),), questions={"train": (question("1", asked),)})
    found = next(finding for finding in check_manifest(manifest, None).errors if finding.kind == "unknown video")
    assert found.message.endswith(f"is not in videos.csv, which has {known!r}: they differ in {difference}")


def test_files_that_cannot_be_read_are_reported(tmp_path, monkeypatch):
    def refuse(file, algorithm):
        raise PermissionError(13, "Permission denied")

    for name in "ab":
        (tmp_path / f"{name}.mp4").touch()
    monkeypatch.setattr(hashlib, "file_digest", refuse)
    videos = tuple(replace(video, sha256="0") for video in VALID.videos)
    assert kinds(replace(VALID, videos=videos), tmp_path)[-2:] == [("unreadable", "a.mp4"), ("unreadable", "b.mp4")]


def test_a_file_too_large_to_be_hashed_is_another_file(tmp_path):
    with (tmp_path / "a.mp4").open("wb") as file:
        file.truncate(10**13)
    videos = (Video("a", "a.mp4", "0"), VALID.videos[1])
    found = check_manifest(replace(VALID, videos=videos), tmp_path).errors
    assert "video 'a': its file has another size, not sha256 0" in [finding.message for finding in found]
