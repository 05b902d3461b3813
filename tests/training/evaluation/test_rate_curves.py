"""Rate curves: equal to a new evaluation at each rate, errors for missing results, plots; evaluation of parts."""

import itertools
import shutil
from pathlib import Path

import pytest
from result_rows import row, save, stored_predictions
from tiny_store import TinyStore, make_manifest, make_store

from pipeline.errors import UserError
from pipeline.manifests.manifest import Manifest
from train.cli.report import find_runs
from train.data.feature_bank import FeatureBank
from train.data.scenarios import sample_masks
from train.evaluation.evaluate_run import evaluate_run
from train.evaluation.rate_curves import add_curves, rate_grid
from train.evaluation.statistics import Estimate, Interval
from train.report.hits import read_hits
from train.report.page import write_report
from train.report.rate_plots import draw_rate_curves, rate_surfaces
from train.report.tables import build_blocks
from train.runs.results import Count, Masking, ResultRow, read_results
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
    cells = list_cells(GRID, (0, 1), "manifest", "store", "cpu")
    documents = run_cells(cells, manifest, FeatureBank(store), out).documents
    assert not any(name.startswith("start") for name in documents)
    scenarios = {scenario for document in documents.values() for scenario in document["scenarios"]}
    assert not any(scenario.startswith("masked") for scenario in scenarios)
    assert not (out / "start-seed0" / "results.jsonl").exists()
    complete, audio_missing = (
        stored_predictions(out / "zero-fill-seed0", name) for name in ("complete", "audio-missing")
    )
    assert complete != audio_missing, "a model with equal answers in all scenarios would make every curve test pass"
    return out


def rows_of(run: Path) -> dict[str, ResultRow]:
    return {row.scenario: row for row in read_results(run / "results.jsonl") if row.kind == "model"}


def test_the_grid_has_every_pair_of_tenths_with_a_sum_of_at_most_one() -> None:
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
    masks = sample_masks(manifest.questions["test"], rates, seed=0)
    point = rows_of(run)[masks.name]
    (run / "results.jsonl").unlink()
    assert evaluate_run(run, manifest, FeatureBank(store), masks=masks)[0].scenario == masks.name
    # The predictions that a point combines are stored without their probabilities.
    assert point.reliability is None
    assert rows_of(run)[masks.name].model_copy(update={"reliability": None}) == point


def test_a_point_of_a_curve_has_the_interval_of_the_predictions_that_it_combines(
    runs: Path, store: TinyStore, manifest: Manifest, tmp_path: Path
) -> None:
    evaluated = find_runs(runs)
    folders = {row.key: run for run in evaluated for row in read_results(run / "results.jsonl")}
    rows = [row for run in evaluated for row in rows_of(run).values()]
    hits = read_hits(rows, folders)
    assert hits.keys() == {row.key for row in rows}
    run = tmp_path / "zero-fill-seed0"
    shutil.copytree(runs / run.name, run)
    (run / "results.jsonl").unlink()
    masks = sample_masks(manifest.questions["test"], {"audio": 0.4, "visual": 0.3}, seed=0)
    (evaluation, *_) = evaluate_run(run, manifest, FeatureBank(store), masks=masks)
    answered = stored_predictions(run, evaluation.scenario)
    by_question = {p.question_id: p.correct for p in answered}
    combined = hits[rows_of(runs / run.name)[masks.name].key]
    asked = [question.question_id for question in combined.questions.questions]
    assert dict(zip(asked, combined.correct, strict=True)) == by_question
    complete = hits[rows_of(runs / run.name)["complete"].key]
    assert combined.correct.tolist() != complete.correct.tolist()


def test_a_curve_whose_predictions_have_other_counts_is_an_error(runs: Path) -> None:
    run = runs / "zero-fill-seed0"
    rows = rows_of(run)
    folders = {row.key: run for row in rows.values()}
    point = rows["masked-audio=0.5"]
    count = point.accuracies.overall
    other = point.accuracies.model_copy(update={"overall": Count(correct=0, questions=count.questions)})
    changed = [rows[name] for name in ("complete", "audio-missing", "visual-missing")]
    assert count.correct > 0
    with pytest.raises(UserError, match=r"0 of \d+ correct in masked-audio=0\.5, its predictions [1-9]"):
        read_hits([*changed, point.model_copy(update={"accuracies": other})], folders)


