"""The programs that write the tables of FINDINGS.md: what commands print, and how methods compare."""

from pathlib import Path

import findings
import method_tables
import pytest
import tuning
from result_rows import row, save_predictions

from pipeline.errors import UserError
from train.cli.report import find_runs
from train.report.power_table import find_comparisons

PAGE = """# Page

<!-- $ python -c "print('| a |')" -->

| old |

<!-- end -->

Text.

<!-- $ count -->
<!-- end -->
"""


def test_only_the_output_of_a_command_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(*words: str) -> str:
        monkeypatch.setattr("sys.argv", ["findings", "--page", str(page), *words])
        findings.main()
        return page.read_text()

    page = tmp_path / "page.md"
    page.write_text(PAGE)
    outputs = {"python -c \"print('| a |')\"": "| new |\n", "count": "1\n2\n"}
    monkeypatch.setattr(findings, "run_command", outputs.pop)
    assert main("--list") == PAGE
    assert capsys.readouterr().out.splitlines() == list(outputs)
    expected = PAGE.replace("$ count -->\n", "$ count -->\n\n```text\n1\n2\n```\n\n")
    assert main("--only", "count") == expected
    assert main("--only", "print") == expected.replace("| old |", "| new |")
    assert not outputs


def test_a_command_runs_in_this_environment_and_its_failure_is_an_error() -> None:
    assert findings.run_command("python -c \"import torch; print('| b |')\"") == "| b |\n"
    with pytest.raises(UserError, match=r"python -c 'raise SystemExit\(3\)' failed"):
        findings.run_command("python -c 'raise SystemExit(3)'")


def test_every_command_of_the_pages_is_one_of_a_benchmark_that_exists() -> None:
    root = Path(findings.__file__).parent.parent
    text = "".join((root / page).read_text(encoding="utf-8") for page in ("FINDINGS.md", "docs/tuning.md"))
    commands = [match["command"] for match in findings.BLOCK.finditer(text)]
    assert commands
    for command in commands:
        program = command.split()[1]
        assert command.startswith("python benchmarks/")
        assert (root / program).is_file()


def test_the_page_of_the_tuning_has_the_table_of_the_committed_accuracies(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = Path(findings.__file__).parent.parent
    (block,) = findings.BLOCK.finditer((root / "docs" / "tuning.md").read_text(encoding="utf-8"))
    monkeypatch.chdir(root)
    monkeypatch.setattr("sys.argv", block["command"].split()[1:])
    tuning.main()
    assert block["output"] == findings.as_markdown(capsys.readouterr().out)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    rows = [
        row(method, seed, correct + seed, scenario=scenario, run=f"{method}-seed{seed}", checkpoint_sha256=f"{n}{seed}")
        for n, (method, correct) in enumerate({"constant-fill": 8, "rmm": 12, "zero-fill": 4}.items())
        for seed in range(3)
        for scenario in ("audio-missing", "visual-missing")
    ]
    save_predictions(tmp_path, rows)
    return tmp_path


def test_accuracies_are_in_the_order_of_their_means_with_half_their_interval(runs: Path) -> None:
    lines = [*method_tables.accuracy_lines(method_tables.read_blocks(runs))]
    assert [line.split("|")[1].strip() for line in lines[:-1]] == ["method", "---", "rmm", "constant-fill", "zero-fill"]
    # Nine types of 20 to 28 questions, 13 to 21 correct answers on average.
    assert lines[2].startswith("| rmm | 70.83 ± ")
    assert lines[2].endswith(" | 70.83 |")


def test_gains_are_over_each_baseline_with_p_corrected_for_all_of_the_table(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tested = []
    monkeypatch.setattr(method_tables, "correct_holm", lambda p: tested.extend(p) or [0.25, 0.0004])
    lines = [*method_tables.gain_lines(method_tables.read_blocks(runs), ["rmm"])]
    assert len(tested) == 2
    assert lines[0] == "| method | over | audio-missing | visual-missing |"
    line, legend = lines[2:]
    assert line.startswith("| rmm | constant-fill | +16.67 [+")
    assert "], p 0.250 | +16.67" in line
    assert line.endswith("], p < 0.001 |")
    assert "2 comparisons" in legend
    with pytest.raises(UserError, match="0 methods have runs named avr-seed"):
        list(method_tables.gain_lines(method_tables.read_blocks(runs), ["avr"]))


def test_power_is_of_the_gains_of_one_entry_where_a_modality_is_missing(runs: Path) -> None:
    comparisons = find_comparisons(find_runs(runs))
    lines = [*method_tables.power_lines(method_tables.read_blocks(runs), "rmm", comparisons)]
    shown = [line.split("|")[1:3] for line in lines[2:-1]]
    assert {tuple(map(str.strip, cells)) for cells in shown} == {
        (scenario, over) for scenario in ("audio-missing", "visual-missing") for over in ("constant-fill", "zero-fill")
    }
    assert all(len(line.split("|")) == len(lines[0].split("|")) for line in lines[:-1])
