"""Manifest files: saving and loading round trip, comments stay, errors of malformed files have the line."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.manifests.manifest import Manifest, Question, Video, Vocabulary, load_manifest, save_manifest

# Half of a surrogate pair: valid in JSON, but not encodable.
SURROGATE = "\\ud800"
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


def example(**changes):
    question = Question("1", "a", "Is it \u2028 loud?", "Is it <X>?", "yes", "Audio Counting", "Audio", ("yes", "no"))
    parts = {
        "name": "mine",
        "release": "r1",
        "licence": 'called "free"',
        "videos": (Video("a", "a,b\x85.mp4", "00"), Video("b", "sub/b.mp4")),
        "questions": {"train": (question,), "val": (), "test": ()},
        "vocabulary": Vocabulary(("<pad>", "Is"), ("yes", "no")),
    }
    return Manifest(**{**parts, **changes})


def test_a_saved_manifest_loads_equal(tmp_path):
    folder = tmp_path / "new" / "folder"
    save_manifest(example(), folder)
    assert load_manifest(folder) == example()
    assert not list(folder.glob("*.partial"))


@given(TEXT, TEXT)
def test_any_text_loads_equal(tmp_path_factory, text, answer):
    folder = tmp_path_factory.mktemp("manifest")
    question = Question("1", "a", text, text, answer, "t", "m")
    saved = example(questions={"val": (question,)}, vocabulary=Vocabulary(("<pad>", text), (answer,)))
    save_manifest(saved, folder)
    assert load_manifest(folder) == saved


def test_saving_again_removes_old_splits_and_keeps_comments(tmp_path):
    save_manifest(example(), tmp_path)
    head = tmp_path / "dataset.toml"
    head.write_text("# how it was built\n" + head.read_text() + "[synthesize]\nseed = 0\n")
    save_manifest(example(), tmp_path)
    assert head.read_text().startswith("# how")
    save_manifest(example(questions={}), tmp_path)
    assert not head.read_text().startswith("# how")
    assert not list(tmp_path.glob("questions-*"))


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("dataset.toml", "format = 2", "format 2 is not supported, only 1"),
        ("dataset.toml", "format = 1", "'name' is missing"),
        ("dataset.toml", 'format = 1\nname = 3\nrelease = ""\nlicence = ""\nsplits = []', "name = 3 is not text"),
        ("dataset.toml", "format = ", "not valid TOML"),
        (
            "dataset.toml",
            'format=1\nname=""\nrelease=""\nlicence=""\nsplits=["../x"]',
            r"splits \['\.\./x'\]",
        ),
        ("videos.csv", "id,path\n", "videos.csv:1: the columns"),
        ("videos.csv", 'video_id,path,sha256\na,a,\n"b,b,\n' + "c,c,\n" * 40_000, "videos.csv:3: not valid CSV"),
        ("videos.csv", "video_id,path,sha256\na\n", "videos.csv:2: 1 values"),
        ("videos.csv", "video_id,path,sha256\na,../x,\n", r"videos.csv:2: video path '\.\./x' leaves"),
        ("videos.csv", "video_id,path,sha256\n..,x,\n", r"videos.csv:2: video id '\.\.'"),
        ("videos.csv", "video_id,path,sha256\n../a,x,\n", r"videos.csv:2: video id '\.\./a' is not a plain name"),
        ("videos.csv", "video_id,path,sha256\na/,x,\n", "videos.csv:2: video id 'a/' is not a plain name"),
        ("videos.csv", "video_id,path,sha256\na\x1b,x,\n", r"videos.csv:2: video id .*control character U\+001B"),
        ("videos.csv", "video_id,path,sha256\na,/x,\n", "videos.csv:2: video path '/x' leaves"),
        ("videos.csv", "video_id,path,sha256\na,x,\na,y,\n", "videos.csv:3: video id 'a' occurs twice"),
        (
            "questions-train.jsonl",
            "{}\n",
            "questions-train.jsonl:1: not a question record: field 'question_id' is missing",
        ),
        ("questions-train.jsonl", "\n[]\n", "questions-train.jsonl:2: not a question record: it has no fields"),
        ("questions-train.jsonl", "[" * 100_000, "jsonl:1: not a question record: nested too deeply"),
        ("questions-train.jsonl", f'{{"question_id": "{SURROGATE}"}}\n', "jsonl:1: not a question .* surrogates not"),
        (
            "vocabulary.json",
            f'{{"tokens": ["{SURROGATE}"], "answers": []}}',
            "not a vocabulary: .* surrogates not allowed",
        ),
        ("vocabulary.json", "{}", "not a vocabulary: field 'tokens' is missing"),
        ("vocabulary.json", "[]", "not a vocabulary: it has no fields"),
        ("vocabulary.json", '{"tokens": "abc", "answers": []}', "field 'tokens' is not a list of texts"),
        ("vocabulary.json", '{"tokens": [], "answers": [1]}', "field 'answers' is not a list of texts"),
        ("vocabulary.json", '{"tokens": [], "answers": [], "question_length": "x"}', "'question_length' is 'x', not a"),
        ("vocabulary.json", '{"tokens": [], "answers": [], "question_length": 0}', "'question_length' is 0, not a"),
    ],
)
def test_the_error_of_a_malformed_file_has_its_name(tmp_path, file, text, message):
    save_manifest(example(), tmp_path)
    (tmp_path / file).write_text(text)
    with pytest.raises(UserError, match=message):
        load_manifest(tmp_path)


@pytest.mark.parametrize("name", ["../../evil", "/evil", "", "..", "a\\b", "a\nb", "n" * 201])
def test_a_dataset_name_that_cannot_be_part_of_a_path_is_an_error(tmp_path, name):
    save_manifest(example(), tmp_path)
    toml = tmp_path / "dataset.toml"
    toml.write_text(toml.read_text().replace(json.dumps("mine"), json.dumps(name)))
    with pytest.raises(UserError, match=r"dataset\.toml: name .*: choose another$"):
        load_manifest(tmp_path)
    with pytest.raises(UserError, match=r"^dataset name "):
        save_manifest(example(name=name), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_question_length_and_a_source_load_equal(tmp_path):
    saved = example(vocabulary=Vocabulary(("<pad>", "Is"), ("yes",), 21), source='the authors\' "page"')
    save_manifest(saved, tmp_path)
    assert load_manifest(tmp_path) == saved


def test_the_default_question_length_and_an_empty_source_are_omitted(tmp_path):
    save_manifest(example(), tmp_path)
    assert json.loads((tmp_path / "vocabulary.json").read_text()) == {
        "tokens": ["<pad>", "Is"],
        "answers": ["yes", "no"],
    }
    assert "source" not in (tmp_path / "dataset.toml").read_text()


@pytest.mark.parametrize("missing", ["videos.csv", "questions-test.jsonl", "vocabulary.json"])
def test_the_error_of_dataset_toml_alone_has_the_source_of_the_rest(tmp_path, missing):
    save_manifest(example(source="https://example.org/x"), tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(
        UserError, match=rf"{missing} is missing: get .* of mine from https://example\.org/x, then.*dataset\.toml"
    ):
        load_manifest(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answer": None}, "field 'answer' is None, not text"),
        ({"question_id": 1}, "field 'question_id' is 1, not text"),
        ({"colour": "red"}, "field 'colour' is unknown, the fields are question_id, .*, modality, choices"),
        ({"choices": "abc"}, "field 'choices' is 'abc', not a list of texts"),
        ({"choices": {"yes": 1}}, "field 'choices' is {'yes': 1}, not a list of texts"),
        ({"choices": ["yes", 1]}, r"field 'choices' is \['yes', 1\], not a list of texts"),
        ({"answer": ...}, "field 'answer' is missing"),
    ],
)
def test_the_error_for_a_question_has_its_line_and_field(tmp_path, changes, message):
    save_manifest(example(), tmp_path)
    path = tmp_path / "questions-train.jsonl"
    record = {name: v for name, v in {**json.loads(path.read_text()), **changes}.items() if v is not ...}
    path.write_text(path.read_text() + json.dumps(record))
    with pytest.raises(UserError, match=f"questions-train.jsonl:2: not a question record: {message}; fix the line"):
        load_manifest(tmp_path)


@pytest.mark.parametrize("name", ["dataset.toml", "videos.csv", "questions-train.jsonl", "vocabulary.json"])
def test_a_file_in_another_encoding_is_an_error(tmp_path, name):
    save_manifest(example(), tmp_path)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes() + "é".encode("latin-1"))
    with pytest.raises(UserError, match=rf"{name} is not UTF-8 text .*: save it as UTF-8"):
        load_manifest(tmp_path)


def test_the_error_of_a_missing_file_has_the_build_command(tmp_path):
    with pytest.raises(
        UserError,
        match=r"dataset\.toml is missing: build .* \(see its --help\), or pass another folder \(--manifest\)$",
    ):
        load_manifest(tmp_path)
