"""What a number depends on stands with it: labels with variant, steps and exposure, and what was not trained alike."""

import csv
import io
import json
from pathlib import Path

import pytest
from result_rows import row, save

from train.report.budgets import describe_differences
from train.report.page import write_report
from train.report.plots import unique_legend
from train.report.tables import build_blocks
from train.report.text import comma_separated, latex, markdown
from train.runs.results import ResultRow

CHAIN = {"has_variants": True, "sees": "all"}


def labels(*rows: ResultRow) -> list[str]:
    (block,) = build_blocks(rows)
    return [line.label for line in block.lines]


@pytest.mark.parametrize(
    ("method", "fields", "label"),
    [
        ("rmm-avr", {**CHAIN, "variant": "paper", "diffusion_steps": 10}, "rmm-avr (paper, 10 steps, all)"),
        ("rmm", {**CHAIN, "variant": "recommended"}, "rmm (recommended, all)"),
        (
            "rmm-avr",
            {**CHAIN, "variant": "paper", "diffusion_steps": 4, "options": {"schedule": "ddpm", "steps": 4}},
            "rmm-avr (paper, 4 steps, schedule ddpm, all)",
        ),
        ("modality-dropout", {"sees": "sampled"}, "modality-dropout (sampled)"),
        (
            "modality-dropout",
            {"sees": "all", "options": {"missing_fill": "mean", "exposure": "all"}},
            "modality-dropout (missing_fill mean, all)",
        ),
        ("zero-fill", {"sees": "nothing"}, "zero-fill"),
        ("reference", {"inputs": "visual,question", "sees": "all", "has_variants": True}, "visual+question-only (all)"),
        ("reference", {"inputs": "question", "sees": "nothing"}, "question-only"),
        # Rows of earlier versions.
        ("drfuse", {"sees": "thirds"}, "drfuse (sampled)"),
        ("rmm", {"sees": "replaced"}, "rmm (all)"),
    ],
)
def test_a_label_has_the_variant_the_steps_that_run_and_the_exposure(method, fields, label):
    assert labels(row(method, **fields)) == [label]


def test_the_label_stands_in_every_form_of_a_table_and_the_csv_has_its_parts(tmp_path: Path):
    fields = {**CHAIN, "variant": "paper", "diffusion_steps": 10, "trains_on": "all", "options": {"slots": 50}}
    blocks = build_blocks([row("rmm-avr", **fields)])
    label = "rmm-avr (paper, 10 steps, slots 50, all)"
    assert f"| {label} |" in markdown(blocks)
    assert f"{label} &" in latex(blocks)
    record = next(csv.DictReader(io.StringIO(comma_separated(blocks))))
    assert (record["row"], record["variant"], record["diffusion_steps"]) == (label, "paper", "10")
    assert (record["sees"], record["trains_on"], record["options"]) == ("all", "all", "slots 50")


def test_a_legend_of_long_labels_has_as_many_columns_as_fit():
    import matplotlib.pyplot as plt

    widths = {}
    for label in ("a", "rmm-avr (recommended, 10 steps, all)"):
        figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
        for number in range(8):
            axes.plot([0, 1], label=f"{label} {number}")
        unique_legend(axes)
        (legend,) = figure.legends
        assert legend.get_window_extent().width <= figure.bbox.width
        widths[label] = legend._ncols
        plt.close(figure)
    assert list(widths.values()) == [6, 2]


def test_two_exposures_of_a_method_are_two_lines():
    rows = [
        row("shaspec", sees=sees, training={"epochs": 3, "options": {"exposure": sees}}, run=f"shaspec-{sees}")
        for sees in ("sampled", "all")
    ]
    assert sorted(labels(*rows)) == ["shaspec (all)", "shaspec (sampled)"]


def trained(method: str, **changes: object) -> ResultRow:
    common = {"epochs": 2, "batch_size": 4, "start_from": "start", "learning_rate": 5e-4}
    training = {**common, **changes.pop("training", {})}
    return row(method, training=training, **{"sees": "all", "trains_on": "all", **changes})


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"sees": "sampled"}, "Exposure: all (drfuse (all)); sampled (rmm (sampled))."),
        ({"trains_on": "complete"}, "Trained on questions: all (drfuse (all)); complete (rmm (all))."),
        (
            {"training": {"epochs": 3}},
            "Trained for: 2 epochs from start (drfuse (all)); 3 epochs from start (rmm (all)).",
        ),
        ({"training": {"start_from": ""}}, "Trained for: 2 epochs from start (drfuse (all)); 2 epochs (rmm (all))."),
        ({"training": {"accumulate": 2}}, "Questions per step: 4 (drfuse (all)); 8 (rmm (all))."),
        ({"training": {"learning_rate": 1e-3}}, "Learning rate: 0.0005 (drfuse (all)); 0.001 (rmm (all))."),
        (
            {"variant": "paper", "has_variants": True},
            "Match loss on imputed pairs: no (drfuse (all)); yes (rmm (paper, all)).",
        ),
        (
            {"training": {"options": {"match_imputed": True}}, "options": {"match_imputed": True}},
            "Match loss on imputed pairs: no (drfuse (all)); yes (rmm (match_imputed True, all)).",
        ),
    ],
)
def test_what_methods_were_not_trained_alike_in_is_said(change, sentence, tmp_path: Path):
    rows = [trained("drfuse"), trained("rmm", **change)]
    (block,) = build_blocks(rows)
    assert describe_differences(block.lines) == [sentence]
    page = write_report(save(tmp_path / "runs", rows), tmp_path / "out").read_text(encoding="utf-8")
    assert sentence in page


def test_nothing_is_said_of_equal_trainings_and_of_references(tmp_path: Path):
    rows = [trained("rmm"), trained("drfuse"), trained("reference", inputs="question", sees="nothing")]
    (block,) = build_blocks(rows)
    assert not describe_differences(block.lines)
    page = write_report(save(tmp_path / "runs", rows), tmp_path / "out").read_text(encoding="utf-8")
    assert "not trained alike" not in page


def test_an_exposure_of_an_earlier_version_is_read_and_written_by_its_present_name():
    document = json.loads(row(sees="sampled").model_dump_json()) | {"sees": "thirds"}
    read = ResultRow.model_validate_json(json.dumps(document))
    assert json.loads(read.model_dump_json())["sees"] == "sampled"
