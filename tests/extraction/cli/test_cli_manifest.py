"""`mavqa-manifest`: exit codes, one-line errors, nothing but JSON on stdout, light help."""

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

from pipeline.cli.manifest import manifest
from pipeline.manifests.manifest import Manifest, Video, load_manifest

VALID = 'name = "small"\n[synthesize]\nvideos = 4\nseconds = 2\nseed = 9\n'


def run(*arguments):
    return CliRunner().invoke(manifest, [str(argument) for argument in arguments])


@pytest.fixture
def clips(tmp_path):
    folder = tmp_path / "clips"
    folder.mkdir()
    for name in ("a.mp4", "b.mp4"):
        (folder / name).write_bytes(name.encode())
    return folder


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "qa.csv"
    path.write_text("video,question,answer,split\na,Is it loud?,yes,train\nb,Is it loud?,no,test\n")
    return path


def write_release(folder, answer="yes"):
    record = {
        "video_id": "00000001",
        "question_id": 1,
        "type": '["Audio", "Counting"]',
        "question_content": "Is there a <Object> sound?",
        "templ_values": '["erhu"]',
        "anser": answer,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "avqa-val.json").write_text(json.dumps([record]))
    return folder


def assert_one_line(result, *parts):
    assert result.exit_code == 2
    (line,) = result.stderr.strip().splitlines()
    for part in ("Error: ", *parts):
        assert part in line


def test_music_avqa_is_built_from_a_folder(tmp_path):
    write_release(tmp_path / "json_update")
    out = tmp_path / "music-avqa"
    result = run("build", "music-avqa", "--annotations", tmp_path, "--out", out)
    assert result.exit_code == 0, result.output
    assert "music-avqa (json_update): 1 videos, questions: val 1, 6 tokens, 42 answers" in result.stdout
    assert result.stderr == "note: no training split: the vocabulary comes from all splits\n"
    assert load_manifest(out).name == "music-avqa"


def write_avqa(path, *numbers):
    common = {"question_text": "Where is it?", "question_relation": "Both", "question_type": "Where"}
    choice = {"multi_choice": ["sea", "sky"], "answer": 0}
    path.write_text(json.dumps([{"id": n, "video_name": f"v{n}", **common, **choice} for n in numbers]))
    return path


def test_avqa_is_built_from_a_folder_and_from_several_files_per_split(tmp_path):
    folder, out = tmp_path / "AVQA", tmp_path / "avqa"
    folder.mkdir()
    write_avqa(folder / "train_qa.json", 1, 2)
    write_avqa(folder / "val_qa.json", 3)
    result = run("build", "avqa", "--annotations", folder, "--out", out)
    assert result.exit_code == 0, result.output
    assert "avqa (2022): 3 videos, questions: train 2, val 1, 5 tokens, 1 answers" in result.stdout
    assert "multiple choice: 3" in result.stdout
    assert load_manifest(out).questions["val"][0].choices == ("sea", "sky")
    assert "val: 1 questions (1 multiple choice) on 1 videos: Where 1" in run("check", out).stdout
    several = ("--train", write_avqa(tmp_path / "a.json", 7), "--train", write_avqa(tmp_path / "b.json", 8))
    assert run("build", "avqa", "--annotations", folder, *several, "--out", out).exit_code == 0
    assert [q.question_id for q in load_manifest(out).questions["train"]] == ["7", "8"]


def test_unknown_answers_of_an_open_dataset_are_warnings(tmp_path):
    train, val = write_avqa(tmp_path / "train_qa.json", 1), write_avqa(tmp_path / "val_qa.json", 2)
    val.write_text(val.read_text().replace('"answer": 0', '"answer": 1'))
    out = tmp_path / "avqa"
    assert run("build", "avqa", "--train", train, "--val", val, "--out", out).exit_code == 0
    result = run("check", out)
    assert result.exit_code == 0, result.output
    assert "warning, unknown answer: 1\n  answer 'sky' of 1 questions of 'val'" in result.stderr
    document = json.loads(run("check", out, "--json").stdout)
    assert (document["ok"], next(found["kind"] for found in document["warnings"])) == (True, "unknown answer")


def test_a_split_file_overrides_the_folder(tmp_path):
    write_release(tmp_path / "json")
    other = write_release(tmp_path / "mine", "no") / "avqa-val.json"
    out = tmp_path / "out"
    result = run("build", "music-avqa", "--annotations", tmp_path, "--release", "json", "--val", other, "--out", out)
    assert result.exit_code == 0, result.output
    assert load_manifest(out).questions["val"][0].answer == "no"


