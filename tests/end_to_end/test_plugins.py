"""Plug-ins of an installed package do the main job: a dataset, two features, a backbone and a method of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import paths
import pytest

PACKAGE = paths.ROOT / "tests" / "end_to_end" / "plugin_package"
pytestmark = pytest.mark.slow


def run(folder: Path, command: str, *words: object) -> subprocess.CompletedProcess[str]:
    """Run a command of mavqa in `folder`, with the package on the path as if it were installed."""
    program = [Path(sys.executable).parent / command, *words]
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE)}
    return subprocess.run(list(map(str, program)), cwd=folder, env=environment, capture_output=True, text=True)


def test_plugins_of_another_package_need_no_edit_of_mavqa(tmp_path: Path) -> None:
    def done(command: str, *words: object) -> str:
        ended = run(tmp_path, command, *words)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    done("mavqa-manifest", "synthesize", "--out", "clips", "--videos", 8, "--seconds", 2)
    ids = [line.split(",")[0] for line in (tmp_path / "clips" / "videos.csv").read_text().splitlines()[1:]]
    splits = ["train"] * 5 + ["val"] + ["test"] * 2
    lines = (
        f"{split}|{name}|Is it loud ?|{'no' if number % 2 else 'yes'}"
        for number, (split, name) in enumerate(zip(splits, ids, strict=True))
    )
    (tmp_path / "lines.txt").write_text("\n".join(lines))
    assert "toy-lines" in done("mavqa-manifest", "build", "--help")
    done("mavqa-manifest", "build", "toy-lines", "--lines", "lines.txt", "--out", "data")
    assert "toy-colour" in done("mavqa-extract", "--help")
    features = ("--features", "toy-loudness,toy-colour,tokens", "--weights", "seeded")
    shown = done(
        "mavqa-extract", "--manifest", "data", "--videos", "clips/videos", "--store", "s.zarr", *features, "--json"
    )
    document = json.loads(shown)
    assert document["features"]["toy-loudness"]["complete"] + document["features"]["toy-loudness"]["absent"] == 8
    shown = "".join(done("mavqa-train", "--help").split())
    assert "toy-mean" in shown
    assert "toy-neutral" in shown
    chosen = ("--backbone", "toy-mean", "--method", "toy-neutral", "--epochs", 1, "--device", "cpu")
    shown = done("mavqa-train", "--manifest", "data", "--store", "s.zarr", "--out", "runs/toy", *chosen, "--json")
    assert json.loads(shown)["scenarios"]["complete"]["questions"] > 0


def test_a_plugin_with_the_name_of_ours_is_ignored_with_a_warning(tmp_path: Path) -> None:
    shown = run(tmp_path, "mavqa-extract", "--help")
    assert "mavqa.extractors 'vggish' of mavqa-toys is ignored" in shown.stderr