def test_a_missing_rate_of_one_equals_the_scenario(runs: Path) -> None:
    rows = rows_of(runs / "zero-fill-seed0")
    for modality in ("audio", "visual"):
        assert rows[f"masked-{modality}=1"].accuracies == rows[f"{modality}-missing"].accuracies


def test_curves_can_be_sampled_per_video_with_another_seed(runs: Path, manifest: Manifest, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs / "zero-fill-seed0", run)
    curve = add_curves(run, rows_of(run)["complete"], manifest, unit="video", seed=2)
    assert "masked-audio=0.5-video-seed2" in [row.scenario for row in curve]
    masking = rows_of(run)["masked-audio=0.5-video-seed2"].masking
    assert (masking.rates, masking.unit, masking.seed) == ({"audio": 0.5}, "video", 2)


def test_missing_scenarios_are_an_error(runs: Path, store: TinyStore, manifest: Manifest, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs / "zero-fill-seed0", run)
    (run / "results.jsonl").unlink()
    rows = evaluate_run(run, manifest, FeatureBank(store), scenarios=["complete", "audio-missing"])
    with pytest.raises(UserError, match="no results of visual-missing"):
        add_curves(run, rows[0], manifest)


def test_seeds_that_start_from_a_run_of_their_own_seed_are_pooled(runs: Path, tmp_path: Path) -> None:
    evaluated = find_runs(runs)
    rows = [row for run in evaluated for row in rows_of(run).values()]
    (complete,) = [block for block in build_blocks(rows) if block.scenario == "complete"]
    assert [(line.method, line.seeds) for line in complete.lines] == [
        ("modality-dropout", (0, 1)),
        ("zero-fill", (0, 1)),
    ]
    parameters = {row.parameters for row in rows}
    assert len(parameters) == 1
    assert f"{parameters.pop():,}" in (text := write_report(evaluated, tmp_path).read_text())
    assert text.count("<svg") == 8
    assert "Accuracy by missing rate" in text
    assert "masked-audio" not in text


def test_only_the_longest_curve_is_plotted_and_only_lines_evaluated_at_its_rates(tmp_path: Path) -> None:
    def masked(rate: float, unit: str = "question", correct: int = 8) -> object:
        masking = Masking(rates={"audio": rate}, unit=unit, seed=0, sha256=f"{rate}{unit}")
        return row("zero-fill", correct=correct, scenario=f"masked-{rate}-{unit}", masking=masking)

    rows = [row("zero-fill", correct=9), row("rmm"), masked(0.5), masked(1.0), masked(0.5, "video", 1)]
    surfaces = rate_surfaces(build_blocks(rows))
    assert list(surfaces) == ["zero-fill"]
    assert set(surfaces["zero-fill"]) == {(0.0, 0.0), (0.5, 0.0), (1.0, 0.0)}
    page = write_report(save(tmp_path / "runs", rows), tmp_path / "out").read_text()
    assert "Both rates at once" not in page


def test_a_part_of_every_video_can_be_missing(runs: Path, store: TinyStore, manifest: Manifest, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs / "zero-fill-seed0", run)
    bank = FeatureBank(store)
    assert evaluate_run(run, manifest, bank, parts={"visual": 0.5})[0].scenario == "partly-visual=0.5"
    assert evaluate_run(run, manifest, bank, parts={"visual": 0.0})[0].scenario == "partly-visual=0"
    rows = rows_of(run)
    assert rows["partly-visual=0"].accuracies == rows["complete"].accuracies
    assert rows["partly-visual=0.5"].subject == rows["complete"].subject


@pytest.mark.parametrize(
    ("over", "filled", "dashed"), [("seeds and videos", True, 0), ("videos", False, 2), (None, False, 0)]
)
def test_only_bands_over_seeds_and_videos_are_filled(over: str | None, filled: bool, dashed: int) -> None:
    interval = Interval(40.0, 60.0, over) if over else None
    surface = {(rate, 0.0): Estimate(50.0, interval, 3, 100) for rate in (0.0, 0.5, 1.0)}
    plot = draw_rate_curves({"rmm": {**surface, (0.0, 0.5): Estimate(50.0, None, 3, 100)}}, {"rmm": "#0072B2"})
    assert ("opacity: 0.12" in plot) == filled
    assert plot.count("stroke-dasharray") == dashed
