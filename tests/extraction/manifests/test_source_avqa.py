"""AVQA's published layouts -> manifest, on small files written here."""

import json

import pytest

from pipeline.errors import UserError
from pipeline.manifests.check import check_manifest
from pipeline.manifests.sources.avqa import build, find_files
from pipeline.manifests.templates import AVQA_TYPES

CHOICES = ["street", "At sea", "field", "sky"]


def record(number=1, **changes):
    """Return a record of the release's layout: the answer is the index of a choice, the name has no suffix."""
    fields = {
        "id": number,
        "video_name": f"-HG3Omg_{number}_000030",
        "video_id": 341 + number,
        "question_text": "Where did the video take place?",
        "multi_choice": CHOICES,
        "answer": 1,
        "question_relation": "Both",
        "question_type": "Where",
    }
    return {key: value for key, value in {**fields, **changes}.items() if value != "drop"}


def write(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
    return path


def build_from(tmp_path, records, **settings):
    return build("avqa", **{"train": [write(tmp_path / "some.json", records)]}, **settings)


def test_a_record_of_the_release_becomes_a_question(tmp_path):
    (question,) = build_from(tmp_path, [record(7)]).manifest.questions["train"]
    assert (question.question_id, question.video_id) == ("7", "-HG3Omg_7_000030")
    assert question.text == question.template == "Where did the video take place?"
    assert (question.answer, question.choices) == ("At sea", tuple(CHOICES))
    assert (question.type, question.modality) == ("Where", "Audio-Visual")


def test_a_record_of_a_re_split_becomes_the_same_question(tmp_path):
    changes = {"answer": "At sea", "video_name": "-HG3Omg_7_000030.mp4", "label": "waves"}
    (text,) = build_from(tmp_path, [record(7, **changes)]).manifest.questions["train"]
    (index,) = build_from(tmp_path, [record(7)]).manifest.questions["train"]
    assert text == index
    (bare,) = build_from(tmp_path, [record(7, multi_choice="drop", answer="At sea")]).manifest.questions["train"]
    assert bare.choices is None


@pytest.mark.parametrize(
    ("written", "type_"),
    [
        *((name, name) for name in AVQA_TYPES),
        *(("Used For", "Used for"), ("Come From", "Come from"), ("come_from", "Come from")),
        *(("Before Next", "Before/Next"), ("BeforeNext", "Before/Next")),
    ],
)
def test_other_spellings_of_types_are_normalised(tmp_path, written, type_):
    (question,) = build_from(tmp_path, [record(question_type=written)]).manifest.questions["train"]
    assert question.type == type_


@pytest.mark.parametrize(("relation", "modality"), [("View", "Visual"), ("Sound", "Audio"), ("both", "Audio-Visual")])
def test_relations_become_modalities(tmp_path, relation, modality):
    (question,) = build_from(tmp_path, [record(question_relation=relation)]).manifest.questions["train"]
    assert question.modality == modality


def test_answers_are_not_corrected_and_irregularities_are_counted(tmp_path):
    records = [
        record(1, answer="street "),
        record(2, answer="Street"),
        record(3, answer=0, multi_choice=["street", "street", None, "sky "]),
        record(4, multi_choice="drop", answer="moor"),
        record(4, answer="sky"),
    ]
    built = build_from(tmp_path, records)
    questions = built.manifest.questions["train"]
    assert [q.answer for q in questions] == ["street", "Street", "street", "moor", "sky"]
    assert [q.question_id for q in questions] == ["1", "2", "3", "4", "4#2"]
    assert questions[2].choices == ("street", "street", "null", "sky")
    assert built.manifest.vocabulary.answers == ("street", "Street", "moor", "sky")
    assert built.counts == {
        "trimmed_answers": 1,
        "multiple_choice": 4,
        "answers_outside_choices": 1,
        "repeated_choices": 1,
        "null_choices": 1,
        "repeated_ids": 1,
        "contradicting_ids": 1,
        "case_variants": 1,
    }


def test_the_vocabulary_comes_from_the_training_split_and_is_open(tmp_path):
    train = [record(1), record(2, question_text="Where did the crow take off?", answer=3)]
    test = [record(3, question_text="Where is the crow?", answer=0)]
    files = {"train": [write(tmp_path / "a.json", train)], "test": [write(tmp_path / "b.json", test)]}
    built = build("avqa", **files)
    assert built.manifest.vocabulary.tokens == ("<pad>", "<unk>", "Where", "did", "the", "take")
    assert built.manifest.vocabulary.answers == ("At sea", "sky")
    assert built.notes == ()
    report = check_manifest(built.manifest, None)
    assert report.errors == ()
    assert {finding.subject for finding in report.warnings} == {"street", "is", "crow", "off", "place", "video"}
    kept = build("avqa", **files, unknown_words="keep").manifest.vocabulary
    assert kept.tokens[-2:] == ("off", "is")
    without = build("avqa", **{"test": files["test"]})
    assert without.manifest.vocabulary.answers == ("street",)
    assert "no training split: the vocabulary comes from all splits" in without.notes


def test_a_split_without_choices_gets_a_note(tmp_path):
    built = build_from(tmp_path, [record(multi_choice=None, answer="sky")])
    assert built.notes == ("no question of 'train' has choices: predictions range over all answers",)


def test_evaluation_on_the_split_that_selects_the_epoch_gets_a_note(tmp_path):
    one, two = ([write(tmp_path / f"{name}.json", [record(name)])] for name in (1, 2))
    (note,) = build("avqa", **{"train": one, "val": two}).notes
    assert note == "no test split: 'val' both selects the epoch and is evaluated; pass its file as --test to avoid this"
    assert build("avqa", **{"train": one, "test": two}).notes == ()


@pytest.mark.parametrize(
    ("available", "found"),
    [
        (["train_qa.json", "val_qa.json"], {"train": ["train_qa.json"], "val": ["val_qa.json"]}),
        (["avqa/test_qa_all.json"], {"test": ["avqa/test_qa_all.json"]}),
        (
            ["train_Where.json", "train_Come From.json", "train_used_for.json", "train_notes.json"],
            {"train": ["train_Come From.json", "train_Where.json", "train_used_for.json"]},
        ),
        (["train_qa.json", "train_Where.json"], {"train": ["train_qa.json"]}),
    ],
)
def test_a_split_is_one_file_or_one_per_type(tmp_path, available, found):
    for path in available:
        write(tmp_path / path, [record()])
    assert find_files(tmp_path) == {split: [tmp_path / path for path in paths] for split, paths in found.items()}


def test_files_of_a_split_are_read_in_order_and_take_precedence_over_the_folder(tmp_path):
    write(tmp_path / "train_qa.json", [record(1)])
    write(tmp_path / "val_qa.json", [record(2)])
    mine = [write(tmp_path / "b.json", [record(3)]), write(tmp_path / "a.json", [record(4)])]
    questions = build("avqa", tmp_path, train=mine).manifest.questions
    assert [q.question_id for q in questions["train"] + questions["val"]] == ["3", "4", "2"]


def test_videos_are_looked_up_by_their_name(tmp_path):
    folder = tmp_path / "clips"
    folder.mkdir()
    (folder / "-HG3Omg_1_000030.mkv").write_bytes(b"clip")
    built = build_from(tmp_path, [record(1), record(2)], videos=folder)
    assert [video.path for video in built.manifest.videos] == ["-HG3Omg_1_000030.mkv", "-HG3Omg_2_000030.mp4"]
    assert built.counts["missing_videos"] == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answer": 4}, "answer 4 is not the index of one of 4 choices"),
        ({"answer": -1}, "answer -1 is not the index of one of 4 choices"),
        ({"answer": 1, "multi_choice": "drop"}, "answer 1 is not the index of one of 0 choices"),
        ({"answer": True}, "answer True is not text"),
        ({"answer": None}, "answer None is not text"),
        ({"answer": " "}, "answer ' ' is not text"),
        ({"answer": "drop"}, "'answer' is missing"),
        ({"multi_choice": []}, r"multi_choice \[\] is not a list of answers"),
        ({"multi_choice": "sea"}, "multi_choice 'sea' is not a list of answers"),
        ({"multi_choice": ["sea", 3]}, "multi_choice 3 is not text"),
        ({"question_type": "How"}, "question_type 'How' is not one of Used for, When"),
        ({"question_relation": "Smell"}, "question_relation 'Smell' is not one of Both, View, Sound"),
        ({"question_text": "?"}, r"question_text '\?' has no words"),
        ({"video_name": "../a"}, r"video id '\.\./a'"),
        ({"id": 1.5}, "id 1.5 is not an integer"),
        ({"id": True}, "id True is not an integer"),
    ],
)
def test_the_error_of_an_invalid_record_has_its_file_and_number(tmp_path, changes, message):
    with pytest.raises(UserError, match=rf"some\.json: record 2: {message}"):
        build_from(tmp_path, [record(1), record(2, **changes)])


def test_missing_annotations_are_an_error(tmp_path):
    with pytest.raises(UserError, match=r"no files of AVQA in .*looked for train_qa\.json.*train_Where\.json"):
        build("avqa", tmp_path)
    with pytest.raises(UserError, match="no annotation files: pass --annotations"):
        build("avqa")