def test_a_table_is_built_checked_and_described_in_json(tmp_path, clips, table):
    out = tmp_path / "mine"
    result = run("build", "table", "--csv", table, "--videos", clips, "--out", out, "--json")
    document = json.loads(result.stdout)
    assert (document["name"], document["release"], document["videos"]) == ("mine", "table", 2)
    assert document["splits"]["test"]["questions"] == 1
    assert document["odd_records"] == {"missing_videos": 0}
    result = run("check", out, "--videos", clips, "--json")
    assert result.exit_code == 2  # "no" is not among the training answers
    document = json.loads(result.stdout)
    assert [error["kind"] for error in document["errors"]] == ["unknown answer"]
    assert_one_line(result, "is invalid: answer 'no' of 1 questions of 'test'")


def test_unknown_words_of_a_table_and_the_vocabulary_of_a_run_are_options(tmp_path, table):
    table.write_text(table.read_text() + "b,Is it quiet?,yes,test\n")
    build = ("build", "table", "--csv", table, "--out")
    refused = run(*build, tmp_path / "out", "--unknown-words", "refuse")
    assert_one_line(refused, "1 of 3 questions have words, such as 'quiet' in 'Is it quiet?'", "pass map or keep")
    assert not (tmp_path / "out").exists()
    assert run(*build, tmp_path / "kept", "--unknown-words", "keep").exit_code == 0
    assert load_manifest(tmp_path / "kept").vocabulary.tokens == ("<pad>", "Is", "it", "loud", "quiet")
    table.write_text("video,question,answer,split\na,quiet it loud?,no,test\n")
    built = run(*build, tmp_path / "other", "--vocabulary", tmp_path / "kept" / "vocabulary.json")
    assert built.exit_code == 0
    assert load_manifest(tmp_path / "other").vocabulary == load_manifest(tmp_path / "kept").vocabulary
    assert "1 of 1 questions of 'test' have answers outside the vocabulary, such as 'no'" in built.stderr


def test_a_folder_is_built_and_checked(tmp_path, clips):
    out = tmp_path / "out"
    assert run("build", "folder", "--videos", clips, "--out", out).exit_code == 0
    assert run("check", out, "--videos", clips).exit_code == 0
    (clips / "a.mp4").write_bytes(b"other")
    (clips / "b.mp4").unlink()
    result = run("check", out, "--videos", clips)
    assert result.exit_code == 2
    assert "missing file: 1" in result.stderr
    assert "different file: 1" in result.stderr
    assert "(and 1 more)" in result.stderr.splitlines()[-1]


def test_check_uses_the_videos_folder_of_the_manifest(tmp_path, clips):
    out = tmp_path / "out"
    run("build", "folder", "--videos", clips, "--out", out)
    assert "files: not checked" in run("check", out).stdout
    clips.rename(out / "videos")
    assert "files: not checked" not in run("check", out).stdout
    (out / "videos" / "a.mp4").unlink()
    assert run("check", out).exit_code == 2


def test_links_that_lead_to_themselves_are_one_line(tmp_path, clips, table):
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    assert_one_line(run("check", loop), "loop/dataset.toml: too many levels of symbolic links")
    assert_one_line(run("build", "table", "--csv", loop, "--videos", clips, "--out", tmp_path / "o"), "too many levels")
    assert_one_line(run("build", "folder", "--videos", clips, "--out", loop), "cannot be created")
    assert_one_line(
        run("build", "folder", "--videos", clips, "--out", loop / "x"), "loop/x: too many levels of symbolic"
    )
    assert_one_line(
        run("synthesize", "--out", loop / "x", "--videos", 1, "--seconds", 1), "too many levels of symbolic"
    )


def test_mistakes_get_one_line_and_exit_code_2(tmp_path, table):
    empty = tmp_path / "empty"
    empty.mkdir()
    out = tmp_path / "out"
    assert_one_line(run("build", "folder", "--videos", empty, "--out", out), "contains no videos", "empty")
    assert_one_line(run("build", "folder", "--videos", tmp_path / "no", "--out", out), "does not exist")
    assert_one_line(run("build", "table", "--csv", tmp_path / "no.csv", "--out", out), "no.csv")
    assert_one_line(run("build", "music-avqa", "--annotations", empty, "--out", out), "json_update")
    assert_one_line(run("build", "music-avqa", "--out", out), "--annotations")
    assert_one_line(run("check", tmp_path / "no"), "dataset.toml is missing")
    assert not out.exists()


