"""Sweeps: cells trained, evaluated and resumed, finished ones skipped; the documents of their results."""

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from result_rows import stored_predictions
from tiny_store import CLASSES, TinyStore, make_manifest, make_store, write_store

import train.training.fit
from pipeline.errors import UserError
from pipeline.machine import available_cores
from pipeline.manifests.manifest import Manifest, save_manifest
from pipeline.store.reader import open_store
from train.backbones.registry import BACKBONES
from train.data.feature_bank import FeatureBank
from train.data.loading import CACHED_SHARE, LoadingSettings
from train.data.scenarios import sample_masks
from train.evaluation.evaluate_run import evaluate_run
from train.evaluation.rate_curves import rate_grid
from train.evaluation.statistics import interval_over_videos
from train.evaluation.summary import summarise_rows
from train.methods.registry import METHODS
from train.report.page import write_report
from train.runs.results import read_results
from train.training.parallel import run_jobs
from train.training.sweep import Cell, Grid, Outcome, list_cells, read_grid, run_cells

TINY = {"epochs": 2, "channels": 16, "heads": 2, "time_steps": 4, "batch_size": 16, "device": "cpu"}
GRID = Grid.model_validate(
    {
        "preset": "demo",
        "settings": {name: value for name, value in TINY.items() if name != "device"},
        "methods": [
            {"name": "question-only", "inputs": "question"},
            {"name": "zero-fill"},
        ],
    }
)
SCENARIOS = ["complete", "audio-missing", "visual-missing", "both-missing"]


def cells(seeds: tuple[int, ...] = (0,)) -> list[Cell]:
    return list_cells(GRID, seeds, "manifest", "store", "cpu")


@pytest.fixture(scope="module")
def store() -> TinyStore:
    return make_store()


@pytest.fixture(scope="module")
def manifest(store: TinyStore) -> Manifest:
    return make_manifest(store)


@pytest.fixture(scope="module")
def swept(
    tmp_path_factory: pytest.TempPathFactory, store: TinyStore, manifest: Manifest
) -> tuple[Path, dict[str, dict]]:
    out = tmp_path_factory.mktemp("sweep") / "runs"
    outcome = run_cells(cells(), manifest, FeatureBank(store), out)
    assert outcome.failures == {}
    return out, outcome.documents


def test_a_grid_is_the_product_of_its_parts() -> None:
    names = [cell.name for cell in cells((0, 1))]
    assert names == ["question-only-seed0", "zero-fill-seed0", "question-only-seed1", "zero-fill-seed1"]
    assert [cell.config.seed for cell in cells((0, 1))] == [0, 0, 1, 1]
    assert cells()[0].config.method == "reference"


@pytest.mark.parametrize(
    ("head", "backbone"),
    [({"preset": "pano"}, "pano"), ({"preset": "avsd", "backbones": ["pano"]}, "pano"), ({}, "avst")],
)
def test_a_grid_without_backbones_has_that_of_its_preset(head: dict, backbone: str) -> None:
    (cell,) = list_cells(Grid.model_validate({**head, "methods": [{"name": "rmm"}]}), None, "m", "s")
    assert (cell.name, cell.config.backbone) == ("rmm-seed0", backbone)


def test_the_demo_grid_has_its_four_methods_and_their_starting_runs() -> None:
    grid = read_grid(Path(train.__file__).parent / "grids" / "demo.toml")
    cells = list_cells(grid, (0, 2), "m", "s")
    names = ["question-only-seed0", "zero-fill-seed0", "modality-dropout-seed0", "rmm-avr-seed0"]
    assert [cell.name for cell in cells] == names + [name.replace("seed0", "seed2") for name in names]
    assert [cell.config.start_from for cell in cells][4:] == ["", "", *["zero-fill-seed2"] * 2]


