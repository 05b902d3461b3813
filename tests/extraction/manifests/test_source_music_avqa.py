"""MUSIC-AVQA's published layouts -> manifest, on small files written here."""

import hashlib
import json

import pytest

from pipeline.errors import UserError
from pipeline.manifests.sources.music_avqa import build, find_files
from pipeline.manifests.templates import ANSWERS


def record(question_id=1, video_id="00000001", answer="yes", **changes):
    fields = {
        "video_id": video_id,
        "question_id": question_id,
        "type": '["Audio", "Counting"]',
        "question_content": "Is there a <Object> sound?",
        "templ_values": '["erhu"]',
        "question_deleted": 0,
        "anser": answer,
    }
    return {**fields, **changes}


def write(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
    return path


def build_from(tmp_path, records, **settings):
    path = write(tmp_path / "some.json", records)
    return build("x", "json_update", **{"train": path}, **settings)


def test_a_record_becomes_a_question(tmp_path):
    content = {"type": '["Audio-Visual", "Location"]', "question_content": "Where is the <LL> instrument？ "}
    built = build_from(tmp_path, [record(7, answer="left", templ_values='["loudest"]', **content)])
    (question,) = built.manifest.questions["train"]
    assert question.question_id == "7"
    assert question.text == "Where is the loudest instrument?"
    assert question.template == "Where is the <LL> instrument?"
    assert (question.type, question.modality) == ("Audio-Visual Location", "Audio-Visual")
    assert (question.answer, question.choices) == ("left", None)


def test_the_answers_keep_their_published_order_for_any_set_of_splits(tmp_path):
    assert build_from(tmp_path, [record()]).manifest.vocabulary.answers == ANSWERS
    assert build_from(tmp_path, [record(answer="tabla")]).manifest.vocabulary.answers == ("tabla",)


def test_contradicting_copies_of_an_id_are_all_kept_and_counted(tmp_path):
    records = [record(5, answer="yes"), record(6), record(5, answer="no"), record(6), record(5, answer="no")]
    built = build_from(tmp_path, records)
    assert [q.question_id for q in built.manifest.questions["train"]] == ["5", "6", "5#2", "6#2", "5#3"]
    assert [q.answer for q in built.manifest.questions["train"]] == ["yes", "yes", "no", "yes", "no"]
    assert built.counts == {"repeated_ids": 2, "contradicting_ids": 1, "invented_ids": 0}


def test_the_mixed_layouts_of_v2_give_equal_questions(tmp_path):
    null = dict.fromkeys(("unmatch_audio", "audio_instrument", "person"))
    late = record(None, templ_values=["erhu"], type=["Audio", "Counting"], **null)
    missing = {key: value for key, value in record(video_id="-62JrfVinXE").items() if key != "question_id"}
    questions = build_from(tmp_path, [record(47859.0), late, missing]).manifest.questions["train"]
    assert questions[0].question_id == "47859"
    assert {(q.text, q.type) for q in questions} == {("Is there a erhu sound?", "Audio Counting")}


def test_invented_ids_are_reproducible_and_differ_by_video_question_and_split(tmp_path):
    one, two = record(None), record(None, video_id="00000002")
    three = record(None, templ_values='["drum"]')
    ids = [q.question_id for q in build_from(tmp_path, [one, two, three]).manifest.questions["train"]]
    again = [q.question_id for q in build_from(tmp_path, [three, two, one]).manifest.questions["train"]]
    assert len(set(ids)) == 3
    assert ids == again[::-1]
    both = build("x", "v2", **dict.fromkeys(("val", "test"), write(tmp_path / "v2.json", [one])))
    assert both.manifest.questions["val"][0].question_id != both.manifest.questions["test"][0].question_id
    assert both.counts["invented_ids"] == 2


def test_the_vocabulary_comes_from_training_or_from_all_splits(tmp_path):
    train = write(tmp_path / "a.json", [record(1)])
    test = write(tmp_path / "b.json", [record(2, templ_values='["drum"]')])
    tokens = build("x", "json", **{"train": train, "val": train}).manifest.vocabulary.tokens
    assert tokens == ("<pad>", "Is", "there", "a", "erhu", "sound")
    kept = build("x", "json", **{"train": train, "test": test}, unknown_words="keep").manifest.vocabulary
    assert (kept.tokens, kept.answers) == ((*tokens, "drum"), ANSWERS)
    assert build("x", "json", **{"train": train, "test": test}).manifest.vocabulary.is_open
    built = build("x", "json", **{"val": train, "test": test})
    assert built.manifest.vocabulary.tokens[-1] == "drum"
    assert built.notes == ("no training split: the vocabulary comes from all splits",)


@pytest.mark.parametrize(
    ("release", "layout"),
    [
        ("json", {"val": "json/avqa-val.json", "test": "json/avqa-test.json"}),
        ("json_update", {"train": "json_update/avqa-train.json", "val": "json_update/avqa-val.json"}),
        ("json_update", {"train": "avqa-train.json"}),
        ("v2", {"val": "music-avqa-v2/balance_valid.json", "test": "music-avqa-v2/test_balance.json"}),
        ("video-disjoint", {"test": "music-avqa/video_disjoint/music_avqa_test.json"}),
    ],
)
def test_a_release_is_found_in_its_own_folder_or_directly(tmp_path, release, layout):
    write(tmp_path / "json" / "avqa-test_real.json", [])
    for path in layout.values():
        write(tmp_path / path, [record()])
    assert find_files(release, tmp_path) == {split: tmp_path / path for split, path in layout.items()}


def test_the_folder_of_another_release_is_an_error(tmp_path):
    write(tmp_path / "json" / "avqa-val.json", [record()])
    with pytest.raises(UserError, match="contains release 'json', not 'json_update': pass --release json"):
        find_files("json_update", tmp_path / "json")
    with pytest.raises(UserError, match=r"no files of release 'v2'.*looked for .*test_balance\.json"):
        find_files("v2", tmp_path)


def test_a_given_file_takes_precedence_over_the_folder(tmp_path):
    write(tmp_path / "json_update" / "avqa-train.json", [record(1)])
    write(tmp_path / "json_update" / "avqa-val.json", [record(2)])
    mine = write(tmp_path / "mine.json", [record(3)])
    questions = build("x", "json_update", tmp_path, train=mine).manifest.questions
    assert [q.question_id for q in questions["train"] + questions["val"]] == ["3", "2"]


def test_a_video_disjoint_release_must_be_disjoint(tmp_path):
    files = {"val": write(tmp_path / "a.json", [record(1)]), "test": write(tmp_path / "b.json", [record(2)])}
    with pytest.raises(UserError, match="video '00000001' is in 'val' and 'test'"):
        build("x", "video-disjoint", **files)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"templ_values": "[]"}, "record 2: template .* has 1 slots"),
        ({"type": '["Audio", "Smell"]'}, "record 2: type 'Audio Smell' is not one of Audio Counting"),
        ({"type": "Audio"}, "record 2: "),
        ({"anser": None}, "record 2: anser None is not text"),
        ({"video_id": 7}, "record 2: video_id 7 is not text"),
        ({"templ_values": "[7]"}, "record 2: .* is not a list of words"),
        ({"templ_values": r'["\ud800"]'}, "record 2: .* surrogates not allowed"),
        ({"video_id": "../../etc"}, "record 2: video id '../../etc'"),
        ({"question_id": float("nan")}, "record 2: "),
        ({"question_id": 2.5}, "record 2: question_id 2.5 is not an integer"),
    ],
)
def test_the_error_of_an_invalid_record_has_its_file_and_number(tmp_path, changes, message):
    with pytest.raises(UserError, match=rf"some\.json: {message}"):
        build_from(tmp_path, [record(1), {**record(2), **changes}])


