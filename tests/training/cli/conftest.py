"""A folder to run the commands of stage two in."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_store import make_manifest, make_store, write_store
from workplace import GRID

from pipeline.manifests.manifest import save_manifest
from train.runs.config import PRESETS


@pytest.fixture(scope="session")
def written_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    write_store(make_store(), folder / "store.zarr")
    return folder / "store.zarr"


@pytest.fixture
def workplace(tmp_path: Path, written_store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The present folder, with the manifest `data`, the store `store.zarr` and the grid `tiny.toml`."""
    save_manifest(make_manifest(make_store()), tmp_path / "data")
    shutil.copytree(written_store, tmp_path / "store.zarr")
    (tmp_path / "tiny.toml").write_text(GRID)
    small = replace(PRESETS["demo"], settings={"channels": 16, "heads": 2, "time_steps": 4})
    monkeypatch.setitem(PRESETS, "demo", small)
    monkeypatch.chdir(tmp_path)
    return tmp_path