@pytest.mark.parametrize("grid", sorted((Path(train.__file__).parent / "grids").glob("*.toml")), ids=lambda p: p.stem)
def test_every_committed_grid_has_known_methods_backbones_and_starting_runs(grid: Path) -> None:
    cells = list_cells(read_grid(grid), None, "m", "s")
    names = [cell.name for cell in cells]
    for cell in cells:
        assert cell.config.method in METHODS
        assert cell.config.backbone in BACKBONES
        assert not cell.config.start_from or names.index(cell.config.start_from) < names.index(cell.name)
    seeds = {"demo": 1, "tuning": 1, "dial": 5, "methods": 5}.get(grid.stem, 3)
    assert {cell.config.seed for cell in cells} == set(range(seeds))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("methods = 3", "methods"),
        ("preset = 'demo'", "methods"),
        (
            "colour = 'red'\n[[methods]]\nname = 'a'",
            "entry 'colour' is unknown: choose one of preset, backbones,",
        ),
        ("seed = [1]\n[[methods]]\nname = 'a'", r"entry 'seed' is unknown \(did you mean 'seeds'\?\): choose one of"),
        ("[[methods]]\nmethod = 'rmm'", "name"),
        ("][", "not valid TOML"),
    ],
)
def test_the_error_for_an_invalid_grid_has_its_entry(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "grid.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_grid(path)


def test_a_run_can_only_start_from_an_earlier_entry() -> None:
    for start in ("later", "first", "nowhere"):
        methods = [{"name": "first", "method": "zero-fill", "start_from": start}, {"name": "later", "method": "rmm"}]
        with pytest.raises(UserError, match=f"grid, method 'first' starts from '{start}-seed0'"):
            list_cells(Grid.model_validate({"methods": methods}), None, "m", "s")


def test_the_name_of_an_entry_is_its_method_unless_it_chooses_a_model() -> None:
    settings = [{}, {"inputs": "all"}, {"objective": "answer"}, {"method": "avr"}, {"inputs": "question"}]
    methods = [{"name": "rmm", **entry} for entry in settings]
    grids = [{"preset": "avst", "settings": {"method": "zero-fill"}, "methods": [entry]} for entry in methods]
    cells = [list_cells(Grid.model_validate(grid), None, "m", "s")[0] for grid in grids]
    assert [cell.config.method for cell in cells] == ["rmm", "rmm", "rmm", "avr", "reference"]


def test_an_entry_of_pre_training_needs_no_method() -> None:
    methods = [{"name": "pairs", "objective": "grounding"}, {"name": "zero-fill", "start_from": "pairs"}]
    first, second = list_cells(Grid.model_validate({"preset": "avst", "methods": methods}), None, "m", "s")
    assert (first.config.objective, first.is_evaluated, second.config.start_from) == ("grounding", False, "pairs-seed0")


def test_an_unknown_setting_and_a_repeated_name_are_errors() -> None:
    unknown = Grid.model_validate({"methods": [{"name": "a", "method": "rmm", "colour": "red"}]})
    with pytest.raises(UserError, match=r"^grid, method 'a': setting colour = 'red' is unknown: choose one of"):
        list_cells(unknown, None, "m", "s")
    repeated = Grid.model_validate({"methods": [{"name": "a", "method": "rmm"}, {"name": "a", "method": "avr"}]})
    with pytest.raises(UserError, match="two runs named 'a-seed0'"):
        list_cells(repeated, None, "m", "s")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("epochs = 0", "epochs = 0: Input should be greater"),
        ("seed = 3", "setting 'seed' cannot be set here: use the grid's seeds"),
        ("[settings]\nseed = 3", "setting 'seed' cannot be set here: use the grid's seeds"),
        ("backbone = 'pano'", "setting 'backbone' cannot be set here: use the grid's backbones"),
        ("preset = 'demo'", "setting 'preset' cannot be set here: use the grid's preset"),
        ("store = 's'", "setting 'store' cannot be set here: use --store"),
        ("options = 3", "options = 3: pass a table"),
        ("missing_rates = {audio = 2.0}", "missing rate .* audio=2.0"),
        ("method = 'reference'", "method 'reference' only trains"),
        ("method = 'rmm-avr'\ninputs = 'question'", "--method rmm-avr and --inputs question exclude each other"),
        ("[settings]\ninputs = 'question'", "--method zero-fill and --inputs question exclude each other"),
        ("start_from = 'b'", "starts from"),
        ("method = ['rmm']", r"method = \['rmm'\]: Input should be a valid string"),
        ("[settings]\nstart_from = {x = 1}", r"start_from = \{'x': 1\}: Input should be a valid string"),
        ("[[methods]]\nname = 'zero-fill'", "two runs named"),
        ("[[methods]]\nname = 'Zero-Fill'\nmethod = 'rmm'", "two runs named"),
        ("epochs = true", "epochs = True: Input should be a valid integer"),
        ("whiten = 1", "whiten = 1: Input should be a valid boolean"),
        ("evaluate = 'no'", "evaluate = 'no': Input should be a valid boolean"),
        ("epoch = 3", r"method 'zero-fill': setting epoch = 3 is unknown \(did you mean 'epochs'\?\): choose one of"),
        ("evalute = false", r"setting evalute = False is unknown \(did you mean 'evaluate'\?\): choose one of name,"),
        ("[settings]\nepoch = 3", r"\bsettings: setting epoch = 3 is unknown \(did you mean 'epochs'\?\)"),
    ],
)
def test_the_error_for_an_entry_of_a_grid_has_its_file(tmp_path: Path, settings: str, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(f"[[methods]]\nname = 'zero-fill'\n{settings}\n")
    with pytest.raises(UserError, match=rf"^grid \S+mine.toml.*{message}"):
        list_cells(read_grid(path), None, "m", "s")


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"name": "telepathy"}, "grid, method 'telepathy': method 'telepathy' is unknown"),
        ({"name": "RMM"}, r"method 'RMM' is unknown \(did you mean 'rmm'\?\): choose one of zero-fill, "),
        (
            {"name": "rmm", "options": {"slot": 3}},
            r"grid, method 'rmm': method 'rmm' has no option 'slot' \(did you mean 'slots'\?\): its options are",
        ),
        (
            {"name": "rmm", "backbone_options": {"layer": 3}},
            r"grid, method 'rmm': backbone 'avst' has no option 'layer': its options are none",
        ),
        ({"name": "rmm", "variant": "recomended"}, r"no variant 'recomended' \(did you mean 'recommended'\?\): choose"),
        (
            {"name": "rmm", "options": {"slots": "x"}},
            "grid, method 'rmm': option 'slots' of method 'rmm' is 'x': .* int",
        ),
        ({"name": "rmm", "heads": 3}, "grid, method 'rmm': backbone 'avst' cannot be built: .* divisible"),
        ({"name": "rmm", "map_size": 99}, "grid, method 'rmm': map size 99"),
    ],
)
def test_the_error_for_a_run_that_cannot_be_built_has_its_entry(
    store: TinyStore, manifest: Manifest, tmp_path: Path, method: dict, message: str
) -> None:
    grid = GRID.model_validate({**GRID.model_dump(), "methods": [method]})
    with pytest.raises(UserError, match=message):
        run_cells(list_cells(grid, (0,), "m", "s", "cpu"), manifest, FeatureBank(store), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_method_is_an_error_before_any_training(
    store: TinyStore, manifest: Manifest, tmp_path: Path
) -> None:
    grid = GRID.model_validate({**GRID.model_dump(), "methods": [{"name": "zero-fill"}, {"name": "telepathy"}]})
    with pytest.raises(UserError, match="telepathy"):
        run_cells(list_cells(grid, (0,), "m", "s", "cpu"), manifest, FeatureBank(store), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("../../evil", "it has a slash"),
        ("/evil", "it has a slash"),
        ("a/b", "it has a slash"),
        ("a\\b", "it has a backslash"),
        ("", "not a plain name"),
        (".", "not a plain name"),
        ("..", "not a plain name"),
        ("a\tb", r"it has the control character U\+0009"),
        ("a\0", r"it has the control character U\+0000"),
        ("é" * 101, "has 202 bytes, more than 200"),
        ("-rf", "begins with '-'"),
        (".lock", "begins with '.'"),
        (" ", "has a blank at its beginning or end"),
        ("a ", "has a blank at its beginning or end"),
    ],
)
def test_the_name_of_an_entry_cannot_lead_out_of_the_folder(name: str, problem: str) -> None:
    grid = Grid.model_validate({"methods": [{"name": name, "method": "rmm"}]})
    with pytest.raises(UserError, match=rf"^grid, method .*: name .*{problem}.*: choose another$"):
        list_cells(grid, None, "m", "s")


