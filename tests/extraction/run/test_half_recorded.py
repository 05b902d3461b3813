"""Runs that end between any two writes of what they found out, on files that fail: the next one ends in the same bytes.

Files that fail are the hard case: a video that is known to have failed is not decoded again.
"""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from run_toys import contents, run_toys

import pipeline.store.writer as writer
from pipeline.manifests.manifest import load_manifest, save_manifest
from pipeline.store.reader import open_store
from pipeline.store.schema import State


class _Stopped(Exception):
    """Stands for the end of a killed run."""


def is_stopped_at(count: int, run: Callable[[], object]) -> bool:
    """Run until the `count`th write of index rows; return whether it came to that."""
    calls = 0
    original = writer._scatter

    def stop(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == count:
            raise _Stopped
        original(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "_scatter", stop)
        try:
            run()
        except _Stopped:
            return True
    return False


@pytest.fixture
def dataset(toy_manifest: Path, tmp_path: Path) -> Path:
    """Two clips, the second cut short so that it is no film, without checksums."""
    whole, folder = load_manifest(toy_manifest), tmp_path / "dataset"
    videos = tuple(replace(video, sha256="") for video in whole.videos[:2])
    save_manifest(replace(whole, videos=videos, questions={}), folder)
    (folder / "videos").mkdir()
    for video in videos:
        shutil.copy(toy_manifest / "videos" / video.path, folder / "videos")
    (folder / "videos" / videos[1].path).write_bytes(b"no film")
    return folder


@pytest.mark.parametrize("feature", ["toy-picture", "toy-sound"])
def test_a_run_stopped_between_any_two_records_ends_in_the_same_bytes(
    feature: str, dataset: Path, tmp_path: Path
) -> None:
    store, whole = tmp_path / "store.zarr", tmp_path / "whole.zarr"
    run_toys(dataset, whole, features=(feature,))
    assert open_store(whole).presence("audio").tolist() == [State.COMPLETE, State.FAILED]
    count = 1
    while is_stopped_at(count, lambda: run_toys(dataset, store, features=(feature,))):
        run_toys(dataset, store, features=(feature,))
        assert contents(store) == contents(whole), count
        shutil.rmtree(store)
        count += 1
    assert count > 8


def test_a_retry_of_another_file_stopped_between_any_two_records_ends_in_the_same_bytes(
    dataset: Path, tmp_path: Path
) -> None:
    before, store, whole = (tmp_path / f"{name}.zarr" for name in ("before", "store", "whole"))
    run_toys(dataset, before, features=("toy-sound",))
    (broken,) = (path for path in (dataset / "videos").iterdir() if path.stat().st_size < 10)
    broken.write_bytes(b"another")
    shutil.copytree(before, whole)
    run_toys(dataset, whole, features=("toy-sound",), retry_failed=True)
    count = 1
    while True:
        shutil.copytree(before, store)
        if not is_stopped_at(count, lambda: run_toys(dataset, store, features=("toy-sound",), retry_failed=True)):
            break
        run_toys(dataset, store, features=("toy-sound",), retry_failed=True)
        assert contents(store) == contents(whole), count
        shutil.rmtree(store)
        count += 1
    assert count > 8
