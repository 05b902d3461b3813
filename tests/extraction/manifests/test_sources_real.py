"""The published files: counts, ids, vocabulary, and tokens compared with those of the released loader.

The expected figures were counted in the releases; the loader's rule for tokens is reimplemented here.
"""

import json
from collections import Counter

import pytest

from pipeline.manifests.check import check_manifest
from pipeline.manifests.manifest import QUESTION_LENGTH, load_manifest, save_manifest
from pipeline.manifests.sources import avqa, folder, music_avqa
from pipeline.manifests.templates import ANSWERS, SLOTS, TYPES, encode, index_tokens, tokenise
from pipeline.store.schema import tokens_name

pytestmark = pytest.mark.real

FILES = {
    "json/avqa-test.json": (9185, [1022, 601, 1199, 1228, 995, 1274, 927, 1115, 824]),
    "json/avqa-val.json": (4595, [515, 299, 600, 614, 499, 635, 462, 557, 414]),
    "json_update/avqa-test.json": (9129, [1017, 594, 1197, 1225, 988, 1265, 920, 1101, 822]),
    "json_update/avqa-val.json": (4568, [511, 295, 600, 613, 495, 633, 461, 549, 411]),
    "json/avqa-train_fake.json": (6233, [442, 1250, 442, 713, 356, 1136, 749, 494, 651]),
    "json/avqa-test_real.json": (7402, None),
    "json/avqa-test_fake.json": (1783, None),
    "json/avqa-val_real.json": (3698, None),
    "json/avqa-val_fake.json": (897, None),
    "train_recovered/avqa-train.recovered.json": (24094, None),
    "train_recovered/avqa-train.extra_from_v2.json": (2495, None),
    "video_disjoint/music_avqa_val.json": (4571, None),
    "video_disjoint/music_avqa_test.json": (9125, None),
    "../music-avqa-v2/balance_valid.json": (5346, None),
    "../music-avqa-v2/test_balance.json": (10819, None),
}


def official_tokens(record):
    """Return the tokens by the released rule: strip, split, cut the last character, fill the slots."""
    values = record["templ_values"]
    rest = iter(json.loads(values) if isinstance(values, str) else values)
    tokens = record["question_content"].rstrip().split(" ")
    tokens[-1] = tokens[-1][:-1]
    return [next(rest) if "<" in token else token for token in tokens]


@pytest.fixture(scope="module")
def annotations(shared_data):
    return shared_data / "annotations" / "music-avqa"


@pytest.fixture(scope="module")
def recovered(annotations):
    train = annotations / "train_recovered" / "avqa-train.recovered.json"
    return music_avqa.build("music-avqa", "json_update", annotations, train=train)


@pytest.mark.parametrize("path", FILES)
def test_all_records_of_all_files_are_kept_in_order_with_the_official_tokens(annotations, path):
    file = annotations / path
    questions = music_avqa.build("x", "json", **{"test": file}).manifest.questions["test"]
    records = json.loads(file.read_text())
    total, per_type = FILES[path]
    assert len(questions) == len(records) == total
    for question, record in zip(questions, records, strict=True):
        assert tokenise(question.text) == official_tokens(record)
        assert (question.answer, question.video_id) == (record["anser"], record["video_id"])
    assert len({question.question_id for question in questions}) == total
    counted = Counter(question.type for question in questions)
    assert set(counted) <= set(TYPES)
    if per_type:
        assert [counted[name] for name in TYPES] == per_type


def test_every_filler_is_one_of_its_slot(annotations):
    for record in json.loads((annotations / "json_update" / "avqa-test.json").read_text()):
        slots = [token.rstrip("?？") for token in record["question_content"].split() if "<" in token]
        for slot, value in zip(slots, json.loads(record["templ_values"]), strict=True):
            assert value in SLOTS[slot]


def test_json_update_with_the_recovered_training_split_has_the_known_sizes(recovered, annotations, tmp_path):
    manifest = recovered.manifest
    assert {split: len(questions) for split, questions in manifest.questions.items()} == {
        "train": 24094,
        "val": 4568,
        "test": 9129,
    }
    assert len(manifest.texts()) == 2655
    assert len(manifest.vocabulary.tokens) == 93
    assert manifest.vocabulary.answers == ANSWERS
    published = json.loads((annotations / "answer2idx.json").read_text())["ans2ix"]
    assert {answer: index for index, answer in enumerate(ANSWERS)} == published
    assert recovered.counts == {"repeated_ids": 0, "contradicting_ids": 0, "invented_ids": 0}
    save_manifest(manifest, tmp_path)
    assert load_manifest(tmp_path) == manifest


def test_every_question_is_encoded_as_fourteen_indices_of_its_words(recovered):
    vocabulary = recovered.manifest.vocabulary
    index = index_tokens(vocabulary)
    for text in recovered.manifest.texts():
        indices = encode(text, index, QUESTION_LENGTH)
        assert len(indices) == 14
        assert [vocabulary.tokens[i] for i in indices if i] == tokenise(text)


def test_its_check_has_no_errors_and_reports_shared_videos(recovered):
    report = check_manifest(recovered.manifest, None)
    assert report.errors == ()
    assert report.counts["splits"]["test"]["videos"] == 6399
    assert report.counts["shared"]["val, test"] == {"videos": 2296, "questions": 0}


