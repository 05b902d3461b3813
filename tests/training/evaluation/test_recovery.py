"""The recovery error: 0 for the real features, 1 for their mean step, none for methods that do not impute features."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_run import train
from tiny_store import SIZES, make_manifest, make_store
from torch import nn

from pipeline.store.schema import MODALITIES
from train.backbones.registry import make_backbone
from train.data.dataset import QuestionDataset
from train.data.feature_bank import FeatureBank
from train.evaluation.evaluate_run import evaluate_run
from train.evaluation.predict import questions_of
from train.evaluation.recovery import measure_recovery
from train.interfaces import inputs_of
from train.methods.imputation import with_imputed
from train.methods.registry import make_method
from train.runs.results import read_results


class StoredFeatures(nn.Module):
    """A method that stores the real features of `batch`; `impute` maps their steps to the imputed ones."""

    def __init__(self, backbone, batch, impute):
        super().__init__()
        self.backbone = backbone
        with torch.no_grad():
            self.real = backbone.encode(batch).features
        self.row_of = {question: row for row, question in enumerate(batch.question_id)}
        self.masks = {"audio": batch.audio_mask, "visual": batch.visual_mask}
        self.impute = impute

    def complete(self, batch):
        (missing,) = set(MODALITIES) - set(batch.available)
        rows = [self.row_of[question] for question in batch.question_id]
        both = self.masks["audio"] & self.masks["visual"]
        imputed = self.impute(self.real[missing], both)[rows]
        return with_imputed(self.backbone.encode(batch), {missing: imputed}, batch.available[0])


@pytest.fixture
def dataset():
    store = make_store(40)
    return QuestionDataset(FeatureBank(store), make_manifest(store), "train", inputs_of(make_backbone("avst", SIZES)))


def measure(dataset, impute, batch_size=7):
    rows = questions_of(dataset, "complete")
    method = StoredFeatures(make_backbone("avst", SIZES).eval(), dataset.batch(rows), impute)
    return measure_recovery(method, dataset, rows, batch_size, "cpu")


def mean_step(real, both):
    return real[both].mean(0).expand_as(real)


def test_the_error_is_0_for_the_real_features_and_1_for_their_mean_step(dataset):
    assert measure(dataset, lambda real, both: real) == {"audio-missing": 0, "visual-missing": 0}
    assert measure(dataset, mean_step) == pytest.approx({"audio-missing": 1, "visual-missing": 1}, abs=1e-5)


def test_the_error_is_quadratic_in_the_deviation_and_independent_of_the_batch_size(dataset):
    errors = [measure(dataset, lambda r, b: (r + mean_step(r, b)) / 2, size) for size in (7, 64)]
    assert errors[0] == pytest.approx({"audio-missing": 0.25, "visual-missing": 0.25}, abs=1e-5)
    assert errors[0] == pytest.approx(errors[1], abs=1e-7)


def test_missing_steps_do_not_count(dataset):
    def wrong_elsewhere(real, both):
        return torch.where(both.reshape(*both.shape, *[1] * (real.dim() - 2)), real, real + 9)

    assert measure(dataset, wrong_elsewhere) == {"audio-missing": 0, "visual-missing": 0}


IMPUTING = {"zero-fill", "modality-dropout", "mean-fill", "constant-fill", "rmm", "avr", "rmm-avr", "retrieval-fill"}


@pytest.mark.parametrize("name", sorted({*IMPUTING, "prompts", "shaspec", "actionmae", "drfuse"}))
def test_only_methods_that_impute_features_have_a_recovery_error(dataset, name):
    method = make_method(name, make_backbone("avst", SIZES))
    rows = questions_of(dataset, "complete")
    if name == "retrieval-fill":
        method.prepare(iter([dataset.batch(rows)]), iter([dataset.batch(rows)]))
    errors = measure_recovery(method, dataset, rows, 16, "cpu")
    assert set(errors) == ({"audio-missing", "visual-missing"} if name in IMPUTING else set())
    assert all(np.isfinite(error) and error > 0 for error in errors.values())


def test_only_model_rows_with_one_missing_modality_have_an_error(tmp_path: Path):
    store = make_store(60)
    train(tmp_path / "run", store, epochs=1)
    evaluate_run(tmp_path / "run", make_manifest(store), FeatureBank(store), "val")
    rows = read_results(tmp_path / "run" / "results.jsonl")
    scenarios = {row.scenario for row in rows if row.recovery is not None}
    assert scenarios == {"audio-missing", "visual-missing"}
    assert all(row.recovery is None for row in rows if row.kind == "floor")
