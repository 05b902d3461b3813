"""Fixtures of stage one: a small synthetic dataset, made once."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def toy_manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty clips of four seconds, some without sound or picture, with their questions."""
    from pipeline.synthetic import synthesize

    folder = tmp_path_factory.mktemp("toys") / "toys"
    synthesize(folder, videos=20, seconds=4, seed=3)
    return folder