def test_the_error_of_a_missing_key_has_its_name(tmp_path):
    incomplete = {key: value for key, value in record().items() if key != "anser"}
    with pytest.raises(UserError, match="record 1: 'anser' is missing"):
        build_from(tmp_path, [incomplete])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "not JSON"),
        ("[" * 100_000, "not JSON: nested too deeply"),
        (r'[{"anser": "\ud800"}]', "not JSON: .* surrogates not allowed"),
        ('{"a": 1}', "not a list of records"),
        ("[1]", "not a list of records"),
    ],
)
def test_a_file_that_is_not_an_annotation_file_is_an_error(tmp_path, text, message):
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(UserError, match=message):
        build("x", "json", **{"val": tmp_path / "bad.json"})
    with pytest.raises(UserError, match="does not exist"):
        build("x", "json", **{"val": tmp_path / "absent.json"})


def test_missing_annotations_are_an_error():
    with pytest.raises(UserError, match="no annotation files: pass --annotations"):
        build("x", "json")


def test_videos_are_looked_up_by_stem_in_the_folder_and_subfolders(tmp_path):
    clip = tmp_path / "videos" / "real" / "00000001.MP4"
    clip.parent.mkdir(parents=True)
    clip.write_bytes(b"clip")
    calls = []
    built = build_from(
        tmp_path,
        [record(1), record(2, video_id="00000002")],
        videos=tmp_path / "videos",
        progress=lambda done, total: calls.append((done, total)),
    )
    first, second = built.manifest.videos
    assert (first.path, first.sha256) == ("real/00000001.MP4", hashlib.sha256(b"clip").hexdigest())
    assert (second.path, second.sha256) == ("00000002.mp4", "")
    assert built.counts["missing_videos"] == 1
    assert "'00000002'" in built.notes[-1]
    assert calls == [(1, 1)]


def test_ambiguous_and_missing_videos_are_errors(tmp_path):
    folder = tmp_path / "videos"
    (folder / "b").mkdir(parents=True)
    (folder / "other.mp4").touch()
    with pytest.raises(UserError, match="none of the 1 videos"):
        build_from(tmp_path, [record()], videos=folder)
    (folder / "00000001.mp4").touch()
    (folder / "b" / "00000001.webm").touch()
    with pytest.raises(UserError, match=r"'00000001' is ambiguous in .*00000001\.mp4 or b/00000001\.webm"):
        build_from(tmp_path, [record()], videos=folder)
