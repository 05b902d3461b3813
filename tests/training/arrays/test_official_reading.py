"""The official loader's rules, written again, read the same from exported arrays as the dataset does from the store.

Source: `AVQA_dataset` of GeWu-Lab/MUSIC-AVQA: every sixth of sixty steps; words and answers numbered by their first
appearance in the training file; questions padded to fourteen words.
"""

import ast
import json
from pathlib import Path

import numpy as np
from click.testing import CliRunner

import mavqa
from pipeline.cli.extract import extract
from pipeline.cli.manifest import manifest as manifest_command

VIDEOS = ("00000093", "sa00001234", "va00005678")
FEATURES = {"vggish": (60, 128), "r2plus1d": (60, 512)}
# Answers that are not MUSIC-AVQA's, whose 42 have the published order whichever of them occur.
QUESTIONS = (
    ("Is the <Object> in the video always playing?", '["flute"]', "always"),
    ("How many types of musical instruments sound in the video?", "[]", "a pair"),
    ("Is the <Object1> louder than the <Object2>?", '["violin", "cello"]', "never"),
)


def official_reading(records: list[dict], feats: Path, folders: dict[str, str]) -> list[dict]:
    words, answers = ["<pad>"], []
    for record in records:
        for word in official_words(record):
            words += [word] * (word not in words)
        answers += [record["anser"]] * (record["anser"] not in answers)
    samples = []
    for record in records:
        padded = [*official_words(record), *["<pad>"] * 14][:14]
        arrays = {name: np.load(feats / folder / f"{record['video_id']}.npy")[::6] for name, folder in folders.items()}
        samples.append({**arrays, "tokens": [words.index(w) for w in padded], "answer": answers.index(record["anser"])})
    return samples


def official_words(record: dict) -> list[str]:
    question = record["question_content"].rstrip().split(" ")
    question[-1] = question[-1][:-1]
    values = iter(ast.literal_eval(record["templ_values"]))
    return [next(values) if "<" in word else word for word in question]


def test_exported_arrays_read_by_the_official_rules_are_the_batches_of_the_store(tmp_path: Path) -> None:
    records = [
        {
            "video_id": VIDEOS[n % 3],
            "question_id": n,
            "type": '["Audio", "Counting"]',
            "question_content": content,
            "templ_values": values,
            "question_deleted": 0,
            "anser": answer,
        }
        for n, (content, values, answer) in enumerate(QUESTIONS)
    ]
    (tmp_path / "json").mkdir()
    (tmp_path / "json" / "avqa-train.json").write_text(json.dumps(records))
    words = ["build", "music-avqa", "--release", "json", "--annotations", tmp_path, "--out", tmp_path / "manifest"]
    assert CliRunner().invoke(manifest_command, list(map(str, words))).exit_code == 0
    generator = np.random.default_rng(0)
    for name, shape in FEATURES.items():
        (tmp_path / "made" / name).mkdir(parents=True)
        for video in VIDEOS:
            np.save(tmp_path / "made" / name / f"{video}.npy", generator.normal(0, 1, shape).astype(np.float32))
    store = tmp_path / "store.zarr"
    mavqa.import_features(tmp_path / "manifest", store, {name: tmp_path / "made" / name for name in FEATURES})
    words = ["--manifest", tmp_path / "manifest", "--store", store, "--features", "tokens"]
    assert CliRunner().invoke(extract, list(map(str, words))).exit_code == 0
    folders = mavqa.export(store, tmp_path / "feats").folders
    questions = mavqa.dataset(store, tmp_path / "manifest", "train", ["tokens", *FEATURES], time_steps=10)
    batch = questions.batch(range(len(records)))
    for row, sample in enumerate(official_reading(records, tmp_path / "feats", folders)):
        np.testing.assert_array_equal(batch.audio["vggish"][row], sample["vggish"])
        np.testing.assert_array_equal(batch.visual["r2plus1d"][row], sample["r2plus1d"])
        (tokens,) = batch.question.values()
        assert tokens[row].tolist() == sample["tokens"]
        assert int(batch.answer[row]) == sample["answer"]
