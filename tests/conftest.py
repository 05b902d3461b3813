"""Fixtures that several rooms share: where the real clips and annotations are, if they are there."""

from pathlib import Path

import paths
import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real media and annotations beside the checkout; tests that need it are marked `real`."""
    folder = paths.ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"real data not found at {folder}")
    return folder
