"""Calibration: the error by its definition, the temperature by its likelihood, the file beside the results."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_run import train
from tiny_store import make_manifest, make_store

from pipeline.errors import UserError
from train.data.feature_bank import FeatureBank
from train.data.scenarios import SCENARIOS
from train.evaluation.calibration import CALIBRATION, calibrate_run, find_calibration, read_calibration
from train.evaluation.evaluate_run import evaluate_run
from train.evaluation.predict import probabilities
from train.evaluation.reliability import calibration_error, fit_temperature
from train.evaluation.summary import describe_reliability


def test_the_error_is_the_mean_gap_of_15_bins_of_equal_width():
    # Two predictions in ((14) / 15, 1], one in (0.4, 0.4667], one of no probability in the first bin.
    confidences, hits = [1.0, 0.95, 0.45, 0.0], [True, False, True, False]
    assert calibration_error(confidences, hits) == pytest.approx(100 * (abs(1 - 1.95) + abs(1 - 0.45)) / 4)
    assert calibration_error([0.5, 0.5], [True, False]) == 0
    # An edge is in the lower bin: 0.4 and 0.38 share one, in which they cancel.
    assert calibration_error([6 / 15, 0.38], [True, False]) == pytest.approx(100 * (1 - 0.4 - 0.38) / 2)
    with pytest.raises(ValueError, match="no predictions"):
        calibration_error([], [])


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_the_temperature_of_sampled_answers_is_recovered(temperature):
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(20_000, 5, generator=generator)
    answers = torch.multinomial(probabilities(logits, None, temperature), 1, generator=generator)[:, 0]
    found = fit_temperature(logits.numpy(), answers.numpy())
    assert found == pytest.approx(temperature, rel=0.05)


def test_answers_that_are_no_choices_have_no_probability_and_no_influence():
    logits, choices = torch.tensor([[1.0, 2.0, 9.0], [1.0, 2.0, 9.0]]), torch.tensor([[True, True, False]] * 2)
    chances = probabilities(logits, choices, torch.tensor([1.0, 2.0]))
    assert chances[:, 2].tolist() == [0, 0]
    assert chances[0, :2].tolist() == pytest.approx(torch.tensor([1.0, 2.0]).softmax(0).tolist())
    assert chances[1, :2].tolist() == pytest.approx(torch.tensor([0.5, 1.0]).softmax(0).tolist())
    assert probabilities(logits, torch.zeros(2, 3, dtype=torch.bool)).tolist() == [[0, 0, 0], [0, 0, 0]]
    allowed, true = logits.masked_fill(~choices, -torch.inf).numpy(), np.array([0, 1])
    assert fit_temperature(allowed, true) == pytest.approx(fit_temperature(logits[:, :2].numpy(), true))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    run = tmp_path_factory.mktemp("calibrated") / "run"
    store = make_store(videos=60)
    train(run, store, epochs=1)
    return run, make_manifest(store), FeatureBank(store)


def test_a_calibration_is_fitted_once_per_checkpoint_and_lowers_no_likelihood(trained):
    run, manifest, bank = trained
    batches = []
    found = calibrate_run(run, manifest, bank, report=batches.append)
    assert set(found.temperatures) == set(SCENARIOS)
    assert found.questions == len(manifest.questions["val"])
    assert batches[-1].done == batches[-1].total == 4 * found.questions
    batches.clear()
    assert calibrate_run(run, manifest, bank, report=batches.append) == found == find_calibration(run)
    assert not batches
    other = found.subject.model_copy(update={"checkpoint_sha256": "00"})
    (run / CALIBRATION).write_text(found.model_copy(update={"subject": other}).model_dump_json())
    assert find_calibration(run) is None
    assert calibrate_run(run, manifest, bank) == found


def test_the_rows_have_the_errors_before_and_after_and_the_document_the_temperatures(trained):
    run, manifest, bank = trained
    found = calibrate_run(run, manifest, bank)
    rows = evaluate_run(run, manifest, bank, "val", temperatures=found.temperatures)
    document = describe_reliability(rows, found)
    assert document["calibrated_on"] == {"split": "val", "questions": found.questions}
    for scenario, temperature in found.temperatures.items():
        entry = document["scenarios"][scenario]
        assert entry["temperature"] == temperature
        assert entry["error"] != entry["calibrated_error"]
    plain = evaluate_run(run, manifest, bank, "val", ("complete",))[0].reliability
    assert plain.calibrated_error is None
    assert plain.error == document["scenarios"]["complete"]["error"]
    assert all(row.reliability is None for row in rows if row.kind == "floor")
    neutral = evaluate_run(run, manifest, bank, "val", ("natural", "complete"), temperatures={})
    assert all(r.reliability.error == r.reliability.calibrated_error for r in neutral if r.kind == "model")


def test_val_of_another_dataset_calibrates_nothing_and_corrupt_files_are_named(trained, tmp_path):
    run, manifest, bank = trained
    found = calibrate_run(run, manifest, bank)
    fewer = replace(manifest, questions={**manifest.questions, "val": manifest.questions["val"][:8]})
    assert calibrate_run(run, fewer, bank) == found
    assert calibrate_run(run, fewer, bank, out=tmp_path) is None
    without = {split: questions for split, questions in manifest.questions.items() if split != "val"}
    assert calibrate_run(run, replace(manifest, questions=without), bank, out=tmp_path) is None
    assert list(tmp_path.iterdir()) == []
    (tmp_path / CALIBRATION).write_text(json.dumps({"format": 2}))
    with pytest.raises(UserError, match=r"calibration\.json is not a calibration \(format = 2"):
        read_calibration(tmp_path)
