"""Corrupt rows are made pending, and extraction computes them again to the same digests."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr
from click.testing import CliRunner
from run_toys import run_toys

from pipeline.cli.inspect import inspect
from pipeline.inspection.verify import verify_store
from pipeline.manifests.manifest import load_manifest, save_manifest
from pipeline.store.reader import open_store
from pipeline.store.schema import State
from pipeline.store.writer import FeatureRecord, StoreWriter


@pytest.fixture
def store(extracted_store: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(extracted_store, tmp_path / "store.zarr"))


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def run_inspect(store: Path, *options: str) -> tuple[int, str]:
    shown = CliRunner().invoke(inspect, [str(store), *options])
    return shown.exit_code, shown.stderr


def test_corrupt_rows_and_questions_are_extracted_again(store: Path, toy_manifest: Path) -> None:
    digest = open_store(store).digest
    (questions,) = (store / "questions").glob("tokens*/values/c*")
    damage(questions)
    damage(min((store / "features/toy-audio/values").glob("c*")))
    assert run_inspect(store, "--verify")[0] == 2
    code, shown = run_inspect(store, "--verify", "--repair")
    assert (code, shown.splitlines()[-1]) == (
        0,
        "16 rows and 1 question features are pending: run mavqa-extract again",
    )
    assert (open_store(store).state("toy-audio")[:16] == State.PENDING).all()
    assert run_toys(toy_manifest, store).extracted == 15  # the audio of one is absent
    repaired = open_store(store)
    assert verify_store(repaired) == []
    assert repaired.digest == digest


def test_a_resumed_run_extracts_the_other_rows_of_a_corrupt_chunk_again(store: Path, toy_manifest: Path) -> None:
    digest = open_store(store).digest
    damage(min((store / "features/toy-audio/values").glob("c*")))
    with StoreWriter(store, "test") as writer:
        writer.record_features([FeatureRecord(0, "toy-audio", State.PENDING)])
        writer.seal()
    run_toys(toy_manifest, store)
    repaired = open_store(store)
    assert verify_store(repaired) == []
    assert repaired.digest == digest


def test_lost_rows_of_videos_of_other_manifests_are_reported(store: Path, toy_manifest: Path, tmp_path: Path) -> None:
    manifest = load_manifest(toy_manifest)
    save_manifest(replace(manifest, videos=manifest.videos[:1], questions={}), tmp_path / "one")
    shutil.copytree(toy_manifest / "videos", tmp_path / "one" / "videos")
    damage(min((store / "features/toy-audio/values").glob("c*")))
    with StoreWriter(store, "test") as writer:
        writer.record_features([FeatureRecord(0, "toy-audio", State.PENDING)])
        writer.seal()
    notes: list[str] = []
    run_toys(tmp_path / "one", store, on_progress=lambda progress: notes.append(progress.note))
    states = open_store(store).state("toy-audio")
    lost = int((states == State.PENDING).sum())
    assert lost > 0
    assert f"a corrupt chunk also had rows of {lost} videos of other manifests: extract these again" in notes


def test_a_store_whose_index_is_corrupt_is_not_repaired(store: Path) -> None:
    (store / "videos/steps_audio/c/0").unlink()
    before = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    code, shown = run_inspect(store, "--verify", "--repair")
    assert code == 2
    assert "cannot be repaired (its metadata or index arrays" in shown
    assert before == {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    assert run_inspect(store, "--repair")[0] == 2


def test_values_of_a_row_that_must_have_none_are_removed(store: Path, toy_manifest: Path) -> None:
    digest = open_store(store).digest
    absent = int(np.flatnonzero(open_store(store).state("toy-image") == State.ABSENT)[0])
    values = store / "features/toy-image/values"
    shutil.copy(values / "c.0.0.0.0.0", values / f"c.{absent}.0.0.0.0")
    assert run_inspect(store, "--verify", "--repair")[0] == 0
    run_toys(toy_manifest, store)
    assert verify_store(open_store(store)) == []
    assert open_store(store).digest == digest


@pytest.mark.parametrize("path", ["features/toy-audio/video", "features/toy-audio/time"])
def test_a_coordinate_of_other_rows_is_found_without_a_seal(store: Path, path: str) -> None:
    root = zarr.open_group(store, mode="r+", use_consolidated=False)
    del root.attrs["seal"]
    root[path][:] = root[path][:][::-1].copy()
    (problem,) = verify_store(open_store(store))
    assert problem.message == f"{path}: the coordinate is not that of the store's rows"
