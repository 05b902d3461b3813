"""Gains: paired by question, averaged over common seeds, with their share of the gap to the matching reference."""

import csv
from pathlib import Path

import numpy as np
import pytest
from result_rows import folders_of, row, save

from pipeline.errors import UserError
from train.report.gains import CSV_FIELDS, find_gains, gain_rows, paired_gain, scenario_gains
from train.report.page import write_report
from train.report.tables import build_blocks
from train.runs.results import (
    Accuracies,
    Count,
    Prediction,
    ResultRow,
    predictions_path,
    save_results,
    write_predictions,
)

QUESTIONS = 40


def save_run(folder: Path, correct: int, method: str = "zero-fill", seed: int = 0, **changes: object) -> ResultRow:
    """Save the predictions of a run that answers only the first `correct` questions correctly; return its row."""
    count = Count(correct=correct, questions=QUESTIONS)
    counts = Accuracies(overall=count, groups={}, types={})
    result = row(method, seed, accuracies=counts, scenario="audio-missing", **changes)
    predictions = [
        Prediction(question_id=str(n), video_id=str(n), prediction="yes", answer="yes", correct=n < correct)
        for n in range(QUESTIONS)
    ]
    write_predictions(predictions_path(folder / result.run, result), predictions)
    return result


def one_video_each(differences: np.ndarray) -> list[str]:
    return [str(number) for number in range(len(differences))]


def test_a_gain_is_the_mean_difference_and_lies_in_its_interval() -> None:
    differences = np.array([1.0] * 30 + [-1.0] * 10 + [0.0] * 60)
    gain = paired_gain(differences, one_video_each(differences))
    assert gain.points == pytest.approx(20)
    low, high = gain.interval
    assert low < 20 < high
    deviation = 100 * differences.std() / 10
    assert low == pytest.approx(20 - 1.96 * deviation, abs=1.0)
    assert high == pytest.approx(20 + 1.96 * deviation, abs=1.0)
    assert gain.p < 0.01
    assert paired_gain(differences, one_video_each(differences)) == gain


def test_zero_differences_have_p_1_and_random_ones_are_significant_in_about_5_percent() -> None:
    assert paired_gain(np.zeros(50), one_video_each(np.zeros(50))).p == 1
    samples = [np.random.default_rng(seed).integers(-1, 2, 100).astype(float) for seed in range(200)]
    is_significant = [paired_gain(differences, one_video_each(differences)).p < 0.05 for differences in samples]
    assert 0.01 < np.mean(is_significant) < 0.11


