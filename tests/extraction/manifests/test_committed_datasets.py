"""The committed datasets: their `dataset.toml`, and the errors of extraction if questions or videos are missing."""

import json
import re
import shutil
import tomllib
from pathlib import Path

import click
import paths
import pytest
from click.testing import CliRunner, Result

from pipeline.cli.extract import extract
from pipeline.cli.manifest import manifest

MANIFESTS = paths.ROOT / "data_manifests"
DATASETS = ("music-avqa", "music-avqa-v2", "avqa")
AVQA = {
    "id": 1,
    "video_name": "-HG3Omg_89c_000030",
    "question_text": "What happened in the video?",
    "multi_choice": ["motorboat", "Sailboat set sail"],
    "answer": 1,
    "question_relation": "View",
    "question_type": "Happening",
}


@pytest.fixture(params=DATASETS)
def dataset(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """One dataset as committed, in an otherwise empty folder."""
    shutil.copytree(MANIFESTS / request.param, tmp_path / "data_manifests" / request.param)
    for path in (tmp_path / "data_manifests" / request.param).iterdir():
        if path.name != "dataset.toml":
            path.unlink()
    monkeypatch.chdir(tmp_path)
    return str(request.param)


def error_line(result: Result) -> str:
    assert result.exit_code == 2, result.output
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith("Error: ")
    return line


def test_dataset_toml_has_licence_and_source_and_the_command_that_builds_the_rest(dataset: str) -> None:
    text = (MANIFESTS / dataset / "dataset.toml").read_text(encoding="utf-8")
    head = tomllib.loads(text)
    assert head["name"] == dataset
    assert head["source"].startswith("https://")
    assert head["licence"]
    (line,) = re.findall(r"^#   mavqa-manifest (build .*)$", text, re.MULTILINE)
    words = line.split()
    assert words[-2:] == ["--out", f"data_manifests/{dataset}"]
    group = manifest.commands["build"]
    with click.Context(group) as parent:
        command = group.get_command(parent, words[1])  # type: ignore[attr-defined]
    with command.make_context("build", words[2:]) as context:
        assert str(context.params["videos"]) == f"data/videos/{dataset}"
        assert context.params.get("release", head["release"]) == head["release"]


def test_without_questions_the_error_of_extraction_has_their_source_and_the_build_command(dataset: str) -> None:
    message = error_line(CliRunner().invoke(extract, ["--dataset", dataset]))
    head = Path("data_manifests") / dataset / "dataset.toml"
    for part in ("videos.csv is missing", tomllib.loads(head.read_text())["source"], "mavqa-manifest build", str(head)):
        assert part in message
    assert not Path("stores").exists()


def test_without_videos_the_error_of_extraction_has_their_source_and_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for split in ("train", "val"):
        Path(f"{split}_qa.json").write_text(json.dumps([{**AVQA, "id": split}]))
    assert (
        CliRunner().invoke(manifest, ["build", "avqa", "--annotations", ".", "--out", "data_manifests/avqa"]).exit_code
        == 0
    )
    message = error_line(CliRunner().invoke(extract, ["--dataset", "avqa", "--weights", "seeded"]))
    assert "videos folder data/videos/avqa does not exist" in message.replace(f"{tmp_path}/", "")
    assert "https://mn.cs.tsinghua.edu.cn/avqa" in message
    assert "--videos" in message
    Path("data/videos/avqa").mkdir(parents=True)
    message = error_line(CliRunner().invoke(extract, ["--dataset", "avqa", "--weights", "seeded"]))
    assert "contains none of the 1 videos, such as -HG3Omg_89c_000030.mp4" in message
    assert "https://mn.cs.tsinghua.edu.cn/avqa" in message
    assert not Path("stores").exists()
