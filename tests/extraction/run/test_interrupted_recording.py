"""Runs over failing files that are stopped at any write of index rows: the next run ends in the same bytes.

Failing files are the hard case: a video that is known to have failed is not decoded again.
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
    """Raised instead of killing the run."""


def is_stopped_at(count: int, run: Callable[[], object]) -> bool:
    """Stop `run` at its `count`th write of index rows; return whether there was one."""
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
    """Two files without checksums: a clip, and one that is not a video."""
    toys, folder = load_manifest(toy_manifest), tmp_path / "dataset"
    videos = tuple(replace(video, sha256="") for video in toys.videos[:2])
    save_manifest(replace(toys, videos=videos, questions={}), folder)
    (folder / "videos").mkdir()
    for video in videos:
        shutil.copy(toy_manifest / "videos" / video.path, folder / "videos")
    (folder / "videos" / videos[1].path).write_bytes(b"no video")
    return folder


@pytest.mark.parametrize("feature", ["toy-image", pytest.param("toy-audio", marks=pytest.mark.nightly)])
def test_a_run_stopped_at_any_index_write_resumes_to_the_same_bytes(
    feature: str, dataset: Path, tmp_path: Path
) -> None:
    store, expected = tmp_path / "store.zarr", tmp_path / "expected.zarr"
    run_toys(dataset, expected, features=(feature,))
    assert open_store(expected).presence("audio").tolist() == [State.COMPLETE, State.FAILED]
    count = 1
    while is_stopped_at(count, lambda: run_toys(dataset, store, features=(feature,))):
        run_toys(dataset, store, features=(feature,))
        assert contents(store) == contents(expected), count
        shutil.rmtree(store)
        count += 1
    assert count > 8


@pytest.mark.nightly
def test_a_retry_of_a_replaced_file_stopped_at_any_index_write_resumes_to_the_same_bytes(
    dataset: Path, tmp_path: Path
) -> None:
    before, store, expected = (tmp_path / f"{name}.zarr" for name in ("before", "store", "expected"))
    run_toys(dataset, before, features=("toy-audio",))
    (broken,) = (path for path in (dataset / "videos").iterdir() if path.stat().st_size < 10)
    broken.write_bytes(b"another")
    shutil.copytree(before, expected)
    run_toys(dataset, expected, features=("toy-audio",), retry_failed=True)
    count = 1
    while True:
        shutil.copytree(before, store)
        if not is_stopped_at(count, lambda: run_toys(dataset, store, features=("toy-audio",), retry_failed=True)):
            break
        run_toys(dataset, store, features=("toy-audio",), retry_failed=True)
        assert contents(store) == contents(expected), count
        shutil.rmtree(store)
        count += 1
    assert count > 8
