"""Runs that could be mixed up: renamed, resumed, moved, on other questions or features, and used twice at once."""

import json
import os
import shutil
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_run import Killed
from tiny_store import make_manifest, make_store, write_store
from workplace import ON_TINY_DATA, invoke, run_tiny_sweep, run_tiny_train

import train.training.loop
from pipeline.files import locked
from pipeline.manifests.manifest import Manifest, load_manifest, save_manifest
from train.methods.rmm import RECALL_VARIANTS
from train.runs.folder import read_tensors, write_tensors
from train.runs.results import read_results

SCENARIOS = ["complete", "audio-missing", "visual-missing", "both-missing"]


def document_of(*arguments: object) -> dict:
    """Return the document that mavqa-evaluate prints."""
    result = invoke("evaluate", *arguments, "--device", "cpu", "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def accuracies_of(document: dict) -> dict[str, float]:
    return {name: scenario["overall"] for name, scenario in document["scenarios"].items()}


def fails(*arguments: object) -> str:
    """Run a command that the user can fix; return its only line of output."""
    result = invoke(*arguments)
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    return line


def reported(*runs: object) -> str:
    """Return the tables of a report."""
    result = invoke("report", *runs, "--out", "r")
    assert result.exit_code == 0, result.output
    return Path("r/tables.md").read_text()


def change_manifest(folder: str, **questions: tuple) -> Manifest:
    """Save the manifest of `data` with other questions per split as `folder`; None removes a split."""
    manifest = load_manifest(Path("data"))
    kept = {split: own for split, own in {**manifest.questions, **questions}.items() if own is not None}
    changed = replace(manifest, questions=kept)
    save_manifest(changed, Path(folder))
    return changed


def test_rows_of_a_half_trained_run_are_replaced_when_its_sweep_resumes(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (workplace / "tiny.toml").write_text(
        (workplace / "tiny.toml").read_text().replace("epochs = 1", "epochs = 8, learning_rate = 0.01")
    )
    write = train.training.loop.write_metrics

    def stop_after_an_epoch(run: Path, metrics: list) -> None:
        write(run, metrics)
        if run.name == "zero-fill-seed0":
            raise Killed

    monkeypatch.setattr("train.training.loop.write_metrics", stop_after_an_epoch)
    command = ("sweep", "tiny.toml", *ON_TINY_DATA, "--out", "b/runs")
    assert isinstance(invoke(*command).exception, Killed)
    half = accuracies_of(document_of("b/runs/zero-fill-seed0"))
    monkeypatch.setattr("train.training.loop.write_metrics", write)
    assert invoke(*command).exit_code == 0
    swept = json.loads(Path("b/runs/evaluation.json").read_text())["zero-fill-seed0"]
    assert accuracies_of(swept) == accuracies_of(document_of("b/runs/zero-fill-seed0")) != half


def test_results_of_an_earlier_checkpoint_are_not_reported(workplace: Path) -> None:
    assert run_tiny_train("a").exit_code == 0
    assert run_tiny_train("b", "--seed", 5).exit_code == 0
    shutil.copy("b/checkpoint.safetensors", "a/checkpoint.safetensors")
    assert "earlier checkpoint" in fails("report", "a", "--out", "r")


def test_a_checkpoint_of_another_run_is_not_evaluated(workplace: Path) -> None:
    assert run_tiny_train("a").exit_code == 0
    assert run_tiny_train("b", "--seed", 5).exit_code == 0
    shutil.copy("b/checkpoint.safetensors", "a/checkpoint.safetensors")
    assert "is of a run with other settings or data than a" in fails("evaluate", "a")


def test_a_run_whose_variant_has_other_settings_now_is_neither_evaluated_nor_continued(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--method", "rmm", "--variant", "paper", "--keep-state")
    assert run_tiny_train("a", *options).exit_code == 0
    assert invoke("evaluate", "a", "--device", "cpu").exit_code == 0
    why = "was trained by a version of mavqa whose variant paper has other settings (error mean, now sum)"
    with monkeypatch.context() as changed:
        changed.setitem(RECALL_VARIANTS, "paper", replace(RECALL_VARIANTS["paper"], error="sum"))
        assert f"checkpoint.safetensors {why}" in fails("evaluate", "a")
        continued = run_tiny_train("a", *options, "--resume", "--epochs", 3)
    assert continued.exit_code == 2
    assert f"last.safetensors {why}" in continued.stderr
    tensors, facts = read_tensors(Path("a/checkpoint.safetensors"))
    write_tensors(Path("a/checkpoint.safetensors"), tensors, {"run": facts["run"]})
    assert "(addressing not recorded, now paper; combination not recorded" in fails("evaluate", "a")


def test_runs_of_one_name_in_two_folders_have_labels_of_their_own(workplace: Path) -> None:
    assert run_tiny_train("a/run").exit_code == 0
    assert run_tiny_train("b/run", "--epochs", 2).exit_code == 0
    labels = {line.split(" | ")[0] for line in reported("a", "b").splitlines() if line.startswith("| zero-fill")}
    assert len(labels) == 2


def test_a_stopped_run_is_not_pooled_with_finished_ones(workplace: Path) -> None:
    assert run_tiny_train("a", "--epochs", 3).exit_code == 0
    assert run_tiny_train("b", "--epochs", 3, "--seed", 5).exit_code == 0
    metrics = Path("b/metrics.jsonl")
    metrics.write_text("".join(line + "\n" for line in metrics.read_text().splitlines()[:2]))
    document_of("b")
    assert "1, 5" not in reported("a", "b")


def test_seeds_that_start_from_other_trainings_are_not_pooled(workplace: Path) -> None:
    for folder, seed, of_start in (("a", 1, 1), ("b", 2, 1), ("c", 3, 2)):
        assert run_tiny_train(f"{folder}/start", "--seed", seed, "--epochs", of_start).exit_code == 0
        assert run_tiny_train(f"{folder}/run-{seed}", "--seed", seed, "--start-from", "start").exit_code == 0
    tables = reported("a/run-1", "b/run-2", "c/run-3")
    seeds = {line.split(" | ")[-1] for line in tables.splitlines() if line.startswith("| zero-fill")}
    assert seeds == {"1, 2 |", "3 |"}


def test_questions_of_other_types_are_in_different_tables(workplace: Path) -> None:
    assert run_tiny_train("a").exit_code == 0
    assert run_tiny_train("b", "--seed", 5).exit_code == 0
    questions = load_manifest(Path("data")).questions["test"]
    change_manifest("types", test=tuple(replace(question, type="Visual Counting") for question in questions))
    Path("b/results.jsonl").unlink()
    document_of("b", "--manifest", "types", "--scenario", "complete")
    assert reported("a", "b").count(": complete") == 2


def test_floors_go_with_a_manifest_without_training_questions(workplace: Path) -> None:
    assert run_tiny_train("run").exit_code == 0
    assert "template-majority" in reported("run")
    change_manifest("other", train=None, val=None)
    document_of("run", "--manifest", "other")
    assert "template-majority" not in reported("run")


def test_masks_edited_by_hand_are_a_scenario_of_their_own(workplace: Path) -> None:
    assert run_tiny_train("run").exit_code == 0
    document_of("run", "--missing-rate", "audio=0.5")
    masks = json.loads(Path("run/masked-audio=0.5-test.json").read_text())
    masks["absent"] = {question: ["visual"] for question in masks["absent"]}
    Path("edited.json").write_text(json.dumps(masks))
    (scenario,) = document_of("run", "--masks", "edited.json")["scenarios"]
    assert scenario.startswith("masks-")


def test_results_are_not_written_to_another_run(workplace: Path) -> None:
    assert run_tiny_train("a").exit_code == 0
    assert run_tiny_train("b", "--seed", 5).exit_code == 0
    assert "b is another run" in fails("evaluate", "a", "--out", "b")


def test_a_report_that_fails_writes_nothing(workplace: Path) -> None:
    assert run_tiny_train("run").exit_code == 0
    assert run_tiny_train("other", method="modality-dropout").exit_code == 0
    path = next(Path("run").glob("predictions-test-complete-*"))
    path.write_text("\n".join(path.read_text().splitlines()[1:]) + "\n")
    assert "results.jsonl" in fails("report", "run", "other", "--out", "r")
    assert not Path("r").exists()


def test_a_renamed_run_has_one_name(workplace: Path) -> None:
    assert run_tiny_train("first-name").exit_code == 0
    Path("first-name").rename("after")
    document_of("after", "--scenario", "complete")
    assert {row.run for row in read_results("after")} == {"after"}
    rows = [row for row in read_results("after") if row.kind == "model"]
    assert sorted(row.scenario for row in rows) == sorted([*SCENARIOS])
    page = (invoke("report", "after", "--out", "r"), Path("r/index.html").read_text())[1]
    assert "<th>after</th>" in page
    assert "first-name" not in page


def test_a_second_manifest_has_rows_and_predictions_of_its_own(workplace: Path) -> None:
    assert run_tiny_train("run").exit_code == 0
    before = {path: path.read_bytes() for path in Path("run").glob("predictions-*")}
    manifest = load_manifest(Path("data"))
    change_manifest("other", test=manifest.questions["test"][:4])
    other = document_of("run", "--manifest", "other")
    assert {path: path.read_bytes() for path in before} == before
    tables = reported("run")
    counts = [line for line in tables.splitlines() if line.startswith("## ") and "(questions " in line]
    assert len(counts) == 2 * len(SCENARIOS)
    assert f"{other['scenarios']['complete']['overall']:.2f}" in tables


def test_a_manifest_without_training_questions_has_no_floors(workplace: Path) -> None:
    assert run_tiny_train("run").exit_code == 0
    manifest = change_manifest("other", train=None, val=None)
    assert manifest.splits == ("test",)
    change_manifest("other", train=None, val=None, test=manifest.questions["test"][:4])
    assert document_of("run", "--manifest", "other")["floors"]["template_majority"] is None


def test_a_run_is_evaluated_only_with_the_seconds_of_its_training(workplace: Path) -> None:
    assert run_tiny_train("run").exit_code == 0
    write_store(make_store(seconds=4), Path("short.zarr"))
    line = fails("evaluate", "run", "--store", "short.zarr")
    assert "trained on 8 seconds per video, store" in line
    assert "has 4" in line


def test_runs_on_stores_of_different_seconds_are_in_different_tables(workplace: Path) -> None:
    assert run_tiny_train("long").exit_code == 0
    write_store(make_store(seconds=4), Path("short.zarr"))
    assert run_tiny_train("short", "--store", "short.zarr").exit_code == 0
    tables = reported("long", "short")
    for seconds in (4, 8):
        assert f"## tiny 1, test ({seconds} s per video): complete" in tables


def test_a_scenario_without_questions_is_an_error(workplace: Path) -> None:
    manifest = load_manifest(Path("data"))
    change_manifest("natural", test=manifest.questions["train"][:4])
    assert run_tiny_train("run").exit_code == 0
    document_of("run", "--manifest", "natural", "--scenario", "natural")
    assert "has no questions in natural" in fails("evaluate", "run", "--scenario", "natural")


def test_a_moved_run_is_the_same_from_every_folder(workplace: Path, tmp_path: Path) -> None:
    assert run_tiny_train("run").exit_code == 0
    first = document_of("run")
    (tmp_path / "elsewhere").mkdir()
    Path("run").rename(tmp_path / "elsewhere" / "run")
    os.chdir(tmp_path / "elsewhere")
    assert document_of("run") == first
    assert len(read_results("run")) == 3 * len(SCENARIOS)


@pytest.mark.parametrize(
    "command",
    [
        ("train", *ON_TINY_DATA, "--preset", "demo", "--method", "zero-fill", "--out", "b/runs/zero-fill-seed0"),
        ("evaluate", "b/runs/zero-fill-seed0"),
        ("sweep", "tiny.toml", *ON_TINY_DATA, "--out", "b/runs"),
    ],
    ids=lambda command: command[0],
)
def test_a_folder_that_another_process_uses_is_refused(workplace: Path, command: tuple[str, ...]) -> None:
    run = Path("b/runs/zero-fill-seed0")
    if command[0] == "evaluate":
        assert run_tiny_train(run).exit_code == 0
    with locked(run, "a test"):
        result = invoke(*command)
    assert result.exit_code == (3 if command[0] == "sweep" else 2)
    assert f"{run} is in use by another training or evaluation" in result.stderr.splitlines()[-1]


def test_a_second_sweep_into_a_folder_is_refused_and_leaves_its_evaluation(workplace: Path) -> None:
    run_tiny_sweep()
    before = Path("b/runs/evaluation.json").read_bytes()
    with locked(Path("b/runs"), "a test"):
        line = fails("sweep", "tiny.toml", *ON_TINY_DATA, "--out", "b/runs", "--seeds", 2)
    assert "b/runs is in use by another sweep" in line
    assert Path("b/runs/evaluation.json").read_bytes() == before


def test_sweeps_into_neighbouring_folders_have_evaluations_of_their_own(workplace: Path) -> None:
    run_tiny_sweep()
    before = Path("b/runs/evaluation.json").read_bytes()
    assert invoke("sweep", "tiny.toml", *ON_TINY_DATA, "--out", "b/others", "--seeds", 2).exit_code == 0
    assert Path("b/runs/evaluation.json").read_bytes() == before


def test_a_run_is_resumed_with_its_own_settings(workplace: Path) -> None:
    assert run_tiny_train("run", "--seed", 3).exit_code == 0
    resumed = invoke("train", "--resume", "--out", "run", "--json")
    assert resumed.exit_code == 0, resumed.output
    assert accuracies_of(json.loads(resumed.stdout)) == accuracies_of(document_of("run"))
    line = fails("train", "--resume", "--out", "run", "--seed", 4)
    assert line.endswith("run was started with seed 3, not 4: pass another --out")
    line = fails("train", "--resume", "--out", "run", "--dataset", "other")
    assert line.endswith("run was started with dataset 'data', not 'other': pass another --out")
    assert invoke("train", "--resume", "--out", "run", "--dataset", "data").exit_code == 0


def test_a_finished_run_keeps_its_state_only_on_request(workplace: Path) -> None:
    assert run_tiny_train("plain").exit_code == 0
    assert run_tiny_train("kept", "--keep-state").exit_code == 0
    assert not Path("plain/last.safetensors").exists()
    assert Path("kept/last.safetensors").exists()


def test_the_files_of_a_run_follow_the_umask(workplace: Path) -> None:
    before = os.umask(0o022)
    try:
        assert run_tiny_train("run").exit_code == 0
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in Path("run").iterdir() if path.name != ".lock"}
    assert set(modes.values()) == {0o644}, modes


def test_an_evaluation_can_be_written_elsewhere(workplace: Path) -> None:
    assert run_tiny_train("run").exit_code == 0
    before = {path: path.read_bytes() for path in Path("run").iterdir()}
    document = document_of("run", "--out", "elsewhere", "--curves")
    assert {path: path.read_bytes() for path in Path("run").iterdir()} == before
    assert f"{document['scenarios']['complete']['overall']:.2f}" in reported("elsewhere")


def test_a_damaged_neighbour_does_not_end_a_training(workplace: Path) -> None:
    Path("runs/neighbour").mkdir(parents=True)
    Path("runs/neighbour/results.jsonl").write_text("{")
    assert run_tiny_train("runs/run").exit_code == 0


@pytest.mark.parametrize("device", ["mps", "meta"])
def test_a_device_other_than_cpu_and_cuda_is_refused(workplace: Path, device: str) -> None:
    assert f"device '{device}' is not supported" in fails(
        "train", "--manifest", "data", "--store", "store.zarr", "--device", device
    )


def test_a_checkpoint_with_a_header_that_is_no_text_is_one_line(workplace: Path) -> None:
    assert run_tiny_train("run").exit_code == 0
    checkpoint = Path("run/checkpoint.safetensors")
    content = bytearray(checkpoint.read_bytes())
    content[8:20] = b"\xff" * 12
    checkpoint.write_bytes(content)
    assert "checkpoint.safetensors is corrupt" in fails("evaluate", "run")


def test_a_full_disk_in_training_is_one_line(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    line = run_tiny_train("run")
    assert line.exit_code == 2, line.output
    assert "no space is left" in line.stderr.splitlines()[-1]


@pytest.mark.parametrize("out", ["/proc/none/run", "data/dataset.toml/run"])
def test_a_folder_that_cannot_be_created_is_one_line(workplace: Path, out: str) -> None:
    assert run_tiny_train("a").exit_code == 0
    training = run_tiny_train(out)
    assert training.exit_code == 2, training.output
    assert training.stderr.splitlines()[-1].startswith(f"Error: folder {out} cannot be created (")
    assert "cannot be created" in fails("evaluate", "a", "--out", out)
    assert "cannot be created" in fails("report", "a", "--out", out)


def test_an_epoch_that_was_selected_on_the_evaluated_split_is_said(workplace: Path) -> None:
    change_manifest("two", test=None)
    result = run_tiny_train("run", "--manifest", "two")
    assert result.exit_code == 0, result.output
    assert "val (the epoch was selected on it)" in result.stderr
    assert "in 1 of 1 runs the epoch was selected on them" in reported("run")
    assert document_of("run")["seen_in_training"] == "selection"


def test_a_manifest_without_val_and_test_is_refused_before_training(workplace: Path) -> None:
    change_manifest("one", val=None, test=None)
    line = run_tiny_train("run", "--manifest", "one")
    assert line.exit_code == 2
    assert "has no questions in test or val" in line.output
    assert not Path("run").exists()


def test_an_empty_val_split_is_called_empty(workplace: Path) -> None:
    change_manifest("empty", val=())
    result = run_tiny_train("run", "--manifest", "empty")
    assert result.exit_code == 2
    assert "the val split has no questions" in result.output
    assert not Path("run").exists()


def test_a_dataset_without_audio_is_not_advised_to_lower_a_missing_rate(workplace: Path) -> None:
    store = make_store(incomplete=False)
    store.states["audio"][:], store.step_counts["audio"][:] = 2, 0
    store.arrays["vggish"][:] = float("nan")
    write_store(store, Path("silent.zarr"))
    save_manifest(make_manifest(store), Path("silent"))
    result = run_tiny_train("run", "--manifest", "silent", "--store", "silent.zarr")
    assert result.exit_code == 2
    assert "no video of the train split has both audio and video" in result.output