def test_a_diverging_run_does_not_stop_the_others_and_those_that_start_from_it_are_skipped(
    store: TinyStore, manifest: Manifest, tmp_path: Path
) -> None:
    methods = [
        {"name": "wild", "method": "zero-fill", "learning_rate": 1e38},
        {"name": "after", "method": "modality-dropout", "start_from": "wild"},
        {"name": "wilder", "method": "zero-fill", "learning_rate": 1e38, "batch_size": 64},
        {"name": "calm", "method": "zero-fill", "epochs": 1},
    ]
    grid = GRID.model_validate({**GRID.model_dump(), "methods": methods})
    ended = []
    outcome = run_cells(
        list_cells(grid, (0,), "m", "s", "cpu"),
        manifest,
        FeatureBank(store),
        tmp_path,
        lambda run, progress: progress is None and ended.append(run),
    )
    assert list(outcome.documents) == ["calm-seed0"]
    assert list(outcome.failures) == ended[:3] == ["wild-seed0", "after-seed0", "wilder-seed0"]
    assert ended[3:] == ["calm-seed0"]
    assert "is not finite: lower the learning rate" in outcome.failures["wild-seed0"]
    assert outcome.failures["after-seed0"] == "skipped, it starts from wild-seed0"
    assert "are not finite: it diverged" in outcome.failures["wilder-seed0"]
    assert not (tmp_path / "after-seed0").exists()


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_of_a_grid_is_one_of_torch(seed: int) -> None:
    grid = Grid.model_validate({"seeds": [seed], "methods": [{"name": "rmm"}]})
    with pytest.raises(UserError, match=f"^grid, method 'rmm': seed = {seed}: Input should be (less|greater) than or"):
        list_cells(grid, None, "m", "s")


