"""The sizes of imputed features, in units of the variance of the real ones."""

import chain_scale
import pytest
import torch
from tiny_store import SIZES, make_manifest, make_store

from train.backbones.registry import make_backbone
from train.data.dataset import QuestionDataset
from train.data.feature_bank import FeatureBank
from train.interfaces import inputs_of
from train.methods.registry import make_method


@pytest.fixture
def dataset_of():
    store = make_store(60)
    return lambda method: QuestionDataset(FeatureBank(store), make_manifest(store), "test", inputs_of(method.backbone))


def make(name: str, **options):
    torch.manual_seed(0)
    return make_method(name, make_backbone("avst", SIZES), **options)


def test_the_features_of_the_available_modality_have_size_1_on_average_unless_they_are_refined(dataset_of):
    method = make("constant-fill")
    scales = {(s.missing, s.modality): s for s in chain_scale.measure_scales(method, dataset_of(method))}
    assert scales.keys() == {(missing, modality) for missing in ("audio", "visual") for modality in ("audio", "visual")}
    for available, missing in (("audio", "visual"), ("visual", "audio")):
        assert 0.1 < scales[missing, available].median < 2
        assert scales[missing, available].largest >= scales[missing, available].median
    # The constant is the same at every step.
    imputed = scales["audio", "audio"]
    assert imputed.largest == pytest.approx(imputed.median)


def test_a_constant_far_from_the_real_features_has_the_size_of_its_squared_distance(dataset_of):
    method = make("constant-fill")
    dataset = dataset_of(method)
    near = {s.missing: s for s in chain_scale.measure_scales(method, dataset) if s.missing == s.modality}
    with torch.no_grad():
        for constant in method.constants.values():
            constant.fill_(1e3)
    far = {s.missing: s for s in chain_scale.measure_scales(method, dataset) if s.missing == s.modality}
    assert all(far[m].median > 1e4 * near[m].median for m in far)


def test_a_method_that_imputes_no_features_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(chain_scale, "load_run", lambda run: (make("drfuse"), None))
    assert chain_scale.measure_run(tmp_path, tmp_path, tmp_path, "test") == []


def test_the_table_has_the_largest_size_of_all_seeds_and_the_means_of_the_rest():
    def measured(size: float, spread: float | None, accuracy: float) -> chain_scale.Measured:
        scales = [chain_scale.Scale("audio", modality, size, 10 * size) for modality in ("audio", "visual")]
        return chain_scale.Measured("audio", *scales, spread, 1.25, accuracy)

    lines = [*chain_scale.table_lines({("rmm", "audio"): [measured(1, 2, 50), measured(3, 4, 60)]})]
    assert lines[2] == "| rmm | audio | 2 | 30 | 2 | 30 | 1.25 | 3 | 55.00 |"
    (line,) = [*chain_scale.table_lines({("avr", "audio"): [measured(1, None, 50)]})][2:]
    assert line.split(" | ")[-2] == "–"
