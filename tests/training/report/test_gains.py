"""Gains: paired by question, averaged over common seeds, with their share of the gap to the matching reference."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest
from result_rows import folders_of, row, save

from pipeline.errors import UserError
from train.report.gain_plots import draw_gains
from train.report.gains import CSV_FIELDS, find_gains, gain_rows, paired_gain, scenario_gains
from train.report.page import write_report
from train.report.plots import colours_of
from train.report.tables import Block, build_blocks
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
# Trained at two exposures.
BOTH = ("modality-dropout", "drfuse")


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


def one_video_each(differences: np.ndarray) -> np.ndarray:
    return np.arange(differences.shape[1])


def block_of(rows: list[ResultRow], folder: Path) -> Block:
    (block,) = build_blocks(rows, folders_of(rows, folder))
    return block


def test_a_gain_is_the_mean_difference_and_lies_in_its_interval() -> None:
    differences = np.array([[1.0] * 30 + [-1.0] * 10 + [0.0] * 60])
    gain = paired_gain(differences, one_video_each(differences), [7])
    assert gain.points == pytest.approx(20)
    assert gain.by_seed == {7: pytest.approx(20)}
    deviation = 100 * differences.std(ddof=1) / 10
    quantile = 1.984  # Student's t, 99 degrees of freedom
    assert gain.interval.low == pytest.approx(20 - quantile * deviation, abs=0.01)
    assert gain.interval.high == pytest.approx(20 + quantile * deviation, abs=0.01)
    assert gain.interval.over == "videos"
    assert gain.p < 0.01


def test_random_differences_are_significant_in_about_5_percent() -> None:
    samples = [np.random.default_rng(seed).integers(-1, 2, (3, 100)).astype(float) for seed in range(200)]
    is_significant = [paired_gain(d, one_video_each(d), range(3)).p < 0.05 for d in samples]
    assert 0.01 < np.mean(is_significant) < 0.11


def test_a_gain_whose_seeds_disagree_is_not_significant() -> None:
    generator = np.random.default_rng(0)
    agreeing = 0.05 + generator.normal(0, 0.3, (3, 400))
    disagreeing = agreeing + np.array([[-0.06], [0.0], [0.06]])
    gains = [paired_gain(d, one_video_each(d), range(3)) for d in (agreeing, disagreeing)]
    assert [gain.interval.over for gain in gains] == ["seeds and videos"] * 2
    assert gains[0].points == pytest.approx(gains[1].points)
    assert gains[0].p < 0.001
    assert gains[1].p > 0.05
    assert paired_gain(disagreeing[2:], one_video_each(disagreeing), [2]).p < 0.001


def test_the_questions_on_one_video_count_together() -> None:
    differences = np.repeat(np.random.default_rng(0).integers(-1, 2, 40), 5)[None].astype(float)
    clustered = paired_gain(differences, np.arange(200) // 5, [0])
    independent = paired_gain(differences, one_video_each(differences), [0])
    assert clustered.points == independent.points
    assert clustered.interval.high - clustered.points > 1.8 * (independent.interval.high - independent.points)
    assert clustered.p > independent.p


def test_only_common_seeds_are_compared(tmp_path: Path) -> None:
    rows = [save_run(tmp_path, 10, seed=0), save_run(tmp_path, 30, seed=1)]
    rows += [save_run(tmp_path, 20, "rmm", seed=0), save_run(tmp_path, 40, "rmm", seed=2)]
    gains = find_gains(block_of(rows, tmp_path))
    assert list(gains) == ["zero-fill"]
    assert gains["zero-fill"]["rmm"].points == pytest.approx(100 * (20 - 10) / QUESTIONS)
    assert gains["zero-fill"]["rmm"].seeds == (0,)


def test_runs_whose_predictions_are_of_other_questions_have_no_gain(tmp_path: Path) -> None:
    rows = [save_run(tmp_path, 10), save_run(tmp_path, 20, "rmm")]
    path = predictions_path(tmp_path / rows[1].run, rows[1])
    path.write_text(path.read_text().replace('"question_id":"7"', '"question_id":"other"'))
    block = block_of(rows, tmp_path)
    with pytest.raises(UserError, match="predictions of two runs are of different questions: evaluate the runs again"):
        find_gains(block)


def test_the_share_is_of_the_gap_to_the_model_trained_without_the_modality(tmp_path: Path) -> None:
    rows = [save_run(tmp_path, 10), save_run(tmp_path, 16, "rmm")]
    rows += [save_run(tmp_path, 18, "reference", inputs="visual,question")]
    rows += [save_run(tmp_path, 12, "reference", inputs="audio,question")]
    gains = find_gains(block_of(rows, tmp_path))
    assert gains["zero-fill"]["rmm"].share == pytest.approx((16 - 10) / (18 - 10))
    rows += [save_run(tmp_path, 40, seed=1), save_run(tmp_path, 40, "rmm", seed=1)]
    assert find_gains(block_of(rows, tmp_path))["zero-fill"]["rmm"].share is None  # the reference has one seed
    again = find_gains(block_of(rows[:-1], tmp_path))["zero-fill"]["rmm"]
    assert again.share == pytest.approx((16 - 10) / (18 - 10))
    rows[2] = save_run(tmp_path, 9, "reference", inputs="visual,question")
    assert find_gains(block_of(rows, tmp_path))["zero-fill"]["rmm"].share is None


def test_methods_on_another_variant_of_the_backbone_are_not_compared(tmp_path: Path) -> None:
    rows = [save_run(tmp_path, 10, training={"backbone_variant": "paper"})]
    rows += [save_run(tmp_path, 16, "rmm", training={"backbone_variant": "released"})]
    rows += [save_run(tmp_path, 17, "drfuse", training={"backbone_variant": "paper"})]
    assert find_gains(block_of(rows, tmp_path))["zero-fill"].keys() == {"drfuse"}


def test_the_gap_is_to_the_reference_of_the_method_s_exposure_else_to_one_that_answers_once(tmp_path: Path) -> None:
    rows = [save_run(tmp_path, 10), save_run(tmp_path, 16, "rmm", sees="all"), save_run(tmp_path, 14, "drfuse")]
    for correct, sees in ((18, "nothing"), (22, "all"), (30, "sampled")):
        fields = {"inputs": "visual,question", "sees": sees, "training": {"epochs": 3, "exposure": sees}}
        rows.append(save_run(tmp_path, correct, "reference", run=f"reference-{sees}", **fields))
    gains = find_gains(block_of(rows, tmp_path))["zero-fill"]
    assert gains["rmm (all)"].share == pytest.approx((16 - 10) / (22 - 10))
    assert gains["drfuse"].share == pytest.approx((14 - 10) / (18 - 10))
    gains = find_gains(block_of(rows[:-2], tmp_path))["zero-fill"]
    assert gains["rmm (all)"].share == pytest.approx((16 - 10) / (18 - 10))


def test_the_share_is_none_if_the_gap_is_not_significant(tmp_path: Path) -> None:
    rows = [save_run(tmp_path, 10), save_run(tmp_path, 16, "rmm")]
    rows += [save_run(tmp_path, 11, "reference", inputs="visual,question")]
    assert find_gains(block_of(rows, tmp_path))["zero-fill"]["rmm"].share is None


def test_only_methods_of_the_same_backbone_are_compared_with_every_baseline(tmp_path: Path) -> None:
    rows = [save_run(tmp_path, 10), save_run(tmp_path, 12, "modality-dropout")]
    rows += [save_run(tmp_path, 20, "rmm", backbone="pano")]
    gains = find_gains(block_of(rows, tmp_path))
    assert {(baseline, method) for baseline, by_method in gains.items() for method in by_method} == {
        ("AVST zero-fill", "AVST modality-dropout"),
        ("AVST modality-dropout", "AVST zero-fill"),
    }


def test_methods_are_compared_with_the_baseline_of_their_exposure_and_it_with_its_other_ones(tmp_path: Path) -> None:
    def save_of(method: str, correct: int, sees: str) -> ResultRow:
        changes = {"sees": sees, "run": f"{method}-{sees}", "training": {"epochs": 3, "exposure": sees}}
        return save_run(tmp_path, correct, method, **changes)

    rows = [save_of("zero-fill", 8, "nothing"), save_of("constant-fill", 20, "all")]
    rows += [save_of(method, 10 + n, sees) for n, sees in enumerate(("sampled", "all")) for method in BOTH]
    gains = find_gains(block_of(rows, tmp_path))
    sampled, every = gains["modality-dropout (sampled)"], gains["modality-dropout (all)"]
    assert sampled.keys() == {"zero-fill", "drfuse (sampled)", "modality-dropout (all)"}
    assert every.keys() == {"zero-fill", "drfuse (all)", "constant-fill (all)", "modality-dropout (sampled)"}
    assert len(gains["constant-fill (all)"]) == 5  # there is none at another exposure


def test_runs_without_predictions_have_no_gain_and_no_table(tmp_path: Path) -> None:
    rows = [row("zero-fill"), row("rmm")]
    assert scenario_gains(build_blocks(rows, folders_of(rows, tmp_path))) == {}
    assert "Gains on" not in write_report(save(tmp_path / "runs", rows), tmp_path / "out").read_text()


def test_the_page_shows_gains_in_points(tmp_path: Path) -> None:
    rows = [save_run(tmp_path, 10), save_run(tmp_path, 16, "rmm")]
    text = write_report(save(tmp_path, rows), tmp_path / "out").read_text()
    assert "Gains on the same questions" in text
    assert "+15.00" in text
    gains = scenario_gains([block_of(rows, tmp_path)])
    rounded = [(b, m, [round(gain.points) for gain in by_scenario]) for b, m, by_scenario in gain_rows(gains)]
    assert rounded == [("zero-fill", "rmm", [15])]


def test_the_csv_has_every_gain_with_its_share(tmp_path: Path) -> None:
    rows = [save_run(tmp_path, 10), save_run(tmp_path, 16, "rmm")]
    rows += [save_run(tmp_path, 18, "reference", inputs="visual,question")]
    page = write_report(save(tmp_path, rows), tmp_path / "out")
    (line,) = csv.DictReader((page.parent / "gains.csv").open(encoding="utf-8"))
    gain = find_gains(block_of(rows, tmp_path))["zero-fill"]["rmm"]
    assert (line["scenario"], line["over"], line["method"]) == ("audio-missing", "zero-fill", "rmm")
    numbers = [float(line[name]) for name in ("points", "low", "high", "share", "points_by_seed")]
    assert numbers == pytest.approx([gain.points, gain.interval.low, gain.interval.high, 0.75, gain.points], abs=1e-4)
    assert float(line["p"]) == pytest.approx(gain.p, rel=1e-3)
    assert [line[name] for name in ("interval", "p_holm", "family", "seeds")] == ["videos", line["p"], "1", "0"]


def test_p_values_are_corrected_within_the_comparisons_with_one_baseline_in_one_scenario(tmp_path: Path) -> None:
    correct = {"rmm": 16, "avr": 15, "drfuse": 13, "modality-dropout": 11, "prompts": 10}
    rows = [save_run(tmp_path, 10), *(save_run(tmp_path, hits, method) for method, hits in correct.items())]
    gains = find_gains(block_of(rows, tmp_path))
    of_zero_fill = gains["zero-fill"]
    assert of_zero_fill["prompts"].p is None
    assert of_zero_fill["prompts"].p_holm is None
    assert {gain.family for gain in of_zero_fill.values()} == {4}
    assert of_zero_fill["rmm"].p_holm == pytest.approx(4 * of_zero_fill["rmm"].p)
    assert of_zero_fill["avr"].p_holm == pytest.approx(3 * of_zero_fill["avr"].p)
    assert of_zero_fill["modality-dropout"].p_holm == of_zero_fill["modality-dropout"].p
    assert {gain.family for gain in gains["modality-dropout"].values()} == {5}
    page = write_report(save(tmp_path, rows), tmp_path / "out")
    assert f"Holm p {of_zero_fill['drfuse'].p_holm:.3f} of 4" in page.read_text(encoding="utf-8")
    lines = csv.DictReader((page.parent / "gains.csv").open(encoding="utf-8"))
    (line,) = [line for line in lines if (line["over"], line["method"]) == ("zero-fill", "prompts")]
    assert [line[name] for name in ("p", "p_holm", "interval", "family")] == ["", "", "none", "4"]


def test_the_page_has_a_plot_per_baseline_with_a_dot_per_seed(tmp_path: Path) -> None:
    rows = [save_run(tmp_path, 10 + seed, seed=seed) for seed in (0, 1, 2)]
    rows += [save_run(tmp_path, 16 + 2 * seed, "rmm", seed=seed) for seed in (0, 1, 2)]
    rows += [save_run(tmp_path, 12, "modality-dropout", seed=seed) for seed in (0, 1)]
    gains = scenario_gains([block_of(rows, tmp_path)])
    assert gains["audio-missing"]["zero-fill"]["rmm"].by_seed == {0: 15.0, 1: 17.5, 2: 20.0}
    plots = draw_gains(gains, colours_of([block_of(rows, tmp_path)]))
    assert list(plots) == ["zero-fill", "modality-dropout"]
    plot = re.sub("<!--.*?-->", "", plots["zero-fill"], flags=re.DOTALL)
    colours = colours_of([block_of(rows, tmp_path)])
    dots = [
        len(re.findall(f"<use[^>]*fill: {colours[method].lower()}", plot)) for method in ("rmm", "modality-dropout")
    ]
    assert dots == [3, 2]
    bars = re.findall(r'LineCollection_\d+">\s*<path[^>]*style="([^"]*)"', plot)
    assert ["dasharray" in style for style in bars] == [False, True]  # three seeds, two seeds
    page = write_report(save(tmp_path, rows), tmp_path / "out").read_text(encoding="utf-8")
    assert "Gains over zero-fill." in page
    assert "Gains over modality-dropout." in page


def test_a_gain_that_no_question_shows_has_no_interval_and_no_share(tmp_path: Path) -> None:
    rows = [save_run(tmp_path, 10), save_run(tmp_path, 10, "rmm")]
    rows += [save_run(tmp_path, 10, "reference", inputs="visual,question")]
    page = write_report(save(tmp_path, rows), tmp_path / "out")
    (line,) = csv.DictReader((page.parent / "gains.csv").open(encoding="utf-8"))
    assert [line[name] for name in CSV_FIELDS[6:]] == ["0.0000", "", "", "none", "", "", "0", "", "0", "0.0000"]
    assert "<small>no interval, 1 seed</small>" in page.read_text(encoding="utf-8")


def test_a_gain_on_few_videos_has_neither_interval_nor_p() -> None:
    gain = paired_gain(np.array([[1.0, 1.0, 0.0, 1.0]]), ["a", "a", "b", "b"], [0])
    assert (gain.points, gain.interval, gain.p) == (75, None, None)


def test_renamed_runs_with_equal_names_in_two_folders_use_their_own_predictions(tmp_path: Path) -> None:
    rows = [save_run(tmp_path / "a", 10), save_run(tmp_path / "b", 30, "rmm", run="zero-fill-0")]
    for folder, result in zip("ab", rows, strict=True):
        (tmp_path / folder / result.run).rename(tmp_path / folder / "renamed")
        save_results(tmp_path / folder / "renamed", [result])
    text = write_report([tmp_path / "a" / "renamed", tmp_path / "b" / "renamed"], tmp_path / "out").read_text()
    assert "+50.00" in text