def test_a_failed_build_leaves_the_manifest_as_it_was(tmp_path, clips, table):
    out = tmp_path / "out"
    run("build", "table", "--csv", table, "--out", out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    table.write_text("video,question,answer\na,Is it loud?,\n")
    assert run("build", "table", "--csv", table, "--out", out).exit_code == 2
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_synthesize_passes_its_options(tmp_path, monkeypatch):
    received = {}

    def synthesize(out, videos, seconds, seed, progress, workers, name):
        received.update(out=out, videos=videos, seconds=seconds, seed=seed, workers=workers, name=name)
        progress(1, videos)
        return Manifest("demo", "r", "free", (Video("a", "a.mp4"),))

    fake = type(sys)("pipeline.synthetic")
    fake.synthesize, fake.read_redundancy = synthesize, None
    monkeypatch.setitem(sys.modules, "pipeline.synthetic", fake)
    options = ("--out", tmp_path, "--videos", 7, "--seconds", 3, "--seed", 5, "--workers", 2)
    result = run("synthesize", *options)
    assert result.exit_code == 0, result.output
    assert received == {"out": tmp_path, "videos": 7, "seconds": 3, "seed": 5, "workers": 2, "name": tmp_path.name}
    settings = tmp_path / "dataset.toml"
    settings.write_text(VALID)
    assert run("synthesize", "--out", tmp_path, "--settings", settings, "--seed", 1).exit_code == 0
    assert (received["name"], received["videos"], received["seconds"], received["seed"]) == ("small", 4, 2, 1)
    assert run("synthesize", "--out", tmp_path, "--settings", "demo").exit_code == 0
    assert (received["name"], received["videos"], received["seconds"], received["seed"]) == ("demo", 500, 3, 0)
    assert run("synthesize", "--out", tmp_path, "--videos", 0).exit_code == 2


def test_synthesize_with_a_redundancy_shows_what_it_measured(tmp_path):
    settings = tmp_path / "dataset.toml"
    settings.write_text(VALID + 'redundancy = 1\ndifficulty = "hard"\n')
    options = ("--out", tmp_path / "data", "--settings", settings, "--seconds", 1, "--workers", 1, "--json")
    shown = json.loads(run("synthesize", *options, "--redundancy", 0.5).stdout)
    assert shown["release"] == "synthetic-9-redundancy-0.5-hard"
    assert shown["redundancy"] == json.loads((tmp_path / "data" / "redundancy.json").read_text())
    assert run("synthesize", "--out", tmp_path, "--redundancy", 1.1).exit_code == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "dataset.toml does not exist: pass a dataset.toml, or one of demo"),
        ("][", "dataset.toml is not valid TOML: Invalid statement"),
        ('name = "small"', "dataset.toml has no text 'name' or no table [synthesize]"),
        ('name = "small"\nsynthesize = 3', "no table [synthesize]"),
        ("name = 3\n[synthesize]", "has no text 'name'"),
        (
            'name = "s"\n[synthesize]\nvideos = 4',
            "dataset.toml: [synthesize] seconds is missing: set an integer from 1",
        ),
        ('name = "s"\n[synthesize]\nvideos = 4.5', "[synthesize] videos is 4.5: set an integer from 1"),
        ('name = "s"\n[synthesize]\nseed = -1', "[synthesize] seed is -1: set an integer from 0"),
        ('name = "s"\n[synthesize]\nclips = 4', "[synthesize] clips is unknown: choose one of videos, seconds, seed"),
        (VALID + 'redundancy = "all"', "[synthesize] redundancy is 'all': set a number in [0, 1]"),
        (VALID + "redundancy = 2", "--redundancy 2 is not in [0, 1]"),
        (VALID + "difficulty = 1", "[synthesize] difficulty is 1: set text"),
        (
            VALID + 'difficulty = "hrad"',
            "difficulty 'hrad' is unknown (did you mean 'hard'?): choose one of normal, hard",
        ),
    ],
)
def test_the_error_for_invalid_settings_has_their_file_and_entry(tmp_path, text, message):
    settings = tmp_path / "dataset.toml"
    if text is not None:
        settings.write_text(text)
    assert_one_line(run("synthesize", "--out", tmp_path / "data", "--settings", settings), message)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    "command",
    [
        (),
        ("build",),
        ("build", "music-avqa"),
        ("build", "avqa"),
        ("build", "table"),
        ("build", "folder"),
        ("check",),
        ("synthesize",),
    ],
)
def test_help_explains_and_loads_nothing_heavy(command):
    code = (
        "import sys\nfrom pipeline.cli.manifest import manifest\n"
        f"try: manifest({[*command, '--help']!r}, prog_name='mavqa-manifest')\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'dask', 'av', 'matplotlib', 'librosa', 'rich', 'zarr'} & set(sys.modules)\n"
        "sys.exit(' '.join(heavy) or 0)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    assert "Usage: mavqa-manifest" in shown.stdout
    assert len(command) < 2 or "Example" in shown.stdout
