"""The committed datasets: what their heads say, and what extraction says where questions or videos are not there."""

import re
import shutil
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pipeline.cli.extract import extract
from pipeline.cli.manifest import manifest

MANIFESTS = Path(__file__).resolve().parent.parent.parent / "data_manifests"
DATASETS = ("music-avqa", "music-avqa-v2")


@pytest.fixture(params=DATASETS)
def dataset(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """One dataset as it is committed, in an empty folder."""
    shutil.copytree(MANIFESTS / request.param, tmp_path / "data_manifests" / request.param)
    for path in (tmp_path / "data_manifests" / request.param).iterdir():
        if path.name != "dataset.toml":
            path.unlink()
    monkeypatch.chdir(tmp_path)
    return str(request.param)


def say(result: Result) -> str:
    assert result.exit_code == 2, result.output
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith("Error: ")
    return line


def test_a_head_names_its_licence_its_source_and_the_line_that_builds_the_rest(dataset: str) -> None:
    text = (MANIFESTS / dataset / "dataset.toml").read_text(encoding="utf-8")
    head = tomllib.loads(text)
    assert head["name"] == dataset
    assert head["source"].startswith("https://")
    assert head["licence"]
    (line,) = re.findall(r"^#   mavqa-manifest (build .*)$", text, re.MULTILINE)
    words = line.split()
    assert words[-2:] == ["--out", f"data_manifests/{dataset}"]
    command = manifest.commands["build"].commands[words[1]]  # type: ignore[attr-defined]
    with command.make_context("build", words[2:]) as context:
        assert str(context.params["videos"]) == f"data/videos/{dataset}"
        assert context.params.get("release", head["release"]) == head["release"]


def test_without_questions_extraction_says_where_to_get_them_and_what_builds_them(dataset: str) -> None:
    said = say(CliRunner().invoke(extract, ["--dataset", dataset]))
    head = Path("data_manifests") / dataset / "dataset.toml"
    for part in ("videos.csv is missing", tomllib.loads(head.read_text())["source"], "mavqa-manifest build", str(head)):
        assert part in said
    assert not Path("stores").exists()
