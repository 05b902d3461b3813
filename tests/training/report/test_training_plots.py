"""The curves of trainings: over steps or epochs, thinned, and drawn on the page."""

from pathlib import Path

from result_rows import folders_of, row, save

from train.report.page import write_report
from train.report.tables import build_blocks
from train.report.training_plots import read_curves
from train.runs.steps import StepsFile


def write_steps(run: Path, epochs: int) -> None:
    """Record a training of 250 steps an epoch; the loss "late" is in the last epoch only."""
    file = StepsFile()
    file.start(run, {}, 1)
    for step in range(1, 250 * epochs + 1):
        late = {"loss/late": 1.0} if step > 250 * (epochs - 1) else {}
        file.log_step(step, {"epoch": step / 250, "learning_rate": 0.1, "loss/total": float(step), **late})
    file.log_epoch(step, {})


def test_curves_are_of_the_steps_if_the_whole_training_is_recorded_else_of_the_epochs(tmp_path: Path) -> None:
    rows = [row(seed=0), row(seed=1), row(seed=2)]
    save(tmp_path, rows)
    write_steps(tmp_path / rows[1].run, epochs=2)
    write_steps(tmp_path / rows[2].run, epochs=1)
    curves = read_curves(build_blocks(rows), folders_of(rows, tmp_path))
    by_epoch, by_step, in_part = curves["loss/total"]["zero-fill"]
    assert by_epoch == in_part == [(1, 2.0), (2, 1.0)]
    assert len(by_step) == 100
    # Of the first two hundredths of an epoch, which have the means of the steps 1 and 2, and 3 to 5.
    assert by_step[0] == (0.02, (1.5 + 4.0) / 2)
    assert by_step[-1][0] == 2.0
    (late,) = curves["loss/late"]["zero-fill"]
    assert [epoch for epoch, _ in late] == [epoch for epoch, _ in by_step if epoch > 1]
    assert curves["validation"]["zero-fill"] == 3 * [[(1, 1.0), (2, 2.0)]]
    assert list(curves["learning_rate"]) == ["zero-fill"]


def test_the_page_plots_the_curves_and_other_losses_only_if_there_are_any(tmp_path: Path) -> None:
    runs = save(tmp_path / "runs", [row()])
    page = write_report(runs, tmp_path / "out").read_text(encoding="utf-8")
    assert "validation accuracy, %" in page
    assert "Other parts of the loss" not in page
    write_steps(runs[0], epochs=2)
    page = write_report(runs, tmp_path / "out").read_text(encoding="utf-8")
    assert "late loss" in page
    assert page.index("Other parts of the loss") < page.index("late loss")
