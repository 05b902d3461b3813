"""A store that was exported as arrays and imported again trains to the same metrics and the same weights."""

from pathlib import Path

import numpy as np
import pytest
import tiny_store
from tiny_run import tiny_config
from tiny_store import TEXTS, WORDS, make_manifest, make_store, write_store

import mavqa
from pipeline.errors import UserError
from pipeline.store.reader import open_store
from pipeline.store.schema import FeatureSpec, State, tokens_name
from pipeline.store.writer import FeatureRecord, StoreWriter
from train.data.feature_bank import FeatureBank
from train.runs.log import read_metrics
from train.training.fit import fit


def train(store: Path, manifest, run: Path) -> list[dict]:
    config = tiny_config(epochs=2, store=str(store), method="modality-dropout", channels=512, heads=4)
    fit(config, manifest, FeatureBank(open_store(store)), run)
    return read_metrics(run)


def test_training_is_the_same_from_an_exported_and_imported_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The shapes of the releases: one video without audio, one without frames, one that ends early.
    monkeypatch.setitem(tiny_store.SHAPES, "vggish", (128,))
    monkeypatch.setitem(tiny_store.SHAPES, "resnet18-map", (512, 14, 14))
    tiny = make_store(videos=12, seconds=4)
    manifest = make_manifest(tiny)
    write_store(tiny, tmp_path / "store.zarr")
    exported = mavqa.export(tmp_path / "store.zarr", tmp_path / "feats", padding="none")
    assert [entry["state"] for entry in exported.missing] == ["absent", "absent"]
    sources = {"vggish": tmp_path / "feats" / "vggish", "resnet18-map": tmp_path / "feats" / "res18_14x14"}
    absent = ("audio", "visual")
    imported = mavqa.import_features(manifest, tmp_path / "again.zarr", sources, seconds=4, absent=absent)
    assert imported.is_complete
    add_tokens(tmp_path / "again.zarr", tiny)
    before, after = open_store(tmp_path / "store.zarr"), open_store(tmp_path / "again.zarr")
    assert before.digest == after.digest
    runs = {name: train(tmp_path / f"{name}.zarr", manifest, tmp_path / name) for name in ("store", "again")}
    assert len(runs["store"]) == 2
    assert runs["store"] == runs["again"]
    mine, theirs = (mavqa.load_run(tmp_path / name)[0].state_dict() for name in runs)
    assert mine.keys() == theirs.keys()
    assert all((mine[name] == theirs[name]).all() for name in mine)
    # The weights of imported features are not known: a run does not take those of an extracted store for the same.
    with pytest.raises(UserError, match=r"trained on vggish with weights imported, store .*store.zarr has weights "):
        mavqa.evaluate(tmp_path / "again", manifest, tmp_path / "store.zarr", device="cpu")
    with StoreWriter(tmp_path / "again.zarr", "test") as writer:
        writer.record_features([FeatureRecord(5, "vggish", State.PENDING)])
    with pytest.raises(
        UserError, match=r"audio features of 1 videos are not imported yet, .*: run mavqa-import-features"
    ):
        mavqa.dataset(tmp_path / "again.zarr", manifest, "train", ["vggish"])


def add_tokens(store: Path, tiny) -> None:
    """Add the features of questions, as mavqa-extract does to an imported store."""
    name = tokens_name(WORDS)
    with StoreWriter(store, "test") as writer:
        rows = writer.append_questions(list(TEXTS.values()))
        writer.add_spec(FeatureSpec(name, "question", ("token",), (3,), "int32", {}))
        writer.write_questions(name, np.array(list(rows.values())), tiny.questions[name])
        writer.seal()