def test_the_questions_on_one_video_are_resampled_together() -> None:
    differences = np.repeat(np.random.default_rng(0).integers(-1, 2, 40), 5).astype(float)
    clustered = paired_gain(differences, [str(number // 5) for number in range(200)])
    independent = paired_gain(differences, one_video_each(differences))
    assert clustered.points == independent.points
    assert np.ptp(clustered.interval) > 1.8 * np.ptp(independent.interval)
    assert clustered.p > independent.p


def test_only_common_seeds_are_compared(tmp_path: Path) -> None:
    rows = [save_run(tmp_path, 10, seed=0), save_run(tmp_path, 30, seed=1)]
    rows += [save_run(tmp_path, 20, "rmm", seed=0), save_run(tmp_path, 40, "rmm", seed=2)]
    (block,) = build_blocks(rows)
    gains = find_gains(block, folders_of(rows, tmp_path))
    assert list(gains) == ["zero-fill"]
    assert gains["zero-fill"]["rmm"].points == pytest.approx(100 * (20 - 10) / QUESTIONS)
    assert gains["zero-fill"]["rmm"].seeds == (0,)


def test_runs_whose_predictions_are_of_other_questions_have_no_gain(tmp_path: Path) -> None:
    rows = [save_run(tmp_path, 10), save_run(tmp_path, 20, "rmm")]
    path = predictions_path(tmp_path / rows[1].run, rows[1])
    path.write_text(path.read_text().replace('"question_id":"7"', '"question_id":"other"'))
    with pytest.raises(UserError, match="predictions of two runs are of different questions: evaluate the runs again"):
        find_gains(*build_blocks(rows), folders_of(rows, tmp_path))


def test_the_share_is_of_the_gap_to_the_model_trained_without_the_modality(tmp_path: Path) -> None:
    rows = [save_run(tmp_path, 10), save_run(tmp_path, 16, "rmm")]
    rows += [save_run(tmp_path, 18, "reference", inputs="visual,question")]
    rows += [save_run(tmp_path, 12, "reference", inputs="audio,question")]
    (block,) = build_blocks(rows)
    gains = find_gains(block, folders_of(rows, tmp_path))
    assert gains["zero-fill"]["rmm"].share == pytest.approx((16 - 10) / (18 - 10))
    rows += [save_run(tmp_path, 40, seed=1), save_run(tmp_path, 40, "rmm", seed=1)]
    (block,) = build_blocks(rows)
    assert find_gains(block, folders_of(rows, tmp_path))["zero-fill"]["rmm"].share is None  # the reference has one seed
    (block,) = build_blocks(rows[:-1])
    again = find_gains(block, folders_of(rows, tmp_path))["zero-fill"]["rmm"]
    assert again.share == pytest.approx((16 - 10) / (18 - 10))
    rows[2] = save_run(tmp_path, 9, "reference", inputs="visual,question")
    (block,) = build_blocks(rows)
    assert find_gains(block, folders_of(rows, tmp_path))["zero-fill"]["rmm"].share is None


def test_the_share_is_none_if_the_gap_is_not_significant(tmp_path: Path) -> None:
    rows = [save_run(tmp_path, 10), save_run(tmp_path, 16, "rmm")]
    rows += [save_run(tmp_path, 11, "reference", inputs="visual,question")]
    (block,) = build_blocks(rows)
    assert find_gains(block, folders_of(rows, tmp_path))["zero-fill"]["rmm"].share is None


def test_only_methods_of_the_same_backbone_are_compared_with_every_baseline(tmp_path: Path) -> None:
    rows = [save_run(tmp_path, 10), save_run(tmp_path, 12, "modality-dropout")]
    rows += [save_run(tmp_path, 20, "rmm", backbone="pano")]
    (block,) = build_blocks(rows)
    gains = find_gains(block, folders_of(rows, tmp_path))
    assert {(baseline, method) for baseline, by_method in gains.items() for method in by_method} == {
        ("AVST zero-fill", "AVST modality-dropout"),
        ("AVST modality-dropout", "AVST zero-fill"),
    }


def test_runs_without_predictions_have_no_gain_and_no_table(tmp_path: Path) -> None:
    rows = [row("zero-fill"), row("rmm")]
    folders = folders_of(rows, tmp_path)
    assert scenario_gains(build_blocks(rows), folders) == {}
    assert "Gains on" not in write_report(save(tmp_path / "runs", rows), tmp_path / "out").read_text()


def test_the_page_shows_gains_in_points(tmp_path: Path) -> None:
    rows = [save_run(tmp_path, 10), save_run(tmp_path, 16, "rmm")]
    text = write_report(save(tmp_path, rows), tmp_path / "out").read_text()
    assert "Gains on the same questions" in text
    assert "+15.00" in text
    gains = scenario_gains(build_blocks(rows), folders_of(rows, tmp_path))
    rounded = [(b, m, [round(gain.points) for gain in by_scenario]) for b, m, by_scenario in gain_rows(gains)]
    assert rounded == [("zero-fill", "rmm", [15])]


def test_the_csv_has_every_gain_with_its_share(tmp_path: Path) -> None:
    rows = [save_run(tmp_path, 10), save_run(tmp_path, 16, "rmm")]
    rows += [save_run(tmp_path, 18, "reference", inputs="visual,question")]
    page = write_report(save(tmp_path, rows), tmp_path / "out")
    (line,) = csv.DictReader((page.parent / "gains.csv").open(encoding="utf-8"))
    gain = find_gains(*build_blocks(rows), folders_of(rows, tmp_path))["zero-fill"]["rmm"]
    assert (line["scenario"], line["over"], line["method"]) == ("audio-missing", "zero-fill", "rmm")
    numbers = [float(line[name]) for name in ("points", "low", "high", "p", "share")]
    assert numbers == pytest.approx([gain.points, *gain.interval, gain.p, 0.75], abs=1e-4)
    assert line["interval"] == "videos"


def test_a_gain_that_no_question_shows_has_no_interval_and_no_share(tmp_path: Path) -> None:
    rows = [save_run(tmp_path, 10), save_run(tmp_path, 10, "rmm")]
    rows += [save_run(tmp_path, 10, "reference", inputs="visual,question")]
    page = write_report(save(tmp_path, rows), tmp_path / "out")
    (line,) = csv.DictReader((page.parent / "gains.csv").open(encoding="utf-8"))
    assert [line[name] for name in CSV_FIELDS[6:]] == ["0.0000", "", "", "none", "1.0000", "", "0"]
    assert "<small>no interval, p 1.000, 1 seed</small>" in page.read_text(encoding="utf-8")


def test_a_gain_on_few_videos_has_a_p_value_only() -> None:
    gain = paired_gain(np.array([1.0, 1.0, 0.0, 1.0]), ["a", "a", "b", "b"])
    assert (gain.points, gain.interval) == (75, None)
    assert gain.p == pytest.approx(0.5, abs=0.03)


def test_renamed_runs_with_equal_names_in_two_folders_use_their_own_predictions(tmp_path: Path) -> None:
    rows = [save_run(tmp_path / "a", 10), save_run(tmp_path / "b", 30, "rmm", run="zero-fill-0")]
    for folder, result in zip("ab", rows, strict=True):
        (tmp_path / folder / result.run).rename(tmp_path / folder / "renamed")
        save_results(tmp_path / folder / "renamed", [result])
    text = write_report([tmp_path / "a" / "renamed", tmp_path / "b" / "renamed"], tmp_path / "out").read_text()
    assert "+50.00" in text