def test_json_keeps_ids_with_contradicting_answers(annotations):
    built = music_avqa.build("x", "json", annotations)
    assert built.counts == {"repeated_ids": 82, "contradicting_ids": 82, "invented_ids": 0}
    second = [q.question_id for q in built.manifest.questions["test"] if q.question_id.endswith("#2")]
    assert len(second) == 55
    assert check_manifest(built.manifest, None).errors == ()


@pytest.mark.parametrize(
    ("release", "sizes", "invented", "shared"),
    [("v2", {"val": 5346, "test": 10819}, 2550, 2765), ("video-disjoint", {"val": 4571, "test": 9125}, 0, 0)],
)
def test_the_other_releases_are_built_without_errors(shared_data, release, sizes, invented, shared):
    built = music_avqa.build("x", release, shared_data / "annotations")
    assert {split: len(questions) for split, questions in built.manifest.questions.items()} == sizes
    assert built.counts["invented_ids"] == invented
    assert built.manifest.vocabulary.answers == ANSWERS
    assert len(built.manifest.vocabulary.tokens) == 93
    report = check_manifest(built.manifest, None)
    assert report.errors == ()
    assert report.counts["shared"]["val, test"]["videos"] == shared


def test_all_real_clips_are_found_with_their_sha256(shared_data):
    lines = (shared_data / "media" / "INDEX.tsv").read_text().splitlines()
    header = lines[0].split("\t")
    rows = [dict(zip(header, line.split("\t"), strict=False)) for line in lines[1:]]
    videos = folder.build("media", shared_data / "media").manifest.videos
    assert {video.path: video.sha256 for video in videos} == {row["file"]: row["sha256"] for row in rows}
    assert len({video.video_id for video in videos}) == len(videos)
    assert "natural_clear__flower.mp4" in {video.video_id for video in videos}
    assert "natural_clear__friday" in {video.video_id for video in videos}


def test_music_avqas_tokens_keep_their_name_in_existing_stores(recovered):
    vocabulary = recovered.manifest.vocabulary
    assert vocabulary.question_length == QUESTION_LENGTH
    assert tokens_name(vocabulary.tokens, vocabulary.question_length) == "tokens-c0ca97d3"


AVQA_FILES = {
    "train": {"Where": 3620, "Happening": 5093},
    "val": {"Where": 712, "Happening": 902, "Come from": 1800, "Which": 2315},
    "test": {"Where": 757, "Happening": 931, "Come from": 1861, "Which": 2369},
}


def test_avqa_keeps_every_record_unchanged(shared_data, tmp_path):
    files = shared_data / "annotations" / "avqa"
    built = avqa.build("avqa", shared_data / "annotations")
    manifest = built.manifest
    names = {
        "train": ("train_Happening.json", "train_Where.json"),
        "val": ("val_qa_all.json",),
        "test": ("test_qa_all.json",),
    }
    for split, types in AVQA_FILES.items():
        questions = manifest.questions[split]
        assert Counter(question.type for question in questions) == types
        records = [record for name in names[split] for record in json.loads((files / name).read_text())]
        for question, record in zip(questions, records, strict=True):
            assert tokenise(question.text) == record["question_text"].removesuffix("?").split()
            assert f"{question.video_id}.mp4" == record["video_name"]
            assert (question.question_id, question.answer) == (str(record["id"]), record["answer"].strip())
            assert question.choices == (tuple(c.strip() for c in record["multi_choice"]) if split == "train" else None)
    assert Counter(q.modality for q in manifest.questions["train"]) == {"Audio-Visual": 8712, "Visual": 1}
    assert [len(manifest.questions[split]) for split in manifest.splits] == [8713, 5729, 5918]
    assert (len(manifest.videos), len(manifest.vocabulary.tokens), len(manifest.vocabulary.answers)) == (
        19887,
        72,
        1282,
    )
    assert manifest.vocabulary.question_length == QUESTION_LENGTH
    assert {name: number for name, number in built.counts.items() if number} == {
        "trimmed_answers": 170,
        "multiple_choice": 8713,
        "answers_outside_choices": 3,
        "repeated_choices": 80,
        "case_variants": 21,
    }
    assert check_manifest(manifest, None).errors == ()
    save_manifest(manifest, tmp_path)
    assert load_manifest(tmp_path) == manifest


HEADS = {
    "music-avqa": ("json_update", "train_recovered/avqa-train.recovered.json"),
    "music-avqa-v2": ("v2", "train_recovered/avqa-train.extra_from_v2.json"),
}


@pytest.mark.parametrize("name", [*HEADS, "avqa"])
def test_the_committed_dataset_toml_equals_that_of_a_full_build(name, shared_data, tmp_path, pytestconfig):
    committed = pytestconfig.rootpath / "data_manifests" / name / "dataset.toml"
    (tmp_path / "dataset.toml").write_bytes(committed.read_bytes())
    annotations = shared_data / "annotations"
    if name == "avqa":
        files = avqa.find_files(annotations)
        built = avqa.build(name, **{split: files[split] for split in ("train", "val")})
    else:
        release, train = HEADS[name]
        built = music_avqa.build(name, release, annotations, train=annotations / "music-avqa" / train)
    save_manifest(built.manifest, tmp_path)
    assert (tmp_path / "dataset.toml").read_bytes() == committed.read_bytes()
