"""Rate curves: put together from single predictions they equal a new evaluation; what they need is asked for."""

import itertools
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from result_rows import row, save
from tiny_store import TinyStore, make_manifest, make_store

from pipeline.errors import UserError
from pipeline.manifests.manifest import Manifest
from train.cli.report import find_runs
from train.data.feature_bank import FeatureBank
from train.data.scenarios import draw_masks
from train.evaluation.evaluate_run import evaluate_run
from train.evaluation.rate_curves import add_curves, rate_grid
from train.report.page import write_report
from train.report.rates import surfaces
from train.report.tables import build_blocks
from train.runs.results import Masking, predictions_path, read_results
from train.training.sweep import Grid, list_cells, run_cells

GRID = Grid.model_validate(
    {
        "preset": "demo",
        "curves": True,
        "settings": {
            "epochs": 12,
            "learning_rate": 1e-2,
            "channels": 16,
            "heads": 2,
            "time_steps": 4,
            "batch_size": 16,
        },
        "methods": [
            {"name": "start", "method": "zero-fill", "epochs": 1, "evaluate": False},
            {"name": "zero-fill"},
            {"name": "later", "method": "modality-dropout", "start_from": "start", "epochs": 1},
        ],
    }
)


@pytest.fixture(scope="module")
def store() -> TinyStore:
    return make_store()


@pytest.fixture(scope="module")
def manifest(store: TinyStore) -> Manifest:
    return make_manifest(store)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, store: TinyStore, manifest: Manifest) -> Path:
    out = tmp_path_factory.mktemp("curves") / "runs"
    told = run_cells(list_cells(GRID, (0, 1), "manifest", "store", "cpu"), manifest, FeatureBank(store), out)
    assert not any(name.startswith("start") for name in told)
    assert not any(scenario.startswith("masked") for document in told.values() for scenario in document["scenarios"])
    assert not (out / "start-seed0" / "results.jsonl").exists()
    complete, deaf = (
        predictions_path(out / "zero-fill-seed0", "test", name).read_text() for name in ("complete", "audio-missing")
    )
    assert complete != deaf, "a model that answers alike in all scenarios would let every curve pass"
    return out


def rows_of(run: Path) -> dict[str, object]:
    return {found.scenario: found for found in read_results(run / "results.jsonl") if found.kind == "model"}


def test_the_grid_has_every_pair_of_tenths_that_leaves_no_question_without_both() -> None:
    pairs = {(rates.get("audio", 0.0), rates.get("visual", 0.0)) for rates in rate_grid()}
    tenths = [number / 10 for number in range(11)]
    assert pairs == {(a, v) for a, v in itertools.product(tenths, tenths) if 0 < round(10 * (a + v)) <= 10}
    assert len(rate_grid()) == 65


@pytest.mark.parametrize("rates", [{"audio": 0.3}, {"visual": 0.7}, {"audio": 0.4, "visual": 0.3}, {"audio": 1.0}])
def test_a_point_of_a_curve_equals_an_evaluation_under_its_masks(
    runs: Path, store: TinyStore, manifest: Manifest, rates: dict[str, float], tmp_path: Path
) -> None:
    run = tmp_path / "zero-fill-seed0"
    shutil.copytree(runs / run.name, run)
    masks = draw_masks(manifest.questions["test"], rates, seed=0)
    told = rows_of(run)[masks.name]
    (run / "results.jsonl").unlink()
    assert evaluate_run(run, manifest, FeatureBank(store), masks=masks) == [masks.name]
    assert rows_of(run)[masks.name] == told


def test_the_ends_of_a_curve_are_the_scenarios(runs: Path) -> None:
    rows = rows_of(runs / "zero-fill-seed0")
    for modality in ("audio", "visual"):
        assert rows[f"masked-{modality}=1"].accuracies == rows[f"{modality}-missing"].accuracies


def test_videos_lose_a_modality_as_a_whole_where_asked(runs: Path, manifest: Manifest, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs / "zero-fill-seed0", run)
    assert "masked-audio=0.5-video-seed2" in add_curves(run, manifest, "test", unit="video", seed=2)
    assert rows_of(run)["masked-audio=0.5-video-seed2"].masking == Masking(rates={"audio": 0.5}, unit="video", seed=2)


def test_what_is_needed_and_not_there_is_named(
    runs: Path, store: TinyStore, manifest: Manifest, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs / "zero-fill-seed0", run)
    other = replace(manifest, questions={**manifest.questions, "test": manifest.questions["test"][1:]})
    with pytest.raises(UserError, match="other questions"):
        add_curves(run, other, "test")
    (run / "results.jsonl").unlink()
    evaluate_run(run, manifest, FeatureBank(store), scenarios=["complete", "audio-missing"])
    with pytest.raises(UserError, match="no results of visual-missing"):
        add_curves(run, manifest, "test")


def test_seeds_that_began_from_their_own_seeds_run_are_one_method(runs: Path, tmp_path: Path) -> None:
    evaluated = find_runs(runs)
    rows = [found for run in evaluated for found in rows_of(run).values()]
    (complete,) = [block for block in build_blocks(rows) if block.scenario == "complete"]
    assert [(line.method, line.seeds) for line in complete.lines] == [
        ("modality-dropout", (0, 1)),
        ("zero-fill", (0, 1)),
    ]
    learned = {found.parameters for found in rows}
    assert len(learned) == 1
    assert f"{learned.pop():,}" in (text := write_report(evaluated, tmp_path).read_text())
    assert text.count("<svg") == 5
    assert "Accuracy by missing rate" in text
    assert "masked-audio" not in text


def test_one_draw_of_masks_is_shown_and_only_lines_that_answered_masked_questions(tmp_path: Path) -> None:
    def masked(rate: float, unit: str = "question", correct: int = 8) -> object:
        masking = Masking(rates={"audio": rate}, unit=unit, seed=0)
        return row("zero-fill", correct=correct, scenario=f"masked-{rate}-{unit}", masking=masking)

    rows = [row("zero-fill", correct=9), row("rmm"), masked(0.5), masked(1.0), masked(0.5, "video", 1)]
    found = surfaces(build_blocks(rows))
    assert list(found) == ["zero-fill"]
    assert set(found["zero-fill"]) == {(0.0, 0.0), (0.5, 0.0), (1.0, 0.0)}
    page = write_report(save(tmp_path / "runs", rows), tmp_path / "out").read_text()
    assert "Both rates at once" not in page


def test_a_part_of_every_video_can_go(runs: Path, store: TinyStore, manifest: Manifest, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs / "zero-fill-seed0", run)
    bank = FeatureBank(store)
    assert evaluate_run(run, manifest, bank, parts={"visual": 0.5}) == ["partly-visual=0.5"]
    assert evaluate_run(run, manifest, bank, parts={"visual": 0.0}) == ["partly-visual=0"]
    rows = rows_of(run)
    assert rows["partly-visual=0"].accuracies == rows["complete"].accuracies
    assert rows["partly-visual=0.5"].questions_sha256 == rows["complete"].questions_sha256
