"""The benchmark of the dial: which steps run, and that its tables are those of the runs and of their report."""

import argparse
import csv
import json
from pathlib import Path

import dial
import numpy as np
import pytest
from result_rows import row, save_predictions

from pipeline.errors import UserError
from train.training.sweep import read_grid

CORRECT = {"constant-fill": (8, 9), "modality-dropout": (7, 7), "rmm": (10, 8), "question-only": (4, 4)}


def make_level(folder: Path, redundancy: float, scenario: str = "audio-missing") -> Path:
    """Write the runs of two seeds and what was measured."""
    rows = [
        row(
            **{"method": "reference" if name == "question-only" else name, "seed": seed, "correct": correct},
            **{"scenario": scenario, "run": f"{name}-seed{seed}", "checkpoint_sha256": f"{name}{seed}"},
            inputs="question" if name == "question-only" else "all",
        )
        for name, of_seeds in CORRECT.items()
        for seed, correct in enumerate(of_seeds)
    ]
    save_predictions(folder / "runs", rows)
    (folder / "data").mkdir()
    states = {"everything": {"mutual_information": 20 * redundancy}}
    (folder / "data" / "redundancy.json").write_text(
        json.dumps({"format": 1, "redundancy": redundancy, "states": states})
    )
    return folder


def test_gains_are_differences_by_seed_with_an_interval_for_each_group(tmp_path: Path) -> None:
    gains = {(g.group, g.over, g.method): g for g in dial.read_comparisons(make_level(tmp_path, 0.5))}
    methods = {(over, method) for _, over, method in gains}
    assert methods == {
        ("constant-fill", "modality-dropout"),
        ("constant-fill", "rmm"),
        ("modality-dropout", "constant-fill"),
        ("modality-dropout", "rmm"),
    }
    rmm = gains["All", "constant-fill", "rmm"]
    assert (rmm.redundancy, rmm.bits, rmm.scenario) == (0.5, 10.0, "audio-missing")
    # Nine types of 20 to 28 questions: two more and one less correct answers in each.
    assert rmm.by_seed == pytest.approx((100 * 9 * 2 / 216, -100 * 9 / 216))
    assert rmm.points == pytest.approx(sum(rmm.by_seed) / 2)
    audio = gains["Audio", "constant-fill", "rmm"]
    assert audio.by_seed == pytest.approx((100 * 4 / 41, -100 * 2 / 41))
    for gain in (rmm, audio):
        assert gain.low < gain.points < gain.high
        assert (gain.p < 0.05) == (gain.low > 0 or gain.high < 0)
    assert audio.high - audio.low > rmm.high - rmm.low


def test_tables_and_figures_have_every_level(tmp_path: Path) -> None:
    folders = [
        make_level(tmp_path / name, redundancy, scenario)
        for name, redundancy, scenario in (("a", 0.0, "audio-missing"), ("b", 1.0, "visual-missing"))
    ]
    dial.write_results(folders, tmp_path)
    with (tmp_path / "gains.csv").open() as file:
        gains = list(csv.DictReader(file))
    assert {g["bits"] for g in gains} == {"0.0000", "20.0000"}
    assert all(len(g["by_seed"].split()) == 2 for g in gains)
    with (tmp_path / "accuracies.csv").open() as file:
        accuracies = list(csv.DictReader(file))
    assert {a["entry"] for a in accuracies} == set(CORRECT)
    assert len(accuracies) == 2 * 4 * 2 * 4  # levels, entries, seeds, groups
    assert all((tmp_path / name).read_text().startswith("<?xml") for name in ("dial.svg", "groups.svg"))


def test_the_table_of_gains_has_a_column_per_level_and_marks_what_stays_significant(tmp_path: Path) -> None:
    def comparison(bits: float, method: str, points: float, p: float) -> dial.Comparison:
        bounds = (points - 1, points + 1)
        return dial.Comparison(bits / 20, bits, "audio-missing", "All", "constant-fill", method, points, *bounds, p, ())

    gains = [comparison(0, "rmm", 0.5, 0.04), comparison(20, "rmm", 3, 0.01), comparison(20, "avr", 2, 0.03)]
    *lines, legend = dial.gain_lines(gains)
    assert "3 comparisons" in legend
    assert lines[2:] == [
        "| audio-missing | constant-fill | avr | – | +2.0 [+1.0, +3.0] |",
        "| audio-missing | constant-fill | rmm | +0.5 [-0.5, +1.5] | +3.0 [+2.0, +4.0]* |",
    ]


def test_the_trend_is_the_mean_slope_of_the_seeds_in_each_group() -> None:
    def comparison(bits: float, group: str, by_seed: tuple[float, ...]) -> dial.Comparison:
        names = ("audio-missing", group, "constant-fill", "rmm")
        return dial.Comparison(bits / 20, bits, *names, 0.0, None, None, None, by_seed)

    slopes = {
        "All": (0.1, 0.2, 0.3),
        "Audio": (0.4, 0.4, 0.7),
        "Visual": (0.0, 0.1, -0.1),
        "Audio-Visual": (0.2, 0.3, 0.1),
    }
    gains = [
        comparison(bits, group, tuple(5 + slope * bits for slope in of_seeds))
        for group, of_seeds in slopes.items()
        for bits in (0, 10, 20)
    ]
    np.testing.assert_allclose(dial.fit_slopes(gains[:3]), slopes["All"], atol=1e-12)
    lines = [*dial.trend_lines(gains)]
    # The t quantile of two degrees of freedom is 4.303, the standard error 0.1 / sqrt(3).
    assert lines[2].startswith("| audio-missing | rmm | +0.20 [-0.05, +0.45] | +0.50 [")
    assert "| +0.00 [-0.25, +0.25] |" in lines[2]


def test_a_level_is_synthesized_once_and_a_failed_command_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[list[str]] = []
    monkeypatch.setattr(dial, "run_mavqa", lambda *words: calls.append([*map(str, words)]))
    options = argparse.Namespace(
        out=tmp_path, difficulty="hard", videos=9, seconds=1, seed=2, grid="g", seeds=5, jobs=1
    )
    folder = dial.run_level(0.25, options)
    assert folder == tmp_path / "hard-0.25"
    assert [words[0] for words in calls] == ["manifest", "extract", "sweep", "report"]
    assert calls[0][calls[0].index("--redundancy") :] == ["--redundancy", "0.25", "--difficulty", "hard"]
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "redundancy.json").write_text("{}")
    calls.clear()
    dial.run_level(0.25, options)
    assert [words[0] for words in calls] == ["extract", "sweep", "report"]
    monkeypatch.undo()
    with pytest.raises(UserError, match="mavqa manifest nothing failed: fix its cause, then run this program again"):
        dial.run_mavqa("manifest", "nothing")


def test_every_redundancy_is_measured_beside_the_demo(capsys: pytest.CaptureFixture[str]) -> None:
    dial.print_measures(argparse.Namespace(videos=30, seconds=3, seed=0, difficulty="normal", redundancies=[0.0, 1.0]))
    lines = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    assert [row[0] for row in rows] == ["the demo", "0", "1"]
    assert rows[1][1:3] == ["0.0", "0.0"]
    assert float(rows[2][1]) > 20
    assert float(rows[2][-1]) > 90
    assert all(len(row) == len(lines[0].strip("|").split("|")) for row in rows)


def test_the_grid_has_the_names_that_the_benchmark_compares() -> None:
    names = {entry.name for entry in read_grid(dial.GRID).methods}
    assert {*dial.BASELINES, dial.START} < names
