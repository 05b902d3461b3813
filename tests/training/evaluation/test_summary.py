"""The question-only floor of a summary: a run beside it that answers each training question once."""

from pathlib import Path

from result_rows import row, save

from train.evaluation.summary import find_question_only


def test_the_question_only_floor_is_a_run_that_answers_each_question_once(tmp_path: Path) -> None:
    exposed = row("reference", inputs="question", correct=9, sees="all", run="question-only-all-seed0")
    floor = row("reference", inputs="question", correct=7, sees="nothing", run="question-only-seed0")
    evaluated = row("rmm", run="rmm-seed0")
    save(tmp_path, [exposed, evaluated])
    assert find_question_only(evaluated, None, tmp_path / "rmm-seed0") is None
    assert find_question_only(evaluated, tmp_path / "question-only-all-seed0", None) == exposed.accuracies
    save(tmp_path, [floor])
    assert find_question_only(evaluated, None, tmp_path / "rmm-seed0") == floor.accuracies
