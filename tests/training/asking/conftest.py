"""A run to ask, trained once; tests copy it before they change it."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import asking_toys
import pytest
from asking_toys import Trained

from train.asking.answerer import Answerer


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return asking_toys.make_trained(tmp_path_factory.mktemp("asked"))


@pytest.fixture
def copied(trained: Trained, tmp_path: Path) -> Trained:
    """The same run in a folder that a test may change."""
    return replace(trained, run=Path(shutil.copytree(trained.run, tmp_path / "runs" / "run")))


@pytest.fixture(scope="session")
def answerer(trained: Trained) -> Iterator[Answerer]:
    """One of the trained run, whose decoder process serves all tests that do not change the run."""
    with asking_toys.registered():
        opened = asking_toys.open_answerer(trained.run)
    with opened:
        yield opened


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    with asking_toys.registered():
        yield
