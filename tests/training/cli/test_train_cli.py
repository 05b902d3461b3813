"""The commands of stage two: help without heavy imports, defaults, one-line errors with exit code 2."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from workplace import COMMANDS, GRID, invoke, run_tiny_sweep, run_tiny_train

from pipeline.errors import UserError
from pipeline.manifests.manifest import load_manifest, save_manifest
from train.cli.evaluate import evaluate
from train.cli.options import show_scenarios
from train.cli.report import find_runs
from train.cli.sweep import GRIDS
from train.cli.train import name_run, train
from train.runs.config import make_config
from train.runs.results import read_results
from train.runs.steps import read_steps

HEAVY = ("torch", "dask", "av", "torchvision", "matplotlib", "zarr", "lightning", "jinja2")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_no_heavy_library(command: str) -> None:
    lines = [
        "import sys",
        f"from train.cli.{command} import {command}",
        f"{command}.main(['--help'], standalone_mode=False)",
        f"print([name for name in {HEAVY!r} if name in sys.modules])",
    ]
    shown = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True)
    assert shown.stdout.splitlines()[-1] == "[]"
    assert "Examples:" in shown.stdout


def test_the_defaults_of_train_are_the_documented_ones() -> None:
    defaults = train.make_context("train", []).params
    documented = {
        "backbone": None,
        "dataset": "music-avqa",
        "preset": "paper",
        "inputs": "all",
        "device": "auto",
        "precision": "float32",
        "resume": False,
        "as_json": False,
    }
    assert {name: defaults[name] for name in documented} == documented
    config = make_config()
    assert (config.backbone, config.method, config.variant, config.seed) == ("avst", "rmm-avr", "recommended", 1)
    assert make_config("pstp").backbone == "pstp"
    assert name_run(config, "music-avqa") == "avst-rmm-avr-1"
    assert name_run(make_config(inputs="audio,question", seed=3), "music-avqa") == "avst-audio-question-only-3"
    assert name_run(make_config("grounding"), "music-avqa") == "avst-grounding-1"
    varied = make_config("demo", variant="released", missing_rates={"audio": 0.3}, start_from="pairs", seed=2)
    assert name_run(varied, "my set/2") == "avst-rmm-avr-demo-released-missing-audio-0.3-from-pairs-my-set-2-2"


def test_the_errors_for_a_missing_manifest_and_store_have_the_commands_that_create_them(workplace: Path) -> None:
    result = invoke("train")
    assert result.exit_code == 2
    assert "data_manifests/music-avqa" in result.output
    assert "'mavqa-manifest build music-avqa' (see its --help), or pass another --manifest" in result.output
    result = invoke("train", "--manifest", "data")
    assert result.exit_code == 2
    assert "stores/music-avqa.zarr" in result.output
    create = "mavqa-extract --manifest data --store stores/music-avqa.zarr"
    assert f"'{create}', or pass another --store" in result.output
    assert len(result.output.splitlines()) == 1
    result = invoke("train", "--dataset", "mine")
    assert "'mavqa-manifest build' (see its --help), or pass another --manifest" in result.output
    result = invoke("train", "--dataset", "mine", "--manifest", "data")
    assert "'mavqa-extract --manifest data --store stores/mine.zarr', or pass another --store" in result.output


@pytest.mark.parametrize(
    "words",
    [
        "train --out {}",
        "train --manifest {}",
        "train --store {}",
        "train --cache-dir {}",
        "sweep tiny.toml --out {}",
        "sweep {}",
        "evaluate {}",
        "evaluate run --masks {}",
        "report {} --out page",
        "report run --out {}",
    ],
)
def test_a_path_that_is_not_utf_8_is_refused_before_anything_is_done(workplace: Path, words: str) -> None:
    name = os.fsdecode(b"bad\xff")
    command, *arguments = words.format(name).split(" ")
    files = sorted(workplace.rglob("*"))
    result = invoke(command, *arguments)
    assert result.exit_code == 2, result.output
    assert result.stderr == "Error: 'bad\\udcff' is not UTF-8, in which runs record paths and names: rename it\n"
    assert sorted(workplace.rglob("*")) == files


LONG = "N" * 300


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (f"train --manifest data --store store.zarr --out x/{LONG}", f"x/{LONG}: file name too long"),
        (f"train --manifest {LONG}", f"{LONG}/dataset.toml: file name too long"),
        (f"train --manifest data --store {LONG}", f"{LONG}: file name too long"),
        ("train --manifest data --store store.zarr --out loop/x", "loop/x: too many levels of symbolic links"),
        ("train --manifest data --store store.zarr --config loop", "loop: too many levels of symbolic links"),
        (f"evaluate {LONG}", f"{LONG}/config.json: file name too long"),
        ("evaluate run --masks loop", "loop: too many levels of symbolic links"),
        ("evaluate run --out loop", "folder loop cannot be created (loop: file exists): pass another folder"),
        (f"report {LONG} --out page", f"{LONG}: file name too long"),
        ("sweep loop", "loop: too many levels of symbolic links"),
        ("import_ avst loop --annotations data --out new", "loop: too many levels of symbolic links"),
    ],
    ids=lambda text: text.replace(LONG, "LONG"),
)
def test_a_name_that_is_too_long_or_a_loop_of_links_is_one_line(workplace: Path, words: str, message: str) -> None:
    (workplace / "loop").symlink_to("loop")
    if "run" in words.split():
        assert run_tiny_train("run").exit_code == 0
    command, *arguments = words.split()
    settings = ["--preset", "demo", "--method", "zero-fill", "--epochs", 1] if command == "train" else []
    result = invoke(command, *arguments, *settings)
    assert result.exit_code == 2, result.output
    line = result.stderr.splitlines()[-1]
    assert line.startswith("Error: ")
    assert line.endswith(message)


def test_a_working_directory_that_is_not_utf_8_is_refused(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = workplace / os.fsdecode(b"bad\xff")
    shutil.copytree(workplace / "data", folder / "data")
    shutil.copytree(workplace / "store.zarr", folder / "store.zarr")
    monkeypatch.chdir(folder)
    result = run_tiny_train("run")
    assert result.exit_code == 2, result.output
    assert "udcff' is not UTF-8" in result.stderr
    assert not (folder / "run").exists()
    assert invoke("train", "--help").exit_code == 0


def test_what_is_no_store_is_not_called_missing(workplace: Path) -> None:
    (workplace / "file").write_text("text")
    (workplace / "stopped").mkdir()
    (workplace / "stopped" / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group"}')
    for store, problem in (
        ("data", "data is not a feature store: pass one that mavqa-extract created (--store)"),
        ("file", "file is not a feature store: pass one that mavqa-extract created (--store)"),
        ("stopped", "feature store stopped is missing: create it with"),
    ):
        result = invoke("train", "--manifest", "data", "--store", store)
        assert result.exit_code == 2, result.output
        assert problem in result.stderr


def test_an_imported_run_has_no_training_to_resume(workplace: Path) -> None:
    assert run_tiny_train("run").exit_code == 0
    (workplace / "run" / "data.json").unlink()
    (workplace / "run" / "environment.json").write_text('{"imported_from": {"file": "avst.pt"}}')
    result = invoke("train", "--resume", "--out", "run")
    assert result.exit_code == 2, result.output
    line = "Error: run was imported, it has no training to resume: evaluate it with 'mavqa-evaluate run'"
    assert result.stderr.splitlines() == [line]


def test_the_errors_for_a_split_without_questions_have_the_splits_that_there_are(workplace: Path) -> None:
    run_tiny_sweep()
    run, whole = "b/runs/zero-fill-seed0", load_manifest(workplace / "data")
    save_manifest(replace(whole, questions={"train": whole.questions["train"], "val": ()}), workplace / "part")
    for options, problem in (
        ((), "has no questions in test or val"),
        (("--split", "val"), "split 'val' of manifest 'tiny' has no questions"),
        (("--split", "test"), "has no split 'test'"),
    ):
        result = invoke("evaluate", run, "--manifest", "part", *options)
        assert result.exit_code == 2, result.output
        assert problem in result.output
        assert f"its splits are train ({len(whole.questions['train'])}), val (0); pass" in result.output


@pytest.mark.parametrize(
    ("options", "value"),
    [
        (["--method", "telepathy"], "telepathy"),
        (["--backbone", "abacus"], "abacus"),
        (["--missing-rate", "audio=2"], "audio=2"),
        (["--missing-rate", "smell=0.1"], "smell=0.1"),
        (["--variant", "imagined"], "imagined"),
        (["--device", "abacus"], "abacus"),
        (["--epochs", "0"], "0"),
        (["--seed", "18446744073709551616"], "18446744073709551616 is not in the range 0<=x<=9223372036854775807"),
        (["--set", "seed=18446744073709551616"], "seed = 18446744073709551616: Input should be less than or equal to"),
        (["--inputs", "question"], "--method zero-fill and --inputs question exclude each other"),
        (["--method", "reference"], "method 'reference' only trains models restricted to some inputs"),
        (["--missing-rate", ""], "missing rate"),
        (["--start-from", "../x"], "start_from (--start-from) '../x' is not a plain name, it has a slash"),
        (["--dataset", "../evil"], "--dataset '../evil' is not a plain name, it has a slash"),
        (
            ["--method", "zero-fil"],
            "method 'zero-fil' is unknown (did you mean 'zero-fill'?): choose one of",
        ),
    ],
)
def test_an_invalid_option_is_an_error_with_its_value_and_exit_code_2(
    workplace: Path, options: list[str], value: str
) -> None:
    paths = ["--manifest", "data", "--store", "store.zarr", "--preset", "demo", "--method", "zero-fill"]
    result = invoke("train", *paths, *options)
    assert result.exit_code == 2, result.output
    assert value in result.output.splitlines()[-1]
    assert "Traceback" not in result.output
    assert not (workplace / "runs").exists()


def test_train_writes_an_evaluated_run_and_prints_one_json_document(workplace: Path) -> None:
    options = ["--manifest", "data", "--store", "store.zarr", "--preset", "demo", "--method", "zero-fill"]
    logs = ["--tracker", "csv", "--tracker", "tensorboard"]
    result = invoke("train", *options, "--epochs", 1, "--device", "cpu", "--seed", 4, "--json", *logs)
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["run"] == "avst-zero-fill-demo-tiny-4"
    assert set(document["scenarios"]) == {"complete", "audio-missing", "visual-missing", "both-missing"}
    assert "both" in result.stderr
    run = workplace / "runs" / "avst-zero-fill-demo-tiny-4"
    assert (run / "results.jsonl").exists()
    assert read_steps(run)[-1]["epoch"] == 1
    assert list((run / "tensorboard").iterdir())
    again = invoke("train", *options, "--epochs", 1, "--device", "cpu", "--seed", 4)
    assert again.exit_code == 2
    assert "--resume" in again.output
    assert invoke("train", *options, "--epochs", 1, "--device", "cpu", "--seed", 4, "--resume").exit_code == 0


def test_sweep_evaluate_and_report_work_in_sequence(workplace: Path) -> None:
    swept = run_tiny_sweep("--tracker", "csv")
    documents = json.loads((workplace / "b" / "runs" / "evaluation.json").read_text())
    assert list(documents) == ["question-only-seed0", "zero-fill-seed0"]
    assert "evaluation.json" in swept.stderr
    assert all(read_steps(workplace / "b" / "runs" / name) for name in documents)

    evaluated = invoke("evaluate", "b/runs/zero-fill-seed0", "--json", "--device", "cpu")
    assert evaluated.exit_code == 0, evaluated.output
    document = json.loads(evaluated.stdout)
    reliability = document.pop("reliability")
    assert document == documents["zero-fill-seed0"]
    assert reliability["scenarios"].keys() == document["scenarios"].keys()
    assert (workplace / "b" / "runs" / "zero-fill-seed0" / "calibration.json").exists()

    shown = invoke("evaluate", "b/runs/zero-fill-seed0", "--device", "cpu")
    assert "complete: " in shown.stderr.partition("Expected calibration error")[2]
    assert f"calibrated on {reliability['calibrated_on']['questions']} questions of val" in shown.stderr

    single = invoke("evaluate", "b/runs/zero-fill-seed0", "--scenario", "audio-missing", "--split", "val", "--json")
    assert single.exit_code == 0, single.output
    assert list(json.loads(single.stdout)["scenarios"]) == ["audio-missing"]

    reported = invoke("report", "b/runs", "--out", "r")
    assert reported.exit_code == 0, reported.output
    assert "r/index.html" in reported.stderr
    assert (workplace / "r" / "index.html").exists()
    document = json.loads(invoke("report", "b/runs", "--out", "r", "--json").stdout)
    runs = [f"b/runs/{name}" for name in documents]
    assert document == {"format": 1, "page": "r/index.html", "runs": runs}


def test_a_sweep_prints_its_evaluations_as_json_and_the_progress_of_each_run(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.cli.progress.SHORTEST_SECONDS", 0.0)
    swept = run_tiny_sweep("--json")
    assert json.loads(swept.stdout) == json.loads((workplace / "b" / "runs" / "evaluation.json").read_text())
    scenarios = read_results(workplace / "b" / "runs" / "zero-fill-seed0" / "results.jsonl")
    answers = sum(row.accuracies.overall.questions for row in scenarios if row.kind == "model")
    lines = [line.partition(" in ")[0] for line in swept.stderr.splitlines()]
    assert f"evaluate zero-fill-seed0: {answers}/{answers} answers" in lines
    assert lines[-1] == "sweep: 2/2 runs"


def test_a_sweep_writes_the_finished_runs_and_names_the_failed_ones(workplace: Path) -> None:
    wild = '[[methods]]\nname = "wild"\nmethod = "zero-fill"\nlearning_rate = 1e38\n'
    after = '[[methods]]\nname = "after"\nmethod = "zero-fill"\nstart_from = "wild"\n'
    (workplace / "tiny.toml").write_text(f"{GRID}{wild}{after}")
    paths = ["--manifest", "data", "--store", "store.zarr", "--out", "b/runs", "--device", "cpu"]
    swept = invoke("sweep", "tiny.toml", *paths)
    assert swept.exit_code == 3, swept.output
    documents = json.loads((workplace / "b" / "runs" / "evaluation.json").read_text())
    assert list(documents) == ["question-only-seed0", "zero-fill-seed0"]
    assert "Overall accuracy" in swept.stderr
    *_, failed, skipped = swept.stderr.splitlines()
    assert failed.startswith("failed: wild-seed0: ")
    assert "learning rate" in failed
    assert skipped == "failed: after-seed0: skipped, it starts from wild-seed0"
    (workplace / "tiny.toml").write_text(f'preset = "demo"\nsettings = {{epochs = 1}}\n{wild}')
    swept = invoke("sweep", "tiny.toml", *paths, "--json")
    assert swept.exit_code == 3, swept.output
    assert json.loads(swept.stdout) == {}


def test_a_sweep_does_not_write_outside_its_folder(workplace: Path) -> None:
    (workplace / "tiny.toml").write_text(GRID.replace('name = "zero-fill"', 'name = "../../evil"'))
    before = sorted(workplace.rglob("*"))
    result = invoke("sweep", "tiny.toml", "--manifest", "data", "--store", "store.zarr", "--out", "b/runs")
    assert result.exit_code == 2, result.output
    assert result.output == (
        "Error: grid tiny.toml, method '../../evil': name '../../evil' is not a plain name, it has a slash: choose "
        "another\n"
    )
    assert sorted(workplace.rglob("*")) == before


def test_a_bundled_grid_is_chosen_by_name_unless_a_file_has_it(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise UserError(f"read {path}")

    monkeypatch.setattr("train.training.sweep.read_grid", refuse)
    assert invoke("sweep", "table1").output == f"Error: read {GRIDS / 'table1.toml'}\n"
    assert invoke("sweep", "own").output == "Error: read own\n"
    (workplace / "table1").touch()
    assert invoke("sweep", "table1").output == "Error: read table1\n"


def test_evaluate_takes_the_question_only_floor_from_the_passed_run(workplace: Path) -> None:
    run_tiny_sweep()
    (workplace / "b" / "runs" / "question-only-seed0").rename(workplace / "reference")
    run = "b/runs/zero-fill-seed0"
    without = json.loads(invoke("evaluate", run, "--json").stdout)
    assert without["floors"]["question_only"] is None
    with_floor = json.loads(invoke("evaluate", run, "--json", "--question-only", "reference").stdout)
    assert isinstance(with_floor["floors"]["question_only"], float)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "nowhere"], "nowhere"),
        (["evaluate", "data"], "config.json"),
        (["report", "nowhere", "--out", "r"], "mavqa-evaluate"),
        (["sweep", "nowhere.toml"], "nowhere.toml"),
        (["sweep", "tiny.toml"], "data_manifests/tiny"),
    ],
)
def test_missing_inputs_are_errors_with_exit_code_2(workplace: Path, arguments: list[str], message: str) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output


def test_masks_of_other_questions_are_an_error(workplace: Path) -> None:
    run_tiny_sweep()
    run = workplace / "b" / "runs" / "zero-fill-seed0"
    before = (run / "results.jsonl").read_bytes()
    record = {"format": 1, "seed": 0, "unit": "question", "rates": {"audio": 1.0}, "absent": {"elsewhere": ["audio"]}}
    (workplace / "masks.json").write_text(json.dumps(record))
    result = invoke("evaluate", run, "--masks", "masks.json")
    assert result.exit_code == 2, result.output
    assert "elsewhere" in result.output
    assert (run / "results.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--method", "prompts"), "'prompts' trains on a frozen backbone, which would stay random"),
        (("--preset", "grounding", "--method", "rmm-avr"), "remove method = 'rmm-avr'"),
    ],
)
def test_a_refused_training_writes_nothing(workplace: Path, options: tuple[str, ...], message: str) -> None:
    result = invoke("train", "--manifest", "data", "--store", "store.zarr", "--preset", "demo", *options)
    assert result.exit_code == 2, result.output
    assert message in result.output.splitlines()[-1]
    assert not (workplace / "runs").exists()


def test_a_run_cannot_start_from_a_run_on_other_questions(workplace: Path) -> None:
    run_tiny_sweep()
    data = workplace / "b" / "runs" / "zero-fill-seed0" / "data.json"
    paths = ["--manifest", "data", "--store", "store.zarr", "--preset", "demo", "--method", "zero-fill"]
    start = ["--out", "b/runs/next", "--start-from", "zero-fill-seed0"]
    data.write_text(data.read_text().replace('"questions"', '"asked"', 1))
    result = invoke("train", *paths, *start)
    assert result.exit_code == 2, result.output
    assert "other questions" in result.output
    assert not (workplace / "b" / "runs" / "next").exists()


def test_the_error_for_a_corrupt_or_missing_vocabulary_has_its_file(workplace: Path) -> None:
    run_tiny_sweep()
    vocabulary = workplace / "b" / "runs" / "zero-fill-seed0" / "vocabulary.json"
    for corrupt in (lambda: vocabulary.write_text("{"), vocabulary.unlink):
        corrupt()
        result = invoke("evaluate", vocabulary.parent)
        assert result.exit_code == 2, result.output
        assert "vocabulary.json" in result.output


@pytest.mark.parametrize(
    ("file", "command"),
    [
        ("environment.json", "evaluate"),
        ("vocabulary.json", "evaluate"),
        ("config.json", "evaluate"),
        ("results.jsonl", "report"),
        ("metrics.jsonl", "report"),
        ("times.json", "report"),
        ("predictions-test-complete-*.jsonl", "report"),
    ],
)
def test_the_error_for_a_corrupt_file_of_a_run_is_one_line_with_its_path(
    workplace: Path, file: str, command: str
) -> None:
    run_tiny_sweep()
    run = workplace / "b" / "runs" / "zero-fill-seed0"
    (file,) = (path.name for path in run.glob(file))
    contents = (b"{", b"[]", b"3", b'{"feature_weights": 3}', b"[" * 100_000, b"\xff")
    # Reports draw before they read some of the files.
    for content in contents[::3] if command == "report" else contents:
        (run / file).write_bytes(content)
        result = invoke("report", run, "--out", "r") if command == "report" else invoke(command, run)
        assert result.exit_code == 2, result.output
        (line,) = result.stderr.splitlines()
        assert f"zero-fill-seed0/{file}" in line
        assert "pydantic" not in line


def test_an_unknown_scenario_and_a_corrupt_checkpoint_are_errors_with_exit_code_2(workplace: Path) -> None:
    run_tiny_sweep()
    run = workplace / "b" / "runs" / "zero-fill-seed0"
    result = invoke("evaluate", run, "--scenario", "smell-missing")
    assert result.exit_code == 2
    assert "smell-missing" in result.output
    (run / "checkpoint.safetensors").write_bytes(b"nothing")
    result = invoke("evaluate", run)
    assert result.exit_code == 2
    assert "checkpoint.safetensors" in result.output


def test_find_runs_returns_the_evaluated_runs_of_a_folder(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.jsonl").write_text("")
    (tmp_path / "unfinished").mkdir()
    assert find_runs(tmp_path) == [tmp_path / "a", tmp_path / "b"]
    assert find_runs(tmp_path / "a") == [tmp_path / "a"]


def test_evaluate_accepts_one_of_rates_masks_and_parts(workplace: Path) -> None:
    run_tiny_sweep()
    run = Path("b/runs/zero-fill-seed0")
    with_rate = invoke("evaluate", run, "--missing-rate", "audio=0.5", "--unit", "video", "--json")
    assert list(json.loads(with_rate.stdout)["scenarios"]) == ["masked-audio=0.5-video"]
    assert (run / "masked-audio=0.5-video-test.json").is_file()
    with_masks = invoke("evaluate", run, "--masks", run / "masked-audio=0.5-video-test.json", "--json")
    assert json.loads(with_masks.stdout) == json.loads(with_rate.stdout)
    with_part = invoke("evaluate", run, "--missing-part", "visual=0.5", "--json")
    assert list(json.loads(with_part.stdout)["scenarios"]) == ["partly-visual=0.5"]
    assert invoke("evaluate", run, "--curves").exit_code == 0
    assert "masked-audio=0.1,visual=0.9" in (run / "results.jsonl").read_text()
    both = CliRunner().invoke(evaluate, [str(run), "--missing-rate", "audio=0.5", "--missing-part", "audio=0.5"])
    assert both.exit_code == 2
    assert "pass only one of them" in both.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            "--scenario complete --missing-part audio=0.5",
            "--scenario and --missing-part exclude each other: pass only one",
        ),
        (
            "--scenario complete --missing-rate audio=0.5",
            "--scenario and --missing-rate exclude each other: pass only one",
        ),
        ("--scenario natural --masks m.json", "--scenario and --masks exclude each other: pass only one of them"),
        (
            "--masks m.json --missing-rate audio=0.5",
            "--masks and --missing-rate exclude each other: pass only one of them",
        ),
        ("--unit video", "--unit is of --missing-rate and --curves: pass one of them, or leave it out"),
        ("--unit question --missing-part audio=0.5", "--unit is of --missing-rate and --curves: pass one of them"),
        ("--unit video --masks m.json", "--unit is of --missing-rate and --curves: pass one of them, or leave it out"),
    ],
)
def test_an_option_of_evaluate_that_would_have_no_effect_is_refused(tmp_path: Path, options: str, message: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    result = invoke("evaluate", tmp_path, *options.split())
    assert result.exit_code == 2, result.output
    assert message in result.stderr


def test_a_table_of_many_scenarios_is_not_cut_outside_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"scenario-{number}" for number in range(20)]
    scenarios = {name: {"overall": 10.0 + number} for number, name in enumerate(names)}
    show_scenarios(
        {
            "a-run-with-a-name-of-some-length": {
                "split": "val",
                "seen_in_training": "selection",
                "scenarios": scenarios,
                "floors": {},
            }
        }
    )
    shown = capsys.readouterr().err
    assert "Overall accuracy, %, val (the epoch was selected on it)" in shown
    line = next(line for line in shown.splitlines() if line.strip().startswith("a-run-with"))
    assert line.split() == ["a-run-with-a-name-of-some-length", *(f"{10 + number}.00" for number in range(20))]


def test_a_run_is_evaluated_from_another_working_directory(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_tiny_sweep()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    result = invoke("evaluate", str(workplace / "b" / "runs" / "zero-fill-seed0"))
    assert result.exit_code == 0, result.output
