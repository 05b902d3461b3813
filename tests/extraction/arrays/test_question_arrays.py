"""`mavqa-import-features` of question features: published per question, stored per text."""

import json
import shutil

import numpy as np
from array_folders import run_import, write_arrays
from click.testing import CliRunner

from pipeline.cli.extract import extract
from pipeline.inspection.verify import verify_store
from pipeline.store.reader import open_store


def test_arrays_of_questions_become_rows_of_their_texts(manifest, store, tmp_path):
    folder = write_arrays(tmp_path / "clip_qst", "clip-vit-b32-sentence", ("0", "1"), steps=1)
    # The third question has the text of the first; the fourth, too, with other values.
    shutil.copy(folder / "0.npy", folder / "2.npy")
    np.save(folder / "3.npy", np.load(folder / "0.npy") + 0.5)
    shown = run_import(manifest, store, "--from", folder, "--json")
    assert shown.exit_code == 0, shown.stderr
    document = json.loads(shown.stdout)
    assert document["states"] == {"clip-vit-b32-sentence": {"pending": 0, "complete": 2, "absent": 0, "failed": 0}}
    assert document["differing"] == [
        {"question_id": "3", "feature": "clip-vit-b32-sentence", "largest_difference": 0.5}
    ]
    opened = open_store(store)
    rows = opened.question_rows
    for number, text in ((0, "What plays ?"), (1, "Is it loud ?")):
        expected = np.load(folder / f"{number}.npy")[0]
        np.testing.assert_array_equal(opened.question_values("clip-vit-b32-sentence")[rows[text]], expected)
    assert verify_store(opened) == []
    assert "nothing to import" in run_import(manifest, store, "--from", folder).stderr
    refused = CliRunner().invoke(
        extract,
        [*map(str, ["--manifest", manifest, "--store", store]), *("--features", "clip-vit-b32-sentence")],
    )
    assert refused.exit_code == 2
    assert "clip-vit-b32-sentence in" in refused.stderr
    assert "was imported from arrays, which extracted rows are never mixed with" in refused.stderr


def test_a_text_without_an_array_is_a_failure_of_its_first_question(manifest, store, tmp_path):
    folder = write_arrays(tmp_path / "clip_word", "clip-vit-b32-words", ("2",), steps=1)
    shown = run_import(manifest, store, "--from", folder, "--json")
    assert shown.exit_code == 3
    document = json.loads(shown.stdout)
    expected = {"question_id": "1", "feature": "clip-vit-b32-words", "reason": "no array 1.npy"}
    assert document["failures"] == [expected]
    assert document["states"]["clip-vit-b32-words"]["complete"] == 1
