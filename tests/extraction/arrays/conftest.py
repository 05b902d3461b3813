"""Fixtures of published arrays: a manifest of their videos and questions, and where their store is."""

from pathlib import Path

import pytest
from array_folders import make_manifest


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    return make_manifest(tmp_path / "manifest")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store.zarr"
