"""Confusion matrices: percentages per true answer, rare answers and seeds pooled, question types in their order."""

from pathlib import Path

from result_rows import folders_of, row, save

from train.report.confusion import MOST_ANSWERS, OTHERS, confusions_by_type, find_confusions
from train.report.page import write_report
from train.report.tables import build_blocks
from train.runs.results import Accuracies, Count, Prediction, predictions_path, write_predictions


def make_predictions(pairs: list[tuple[str, str]], question_type: str = "Audio Counting") -> list[Prediction]:
    """Return a prediction per (true answer, predicted answer)."""
    return [
        Prediction(
            question_id=str(n),
            video_id="v",
            type=question_type,
            prediction=predicted,
            answer=true,
            correct=true == predicted,
        )
        for n, (true, predicted) in enumerate(pairs)
    ]


def test_a_row_has_the_percentages_of_its_true_answer_and_numbers_are_in_ascending_order() -> None:
    pairs = [("two", "two"), ("two", "one"), ("two", "two"), ("two", "yes"), ("one", "two"), ("yes", "yes")]
    (confusion,) = confusions_by_type(make_predictions(pairs))
    assert confusion.answers == ("yes", "one", "two")
    assert confusion.questions == (1, 1, 4)
    assert confusion.shares == ((100, 0, 0), (0, 0, 100), (25, 25, 50))


def test_rare_answers_are_pooled_and_no_question_is_lost() -> None:
    names = [f"instrument {number:02}" for number in range(12)]
    pairs = [(name, names[0]) for number, name in enumerate(names) for _ in range(20 - number)]
    (confusion,) = confusions_by_type(make_predictions(pairs))
    assert confusion.answers == (*names[:MOST_ANSWERS], OTHERS)
    assert sum(confusion.questions) == len(pairs)
    assert confusion.questions[-1] == sum(20 - number for number in range(MOST_ANSWERS, 12))
    assert all(shares[0] == 100 for shares in confusion.shares)


def test_an_answer_that_is_never_the_true_one_has_shares_of_0() -> None:
    (confusion,) = confusions_by_type(make_predictions([("no", "yes")]))
    assert confusion.answers == ("no", "yes")
    assert confusion.questions == (1, 0)
    assert confusion.shares == ((0, 100), (0, 0))


def test_types_are_in_their_order_and_predictions_without_a_type_are_ignored() -> None:
    types = ("Why", "Audio-Visual Temporal", "Audio Counting", "")
    confusions = confusions_by_type(p for name in types for p in make_predictions([("no", "no")], name))
    assert [confusion.type for confusion in confusions] == ["Audio Counting", "Audio-Visual Temporal", "Why"]


def test_seeds_are_pooled_and_the_page_shows_them(tmp_path: Path) -> None:
    count = Count(correct=1, questions=2)
    counts = Accuracies(overall=count, groups={"Audio": count}, types={"Audio Counting": count})
    both = Count(correct=2, questions=2)
    all_correct = Accuracies(overall=both, groups={"Audio": both}, types={"Audio Counting": both})
    rows = [row(seed=seed, accuracies=counts if seed else all_correct) for seed in (0, 1)]
    for seed, result in enumerate(rows):
        pairs = [("one", "one"), ("two", "one" if seed else "two")]
        write_predictions(predictions_path(tmp_path / result.run, result), make_predictions(pairs))
    (confusions,) = find_confusions(build_blocks(rows), folders_of(rows, tmp_path))
    assert (confusions.scenario, confusions.label) == ("complete", "zero-fill")
    assert confusions.types[0].questions == (2, 2)
    assert confusions.types[0].shares == ((100, 0), (50, 50))
    page = write_report(save(tmp_path, rows), tmp_path / "out").read_text(encoding="utf-8")
    assert "<summary>zero-fill, complete</summary>" in page
    assert page.count('<td style="background: rgba(0,114,178,0.50)">50</td>') == 2