def test_every_cell_is_trained_and_evaluated(swept: tuple[Path, dict[str, dict]]) -> None:
    out, documents = swept
    assert list(documents) == ["question-only-seed0", "zero-fill-seed0"]
    for name, document in documents.items():
        assert (document["run"], document["split"]) == (name, "test")
        assert list(document["scenarios"]) == SCENARIOS
        assert document["scenarios"]["complete"]["questions"] == 10
        assert (out / name / "checkpoint.safetensors").exists()


def test_the_document_has_the_documented_keys_and_its_floors(swept: tuple[Path, dict[str, dict]]) -> None:
    documents = swept[1]
    document = documents["zero-fill-seed0"]
    assert set(document) == {"run", "split", "seen_in_training", "left_out", "unknown_answers", "scenarios", "floors"}
    scenario = document["scenarios"]["audio-missing"]
    assert set(scenario) == {"overall", "questions", "groups", "types"}
    assert set(scenario["types"]["Audio Counting"]) == {"accuracy", "correct", "questions"}
    correct = sum(group["correct"] for group in scenario["groups"].values())
    assert scenario["overall"] == pytest.approx(100 * correct / scenario["questions"])
    assert set(document["floors"]) == {"template_majority", "filled_majority", "question_only"}
    reference = documents["question-only-seed0"]["scenarios"]["complete"]["overall"]
    assert document["floors"]["question_only"] == reference


def test_a_question_only_model_gives_the_same_answers_in_every_scenario(swept: tuple[Path, dict[str, dict]]) -> None:
    scenarios = swept[1]["question-only-seed0"]["scenarios"]
    assert len({json.dumps(scenario) for scenario in scenarios.values()}) == 1


def test_predictions_are_saved_for_every_scenario(swept: tuple[Path, dict[str, dict]]) -> None:
    out, documents = swept
    for scenario in SCENARIOS:
        saved = stored_predictions(out / "zero-fill-seed0", scenario)
        expected = documents["zero-fill-seed0"]["scenarios"][scenario]["overall"]
        assert 100 * sum(p.correct for p in saved) / len(saved) == expected
        assert {p.prediction for p in saved} <= set(CLASSES)


def test_the_results_have_floors_on_the_same_questions(swept: tuple[Path, dict[str, dict]]) -> None:
    rows = [
        row
        for row in read_results(swept[0] / "zero-fill-seed0" / "results.jsonl")
        if row.split == "test" and row.scenario in SCENARIOS
    ]
    assert len(rows) == 3 * len(SCENARIOS)
    assert len({row.subject.questions_sha256 for row in rows}) == 1
    assert {row.kind for row in rows if row.method == "filled-majority"} == {"floor"}
    assert set(rows[0].subject.features) == {"vggish", "resnet18-map"}


