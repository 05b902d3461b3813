"""`mavqa-report --power`: the variance parts of gains, and what a gain of one and of three points needs."""

import json
import re
from pathlib import Path

import pytest
from result_rows import row, save_predictions
from workplace import invoke

from pipeline.errors import UserError
from train.evaluation.power import videos_needed
from train.report.power_table import find_comparisons


def test_report_prints_the_power_of_its_comparisons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [row("zero-fill", seed, 7 + seed) for seed in range(3)] + [
        row("rmm", seed, 8 + 2 * seed) for seed in range(3)
    ]
    rows += [row("avr", 0, 9)]
    save_predictions(tmp_path / "runs-of-three", rows)
    document = json.loads(invoke("report", "runs-of-three", "--power", "--json").stdout)
    (found,) = document["comparisons"]
    assert (found["over"], found["method"], found["seeds"], found["questions"]) == ("zero-fill", "rmm", 3, 216)
    assert found["points"] == pytest.approx(100 * 9 * 2 / 216)
    shown = invoke("report", "runs-of-three", "--power")
    assert shown.exit_code == 0, shown.output
    assert shown.stdout == ""
    cells = [
        re.split(r" {2,}", line.strip()) for line in shown.stderr.splitlines() if line.strip().startswith("zero-fill")
    ]
    needs = [
        n for need in found["needs"] for n in (need["seeds_on_these_questions"], *need["questions_by_seeds"].values())
    ]
    assert [cell[-8:] for cell in cells] == [["–" if number is None else f"{number:,}" for number in needs]]
    assert not (tmp_path / "r").exists()
    few = invoke("report", "runs-of-three/zero-fill-0", "--power")
    assert few.exit_code == 2
    assert "3 common seeds" in few.output
    for options in ((), ("--power", "--out", "r")):
        refused = invoke("report", "runs-of-three", *options)
        assert refused.exit_code == 2
        assert "pass --out with a folder for the report, or --power" in refused.output


def test_questions_are_the_needed_videos_with_as_many_questions_as_now(tmp_path: Path) -> None:
    rows = [row(method, seed, n + seed) for method, n in (("zero-fill", 7), ("rmm", 9)) for seed in range(3)]
    (found,) = find_comparisons(save_predictions(tmp_path, rows, videos=20))
    assert (found.videos, found.questions) == (20, 216)
    videos = videos_needed(found.parts, 1.0, 10)
    assert videos > 20
    assert found.questions_for(1.0, 10) == round(videos * 216 / 20)
    assert found.seeds_for(0.001) is None
    assert found.questions_for(0.001, 3) is None


@pytest.mark.parametrize(("videos", "correct"), [(9, 10), (20, 7)], ids=["nine videos", "equal answers"])
def test_differences_that_do_not_tell_their_variance_are_left_out(tmp_path: Path, videos: int, correct: int) -> None:
    rows = [row(method, seed, n) for method, n in (("zero-fill", 7), ("rmm", correct)) for seed in range(3)]
    with pytest.raises(UserError, match="over 3 common seeds and 20 videos"):
        find_comparisons(save_predictions(tmp_path, rows, videos))
