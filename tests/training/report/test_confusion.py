"""Confusions: rows of percent per true answer, rare answers pooled, seeds together, by type in the usual order."""

from pathlib import Path

from result_rows import folders_of, row, save

from train.report.confusion import MOST_ANSWERS, OTHERS, confuse, find_confusions
from train.report.page import write_report
from train.report.tables import build_blocks
from train.runs.results import Prediction, predictions_path, write_predictions


def told(pairs: list[tuple[str, str]], kind: str = "Audio Counting") -> list[Prediction]:
    return [
        Prediction(question_id=str(n), video_id="v", type=kind, prediction=given, answer=true, correct=true == given)
        for n, (true, given) in enumerate(pairs)
    ]


def test_a_row_holds_the_percent_of_its_true_answers_and_numbers_stand_as_they_are_counted() -> None:
    pairs = [("two", "two"), ("two", "one"), ("two", "two"), ("two", "yes"), ("one", "two"), ("yes", "yes")]
    (found,) = confuse(told(pairs))
    assert found.answers == ("yes", "one", "two")
    assert found.questions == (1, 1, 4)
    assert found.shares == ((100, 0, 0), (0, 0, 100), (25, 25, 50))


def test_rare_answers_are_pooled_and_no_question_is_lost() -> None:
    names = [f"instrument {number:02}" for number in range(12)]
    pairs = [(name, names[0]) for number, name in enumerate(names) for _ in range(20 - number)]
    (found,) = confuse(told(pairs))
    assert found.answers == (*names[:MOST_ANSWERS], OTHERS)
    assert sum(found.questions) == len(pairs)
    assert found.questions[-1] == sum(20 - number for number in range(MOST_ANSWERS, 12))
    assert all(shares[0] == 100 for shares in found.shares)


def test_an_answer_that_is_never_right_has_no_row_of_its_own_shares() -> None:
    (found,) = confuse(told([("no", "yes")]))
    assert found.answers == ("no", "yes")
    assert found.questions == (1, 0)
    assert found.shares == ((0, 100), (0, 0))


def test_types_stand_in_their_order_and_answers_without_type_in_none() -> None:
    kinds = ("Why", "Audio-Visual Temporal", "Audio Counting", "")
    found = confuse(prediction for kind in kinds for prediction in told([("no", "no")], kind))
    assert [confusion.type for confusion in found] == ["Audio Counting", "Audio-Visual Temporal", "Why"]


def test_seeds_are_pooled_and_the_page_shows_them(tmp_path: Path) -> None:
    rows = [row(seed=seed) for seed in (0, 1)]
    for seed, made in enumerate(rows):
        pairs = [("one", "one"), ("two", "one" if seed else "two")]
        write_predictions(predictions_path(tmp_path / made.run, "test", "complete"), told(pairs))
    (found,) = find_confusions(build_blocks(rows), folders_of(rows, tmp_path))
    assert (found.scenario, found.label) == ("complete", "zero-fill")
    assert found.types[0].questions == (2, 2)
    assert found.types[0].shares == ((100, 0), (50, 50))
    page = write_report(save(tmp_path, rows), tmp_path / "out").read_text(encoding="utf-8")
    assert "<summary>zero-fill, complete</summary>" in page
    assert page.count('<td style="background: rgba(0,114,178,0.50)">50</td>') == 2