def test_a_second_sweep_does_not_train_or_evaluate(
    swept: tuple[Path, dict[str, dict]], store: TinyStore, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, documents = swept
    before = {path: path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}
    monkeypatch.setattr(train.training.fit, "Loop", None)
    assert run_cells(cells(), manifest, FeatureBank(store), out) == Outcome(documents, {})
    assert {path: path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()} == before


def test_a_sweep_completes_the_evaluation_of_a_partly_evaluated_run(
    swept: tuple[Path, dict[str, dict]], store: TinyStore, manifest: Manifest, tmp_path: Path
) -> None:
    runs = shutil.copytree(swept[0], tmp_path / "runs")
    results = runs / "zero-fill-seed0" / "results.jsonl"
    lines = results.read_text().splitlines()
    results.write_text("".join(line + "\n" for line in lines if '"scenario":"complete"' in line))
    bank = FeatureBank(store)
    evaluate_run(
        runs / "zero-fill-seed0", manifest, bank, masks=sample_masks(manifest.questions["test"], {"audio": 0.5}, seed=0)
    )
    with_curves = [replace(cell, curves=True) for cell in cells()]
    assert run_cells(with_curves, manifest, bank, runs).documents == swept[1]
    rates = [row.masking.rates for row in read_results(results) if row.masking]
    assert all(pair in rates for pair in rate_grid())


def test_rows_record_the_missing_modalities_and_videos_of_the_training(swept: tuple[Path, dict[str, dict]]) -> None:
    rows = read_results(swept[0] / "zero-fill-seed0" / "results.jsonl")
    assert {(row.sees, row.trains_on) for row in rows if row.kind == "model"} == {("nothing", "complete")}
    assert {row.sees for row in rows if row.kind == "floor"} == {""}


def test_a_row_has_the_interval_over_the_videos_of_its_predictions(swept: tuple[Path, dict[str, dict]]) -> None:
    run = swept[0] / "zero-fill-seed0"
    for row in (row for row in read_results(run / "results.jsonl") if row.split == "test" and not row.masking):
        predictions = stored_predictions(run, row.scenario)
        interval = interval_over_videos([p.correct for p in predictions], [p.video_id for p in predictions])
        assert row.interval == (interval if row.kind == "model" else None)


def test_a_stopped_sweep_resumes_to_the_same_result(
    swept: tuple[Path, dict[str, dict]],
    store: TinyStore,
    manifest: Manifest,
    tmp_path: Path,
) -> None:
    def stop(run: str, progress: train.training.loop.Progress) -> None:
        if run == "zero-fill-seed0" and progress.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_cells(cells(), manifest, FeatureBank(store), tmp_path, stop)
    assert not (tmp_path / "zero-fill-seed0" / "results.jsonl").exists()
    assert run_cells(cells(), manifest, FeatureBank(store), tmp_path).documents == swept[1]
    for file in ("checkpoint.safetensors", "metrics.jsonl", "results.jsonl"):
        assert (tmp_path / "zero-fill-seed0" / file).read_bytes() == (swept[0] / "zero-fill-seed0" / file).read_bytes()
    assert _tables(tmp_path) == _tables(swept[0])


@pytest.fixture
def stored(store: TinyStore, manifest: Manifest, tmp_path: Path) -> dict[str, str]:
    """The manifest and the store, written for processes that open them."""
    save_manifest(manifest, tmp_path / "data")
    write_store(store, tmp_path / "store.zarr")
    return {"manifest": str(tmp_path / "data"), "store": str(tmp_path / "store.zarr")}


def test_a_cell_has_the_same_weights_in_whichever_process_and_order_it_runs(
    stored: dict[str, str], manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = GRID.model_validate({**GRID.model_dump(), "methods": [{"name": "rmm"}, {"name": "modality-dropout"}]})
    first, second = (replace(cell, evaluate=False) for cell in list_cells(grid, (0,), **stored, device="cpu"))

    def run_in_one_process(jobs: dict[str, Cell], _: object, *others) -> dict[str, str]:
        return run_jobs(jobs, {second.name: first.name}, *others)

    monkeypatch.setattr("train.training.sweep.run_jobs", run_in_one_process)
    threads, before = max(1, available_cores() // 2), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for jobs, ordered in ((1, [second, first]), (2, [first, second])):
            run_cells(ordered, manifest, FeatureBank(open_store(stored["store"])), tmp_path / str(jobs), jobs=jobs)
    finally:
        torch.set_num_threads(before)
    for run in (first.name, second.name):
        here, there = (tmp_path / jobs / run for jobs in ("1", "2"))
        assert (there / "checkpoint.safetensors").read_bytes() == (here / "checkpoint.safetensors").read_bytes()
        assert (there / "config.json").read_bytes() == (here / "config.json").read_bytes()
        assert json.loads((there / "environment.json").read_text())["threads"] == threads


def test_parallel_cells_share_the_visible_gpus_and_their_memory(
    store: TinyStore, manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed: list[tuple[LoadingSettings, list[dict[str, str]]]] = []

    def run(jobs: dict[str, Cell], depends_on: object, work: partial, environments: list, report: object):
        passed.append((work.args[1], environments))
        return dict.fromkeys(jobs, "not started")

    monkeypatch.setattr("train.training.sweep.run_jobs", run)
    monkeypatch.setattr("train.runs.device.visible_gpus", lambda: ("4", "7"))
    bank = FeatureBank(store, LoadingSettings("memory", 900))
    for device in ("auto", "cpu"):
        run_cells(list_cells(GRID, (0,), "m", "s", device), manifest, bank, tmp_path, jobs=3)
    (on_gpus, environments), (on_cpu, without) = passed
    assert [environment["CUDA_VISIBLE_DEVICES"] for environment in environments] == ["4", "7", "4"]
    assert without == [{}] * 3
    assert (on_gpus.memory_bytes, on_gpus.device_share) == (300, CACHED_SHARE / 2)
    assert on_cpu.memory_bytes == 300


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_each_process_trains_on_a_gpu_of_its_own(stored: dict[str, str], manifest: Manifest, tmp_path: Path) -> None:
    bank = FeatureBank(open_store(stored["store"]), device="cuda")
    cells = list_cells(GRID, (0, 1), **stored)
    assert run_cells(cells, manifest, bank, tmp_path / "runs", jobs=2).failures == {}
    runs = [tmp_path / "runs" / cell.name for cell in cells]
    gpus = {json.loads((run / "environment.json").read_text())["device_uuid"] for run in runs}
    assert len(gpus - {None}) == min(2, torch.cuda.device_count())
    assert {json.loads((run / "config.json").read_text())["device"] for run in runs} == {"auto"}


def _tables(runs: Path) -> dict[str, bytes]:
    """Return the files of the runs' report except the page, which contains the training times."""
    names = [cell.name for cell in cells()]
    page = write_report([runs / name for name in names], runs.parent / f"{runs.name}-report")
    return {path.name: path.read_bytes() for path in page.parent.iterdir() if path != page}


def test_a_folder_trained_on_other_questions_is_a_failure(
    swept: tuple[Path, dict[str, dict]], store: TinyStore
) -> None:
    other = make_manifest(store, shares=(0.5, 0.8))
    outcome = run_cells(cells(), other, FeatureBank(store), swept[0])
    assert outcome.documents == {}
    assert list(outcome.failures) == ["question-only-seed0", "zero-fill-seed0"]
    assert all("other questions or features" in cause for cause in outcome.failures.values())


def test_masks_form_a_scenario_of_their_own(
    swept: tuple[Path, dict[str, dict]], store: TinyStore, manifest: Manifest
) -> None:
    run = swept[0] / "zero-fill-seed0"
    masks = sample_masks(manifest.questions["test"], {"audio": 0.5}, seed=3)
    rows = evaluate_run(run, manifest, FeatureBank(store), masks=masks)
    assert list(summarise_rows(rows)["scenarios"]) == ["masked-audio=0.5-seed3"]


def test_natural_questions_are_a_separate_scenario_in_the_results(
    swept: tuple[Path, dict[str, dict]], store: TinyStore, manifest: Manifest
) -> None:
    run = swept[0] / "zero-fill-seed0"
    scenarios = summarise_rows(evaluate_run(run, manifest, FeatureBank(store), "train"))["scenarios"]
    assert list(scenarios) == [*SCENARIOS, "natural"]
    assert scenarios["natural"]["questions"] == 4
    assert scenarios["complete"]["questions"] == len(manifest.questions["train"]) - 4


def test_the_question_only_floor_must_be_from_a_question_only_run(swept: tuple[Path, dict[str, dict]]) -> None:
    run = swept[0] / "zero-fill-seed0"
    with pytest.raises(UserError, match="not a question-only run with seed 0"):
        summarise_rows(read_results(run), question_only=run)


def test_the_runs_of_a_sweep_can_be_reported(swept: tuple[Path, dict[str, dict]], tmp_path: Path) -> None:
    out, _ = swept
    page = write_report(sorted(path for path in out.iterdir() if path.is_dir()), tmp_path)
    assert "question-only" in page.read_text(encoding="utf-8")
