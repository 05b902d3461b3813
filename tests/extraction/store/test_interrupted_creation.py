"""Features whose creation was interrupted are removed by the next run; corrupt ones are reported and kept."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import toy_extractors
import zarr
from run_toys import contents, run_toys

import pipeline.store.writer as writer
from pipeline.errors import UserError
from pipeline.inspection.verify import summarise_store, verify_store
from pipeline.manifests.manifest import load_manifest, save_manifest
from pipeline.store.reader import open_store


def interrupt_creation(manifest: Path, store: Path, step: int, when: str) -> None:
    """Stop a run before or after it creates the values of the `step`th feature, questions first."""
    calls = 0
    original = writer._create_values

    def interrupt(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if when == "after" or calls < step:
            original(*arguments)
        if calls == step:
            raise ZeroDivisionError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "_create_values", interrupt)
        with pytest.raises(ZeroDivisionError):
            run_toys(manifest, store)


def consolidate_all(store: Path) -> None:
    """Consolidate all metadata, including those of an incomplete feature, as earlier versions did."""
    with warnings.catch_warnings(action="ignore"):
        zarr.consolidate_metadata(store)


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_interrupted_feature_does_not_affect_runs_of_other_features(
    when: str, toy_manifest: Path, tmp_path: Path
) -> None:
    store, expected = tmp_path / "store.zarr", tmp_path / "expected.zarr"
    interrupt_creation(toy_manifest, store, 2, when)
    incomplete, other = toy_extractors.TABLE
    assert (store / "features" / incomplete).is_dir()
    consolidate_all(store)
    assert summarise_store(open_store(store))["features"] == {}
    run_toys(toy_manifest, store, features=(other,))
    assert list(summarise_store(open_store(store))["features"]) == [other]
    assert verify_store(open_store(store)) == []
    run_toys(toy_manifest, expected, features=(other,))
    assert contents(store) == contents(expected)


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_interrupted_question_feature_does_not_affect_runs_with_other_questions(
    when: str, toy_manifest: Path, tmp_path: Path
) -> None:
    store, toys = tmp_path / "store.zarr", load_manifest(toy_manifest)
    interrupt_creation(toy_manifest, store, 1, when)
    first, *others = toys.questions["train"]
    questions = {**toys.questions, "train": (replace(first, text=f"{first.text} {first.text}"), *others)}
    save_manifest(replace(toys, questions=questions), tmp_path / "more")
    (tmp_path / "more" / "videos").symlink_to(toy_manifest / "videos")
    run_toys(tmp_path / "more", store, features=("toy-audio",), question_features=())
    assert open_store(store).question_feature_names == []
    assert run_toys(toy_manifest, store, features=("toy-audio",)).is_complete


def test_foreign_files_among_features_are_kept(toy_manifest: Path, tmp_path: Path) -> None:
    store = tmp_path / "store.zarr"
    run_toys(toy_manifest, store, features=("toy-audio",))
    for foreign in (".DS_Store", "Thumbs.db", "notes/mine.txt"):
        (store / "features" / foreign).parent.mkdir(exist_ok=True)
        (store / "features" / foreign).touch()
    before = contents(store)
    run_toys(toy_manifest, store, features=("toy-audio",))
    assert contents(store) == before


def test_an_incomplete_feature_with_foreign_files_is_not_removed(toy_manifest: Path, tmp_path: Path) -> None:
    store = tmp_path / "store.zarr"
    interrupt_creation(toy_manifest, store, 2, "after")
    incomplete, other = toy_extractors.TABLE
    (store / "features" / incomplete / "mine.txt").touch()
    with pytest.raises(UserError, match=f"features/{incomplete} has values but no spec"):
        run_toys(toy_manifest, store, features=(other,))
    assert (store / "features" / incomplete / "mine.txt").exists()


@pytest.mark.parametrize("lost", ["zarr.json", "attributes"])
@pytest.mark.parametrize("feature", ["features/toy-audio", "questions/tokens"])
def test_a_feature_with_values_but_no_spec_is_reported_as_corrupt_and_kept(
    lost: str, feature: str, toy_manifest: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store.zarr"
    run_toys(toy_manifest, store, features=("toy-audio",))
    (folder,) = store.glob(f"{feature}*")
    if lost == "zarr.json":
        (folder / "zarr.json").unlink()
    else:
        (folder / "zarr.json").write_text('{"attributes": {}, "zarr_format": 3, "node_type": "group"}')
    before = contents(store)
    with pytest.raises(UserError, match=rf"{feature}.* has values but no spec: the store is corrupt"):
        run_toys(toy_manifest, store, features=("toy-audio",))
    assert contents(store) == before


def test_truncated_metadata_of_an_array_are_reported_as_corruption(toy_manifest: Path, tmp_path: Path) -> None:
    store = tmp_path / "store.zarr"
    run_toys(toy_manifest, store, features=("toy-audio",))
    (store / "videos" / "steps_audio" / "zarr.json").write_bytes(b"{")
    with pytest.raises(UserError, match=r"cannot be read .* the store is corrupt"):
        run_toys(toy_manifest, store, features=("toy-audio", "toy-image"))


def test_truncated_metadata_of_a_feature_are_reported_as_corruption(toy_manifest: Path, tmp_path: Path) -> None:
    store = tmp_path / "store.zarr"
    run_toys(toy_manifest, store, features=("toy-audio",))
    (store / "features" / "toy-audio" / "zarr.json").write_bytes(b"")
    with pytest.raises(UserError, match=r"features/toy-audio cannot be read .* the store is corrupt"):
        run_toys(toy_manifest, store, features=("toy-audio",))
