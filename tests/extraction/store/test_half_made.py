"""Features whose making was killed, seen by runs that make others: no damage, and nothing of them stays."""

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
from pipeline.run.plan import stored_choices
from pipeline.store.reader import open_store


def break_making(manifest: Path, store: Path, step: int, when: str) -> None:
    """Run until the values of the `step`th feature, of questions or videos, are about to be made, or are."""
    calls = 0
    original = writer._create_values

    def break_off(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if when == "after" or calls < step:
            original(*arguments)
        if calls == step:
            raise ZeroDivisionError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "_create_values", break_off)
        with pytest.raises(ZeroDivisionError):
            run_toys(manifest, store)


def gather_metadata(store: Path) -> None:
    """Do what a run of an earlier version did: gather all metadata, those of half a feature too."""
    with warnings.catch_warnings(action="ignore"):
        zarr.consolidate_metadata(store)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_feature_whose_making_was_killed_is_no_damage_to_runs_of_other_features(
    when: str, toy_manifest: Path, tmp_path: Path
) -> None:
    store, whole = tmp_path / "store.zarr", tmp_path / "whole.zarr"
    break_making(toy_manifest, store, 2, when)
    half, other = toy_extractors.TABLE
    assert (store / "features" / half).is_dir()
    gather_metadata(store)
    assert summarise_store(open_store(store))["features"] == {}
    run_toys(toy_manifest, store, features=(other,))
    assert stored_choices(str(store)).decoder == "pyav"
    assert list(summarise_store(open_store(store))["features"]) == [other]
    assert verify_store(open_store(store)) == []
    run_toys(toy_manifest, whole, features=(other,))
    assert contents(store) == contents(whole)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_question_feature_whose_making_was_killed_is_no_damage_to_runs_with_other_questions(
    when: str, toy_manifest: Path, tmp_path: Path
) -> None:
    store, whole = tmp_path / "store.zarr", load_manifest(toy_manifest)
    break_making(toy_manifest, store, 1, when)
    (first, *others) = whole.questions["train"]
    asked = {**whole.questions, "train": (replace(first, text=f"{first.text} {first.text}"), *others)}
    save_manifest(replace(whole, questions=asked), tmp_path / "more")
    (tmp_path / "more" / "videos").symlink_to(toy_manifest / "videos")
    run_toys(tmp_path / "more", store, features=("toy-sound",), question_features=())
    assert open_store(store).question_feature_names == []
    assert run_toys(toy_manifest, store, features=("toy-sound",)).is_complete


def test_what_others_leave_among_features_is_no_feature_and_stays(toy_manifest: Path, tmp_path: Path) -> None:
    store = tmp_path / "store.zarr"
    run_toys(toy_manifest, store, features=("toy-sound",))
    for left in (".DS_Store", "Thumbs.db", "notes/mine.txt"):
        (store / "features" / left).parent.mkdir(exist_ok=True)
        (store / "features" / left).touch()
    before = contents(store)
    run_toys(toy_manifest, store, features=("toy-sound",))
    assert contents(store) == before


def test_what_others_leave_in_half_a_feature_is_not_removed_with_it(toy_manifest: Path, tmp_path: Path) -> None:
    store = tmp_path / "store.zarr"
    break_making(toy_manifest, store, 2, "after")
    half, other = toy_extractors.TABLE
    (store / "features" / half / "mine.txt").touch()
    with pytest.raises(UserError, match=f"features/{half} has values but no spec"):
        run_toys(toy_manifest, store, features=(other,))
    assert (store / "features" / half / "mine.txt").exists()


@pytest.mark.parametrize("lost", ["zarr.json", "attributes"])
@pytest.mark.parametrize("feature", ["features/toy-sound", "questions/tokens"])
def test_a_feature_with_values_whose_description_is_lost_is_damage_and_stays(
    lost: str, feature: str, toy_manifest: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store.zarr"
    run_toys(toy_manifest, store, features=("toy-sound",))
    (folder,) = store.glob(f"{feature}*")
    if lost == "zarr.json":
        (folder / "zarr.json").unlink()
    else:
        (folder / "zarr.json").write_text('{"attributes": {}, "zarr_format": 3, "node_type": "group"}')
    before = contents(store)
    with pytest.raises(UserError, match=rf"{feature}.* has values but no spec: the store is corrupt"):
        run_toys(toy_manifest, store, features=("toy-sound",))
    assert contents(store) == before


def test_an_array_whose_metadata_are_cut_short_is_named_as_damage(toy_manifest: Path, tmp_path: Path) -> None:
    store = tmp_path / "store.zarr"
    run_toys(toy_manifest, store, features=("toy-sound",))
    (store / "videos" / "steps_audio" / "zarr.json").write_bytes(b"{")
    with pytest.raises(UserError, match=r"the metadata of an array cannot be read .* the store is corrupt"):
        run_toys(toy_manifest, store, features=("toy-sound",))


def test_a_feature_whose_metadata_are_cut_short_is_named_as_damage(toy_manifest: Path, tmp_path: Path) -> None:
    store = tmp_path / "store.zarr"
    run_toys(toy_manifest, store, features=("toy-sound",))
    (store / "features" / "toy-sound" / "zarr.json").write_bytes(b"")
    with pytest.raises(UserError, match=r"features/toy-sound cannot be read .* the store is corrupt"):
        run_toys(toy_manifest, store, features=("toy-sound",))
