"""The import contracts of pyproject.toml break on an import that each of them forbids."""

import shutil
import subprocess
import sys
from pathlib import Path

import paths
import pytest

# {contract: (a file, an import that the contract forbids it)}
VIOLATIONS = {
    "floors of pipeline": ("pipeline/store/reader.py", "import pipeline.media.timeline"),
    "floors of train": ("train/data/batch.py", "import train.methods.rmm"),
    "pipeline never imports train": ("pipeline/run/coordinator.py", "import train.data.scenarios"),
    "train never imports the public names": ("train/cli/train.py", "import mavqa"),
    "train sees only manifests and the reading side of the store": (
        "train/data/feature_bank.py",
        "import pipeline.store.writer",
    ),
    "the contract stays light": ("pipeline/manifests/templates.py", "import torch"),
    "plug-ins do not know each other": ("train/backbones/avst.py", "import train.backbones.pano"),
}


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("copied")
    for package in ("mavqa", "pipeline", "train"):
        shutil.copytree(paths.ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(paths.ROOT / "pyproject.toml", folder)
    return folder


def check(folder: Path) -> dict[str, str]:
    """Return {contract: KEPT or BROKEN} of the code in `folder`."""
    program = [Path(sys.executable).parent / "lint-imports", "--no-cache"]
    shown = subprocess.run(program, cwd=folder, capture_output=True, text=True).stdout
    lines = [line.split(" (")[0].rpartition(" ") for line in shown.splitlines() if " KEPT" in line or " BROKEN" in line]
    return {name: verdict for name, _, verdict in lines}


def test_the_code_keeps_every_contract(copied: Path) -> None:
    assert check(copied) == dict.fromkeys(VIOLATIONS, "KEPT")


@pytest.mark.parametrize("contract", VIOLATIONS)
def test_a_forbidden_import_breaks_its_contract(contract: str, copied: Path) -> None:
    file, line = VIOLATIONS[contract]
    path = copied / file
    before = path.read_text()
    path.write_text(f"{before}\n{line}\n")
    verdicts = check(copied)
    path.write_text(before)
    assert verdicts[contract] == "BROKEN"


@pytest.mark.parametrize("file", ["train/asking/predictions.py", "train/evaluation/predict.py", "train/cli/ask.py"])
def test_only_the_answerer_may_call_stage_one(file: str, copied: Path) -> None:
    path = copied / file
    before = path.read_text()
    path.write_text(f"{before}\nimport pipeline.run.in_memory\n")
    verdicts = check(copied)
    path.write_text(before)
    assert verdicts["train sees only manifests and the reading side of the store"] == "BROKEN"


def test_a_new_room_must_be_given_a_floor(copied: Path) -> None:
    room = copied / "train" / "attic.py"
    room.write_text('"""A room without a floor."""\n')
    verdicts = check(copied)
    room.unlink()
    assert verdicts["floors of train"] == "BROKEN"
