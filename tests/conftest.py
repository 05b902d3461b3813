"""What all tests share: fixtures of the real clips and annotations, if they are there; settings of hypothesis."""

from pathlib import Path

import paths
import pytest
from hypothesis import settings

# No test is about time: a busy machine is no failure.
settings.register_profile("mavqa", deadline=None)
settings.load_profile("mavqa")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real media and annotations beside the checkout; tests that need it are marked `real`."""
    folder = paths.ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"real data not found at {folder}")
    return folder
