"""The benchmarks of stage two at small size: peek, slot_spread, noise_as_missing, validation_in_training and others."""

import sys
from dataclasses import replace
from types import SimpleNamespace

import noise_as_missing
import numpy as np
import peek
import pytest
import question_floor
import slot_spread
import torch
import validation_in_training
from tiny_store import SIZES, make_manifest, make_store
from torch import nn

from pipeline.store.reader import open_store
from train.backbones.registry import make_backbone
from train.data.dataset import QuestionDataset
from train.data.feature_bank import FeatureBank
from train.evaluation.predict import percent_correct
from train.interfaces import inputs_of
from train.methods.registry import make_method
from train.training.sweep import Outcome


class LeakyDataset(QuestionDataset):
    """A dataset that ignores the masks of missing modalities."""

    def load(self, parts, generator=None, masks=None):
        return super().load(parts, generator)


class StoreReader(nn.Module):
    """A method that answers with the largest of the first three stored audio channels of the video."""

    def __init__(self, bank):
        super().__init__()
        self.backbone, self.bank = make_backbone("avst", SIZES), bank

    def predict(self, batch):
        store = self.bank().store
        array = store.values("vggish")
        stored = np.stack([array[store.rows[video], 0] for video in batch.video_id])
        return torch.nn.functional.one_hot(torch.from_numpy(stored)[:, :3].argmax(1), 3).float()


class AudioReader(nn.Module):
    """A method that answers with the largest of the first three audio channels of the batch."""

    def __init__(self):
        super().__init__()
        self.backbone = make_backbone("avst", SIZES)

    def predict(self, batch):
        return torch.zeros(len(batch), 3) if batch.audio is None else batch.audio["vggish"][:, 0, :3]


def make(method: str, **options):
    torch.manual_seed(1)
    return make_method(method, make_backbone("avst", SIZES), **options)


def measure(method, inputs="all"):
    store = make_store(60)
    manifest = make_manifest(store)
    return peek.measure(method, inputs, peek.open_banks(store, manifest, "test", 0), manifest, "test", None)


@pytest.mark.parametrize("method", ["zero-fill", "rmm"])
def test_a_method_that_reads_no_missing_modality_has_no_peeks(method):
    findings = measure(make(method))
    assert [(finding.scenario, finding.peeks) for finding in findings] == [(s, 0) for s in peek.MISSING_SCENARIOS]
    assert all(finding.questions == 24 for finding in findings)
    assert [finding.swapped is None for finding in findings] == [False, False, True]


def test_a_dataset_that_returns_a_missing_modality_is_detected(monkeypatch):
    monkeypatch.setattr(peek, "QuestionDataset", LeakyDataset)
    for finding in measure(make("zero-fill")):
        assert finding.emptied
        assert finding.randomised
        assert finding.verdict == "PEEKS"


def test_a_method_that_reads_the_store_is_detected(monkeypatch):
    opened = []

    class Watched(QuestionDataset):
        def batches(self, *given, **options):
            opened.append(self.bank)
            return super().batches(*given, **options)

        def __init__(self, bank, *given):
            super().__init__(bank, *given)
            self.bank = bank

    monkeypatch.setattr(peek, "QuestionDataset", Watched)


def test_a_reference_that_reads_a_modality_outside_its_inputs_is_detected():
    question_only = measure(make("reference", inputs="question"), "question")
    assert [finding.verdict for finding in question_only] == ["ok"] * 3
    wrong_inputs = measure(AudioReader(), "visual,question")
    assert [finding.verdict for finding in wrong_inputs] == ["changes less than 20 %", "PEEKS", "ok"]
    assert [finding.verdict for finding in measure(AudioReader(), "audio,question")] == ["ok"] * 3


def test_a_method_that_ignores_the_available_modality_is_detected():
    verdicts = [finding.verdict for finding in measure(make("reference", inputs="question"), "all")]
    assert verdicts == ["changes less than 20 %", "changes less than 20 %", "ok"]


def test_altered_stores_return_the_changed_values():
    store = make_store(60)
    banks = peek.open_banks(store, make_manifest(store), "test", 0)
    emptied, randomised = banks.emptied["audio-missing"].store, banks.randomised["audio-missing"].store
    test_videos, steps = slice(48, 60), slice(0, 4)
    assert np.isnan(emptied.values("vggish")[50, steps]).all()
    assert (emptied.state("vggish") == 2).all()
    assert not emptied.steps("audio").any()
    values = randomised.values("vggish")[50, steps]
    assert np.isfinite(values).all()
    assert not np.isclose(values, store.arrays["vggish"][50, :4]).any()
    assert (randomised.presence("audio")[test_videos] == 1).all()
    assert len(set(randomised.steps("audio")[test_videos])) > 1
    swapped = banks.swapped["visual-missing"].store.values("vggish")[50, steps]
    assert np.array_equal(swapped, store.arrays["vggish"][49, :4])
    for altered in (emptied, randomised):
        maps = altered.values("resnet18-map")[50, steps]
        assert np.array_equal(maps, store.arrays["resnet18-map"][50, :4])


def test_slot_spreads_are_within_the_bounds_of_the_formulas():
    store, method = make_store(60), make("rmm", slots=5)
    steps = slot_spread.encode_steps(method, store, make_manifest(store), "test", None)
    assert {missing: len(rows) for missing, (rows, _) in steps.items()} == {"audio": 24 * 4, "visual": 24 * 4}
    for variant in ("paper", "released"):
        memory = slot_spread.untrained_memory(method, variant, 75, 0)
        limit = slot_spread.bound(memory.settings, 75)
        for missing, available in steps.items():
            spread = slot_spread.spreads(memory, missing, available)
            assert 1 < float(spread.max()) <= limit
    memory = slot_spread.untrained_memory(method, "recommended", 75, 0)
    assert slot_spread.bound(memory.settings, 75) is None
    assert float(slot_spread.spreads(memory, "audio", steps["audio"]).median()) > 3


def test_spread_is_the_largest_over_the_smallest_weight_of_each_step():
    class FixedMemory(nn.Module):
        def weights(self, modality, available, question):
            assert modality == "visual"
            return torch.tensor([[0.1, 0.2, 0.7], [0.5, 0.25, 0.25]], dtype=torch.float64)

    spread = slot_spread.spreads(FixedMemory(), "audio", (torch.zeros(2, 4), torch.zeros(2, 4)))
    assert spread.tolist() == pytest.approx([7.0, 2.0])


def test_bounds_equal_those_of_the_specification():
    settings = slot_spread.RECALL_VARIANTS
    assert slot_spread.bound(settings["paper"], 75) == pytest.approx(2.718282, abs=1e-6)
    assert slot_spread.bound(settings["released"], 75) == pytest.approx(1.0083, abs=5e-5)


@pytest.mark.parametrize("program", [peek, slot_spread, noise_as_missing, validation_in_training])
def test_without_the_demo_prints_one_line_and_exits_with_code_2(program, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["program"])
    with pytest.raises(SystemExit) as raised:
        program.main()
    captured = capsys.readouterr()
    assert raised.value.code == 2
    assert captured.err.count("\n") == 1
    assert "run 'make demo' first" in captured.err
    assert not captured.out


def test_question_floor_describes_the_missing_part_of_the_training_split():
    manifest = replace(make_manifest(make_store(videos=20)), release="json_update")
    description = question_floor.describe_training(manifest)
    assert description.startswith("24 training questions, 0.1 % of the 31,927 published\n")
    assert description.count("50.0") == 4


def test_question_floor_writes_a_store_with_question_features_only(tmp_path):
    manifest = make_manifest(make_store(videos=20))
    question_floor.write_store(manifest, tmp_path / "store.zarr")
    question_floor.write_store(manifest, tmp_path / "store.zarr")  # a second run finds it
    store = open_store(tmp_path / "store.zarr")
    backbone = make_backbone("avst", SIZES)
    dataset = QuestionDataset(FeatureBank(store), manifest, "train", inputs_of(backbone, None))
    assert len(dataset) == 24
    assert not dataset.naturally_complete.any()
    assert dataset.naturally_incomplete.all()


def test_noise_is_added_to_the_real_features_of_the_missing_modality(monkeypatch):
    store = make_store(60)
    method = make_method("zero-fill", make_backbone("avst", SIZES)).eval()
    dataset = QuestionDataset(FeatureBank(store), make_manifest(store), "train", inputs_of(method.backbone))
    monkeypatch.setattr(noise_as_missing, "RELEASED_NOISE", {"audio": 0.0, "visual": 0.0})
    for missing in ("audio", "visual"):
        accuracies = noise_as_missing.measure(method, dataset, missing)
        assert accuracies.noise == accuracies.complete
    batch, generator = dataset.batch([5, 9]), torch.Generator().manual_seed(0)
    expected = method.predict(batch)
    torch.testing.assert_close(noise_as_missing.answer_noisy(method, batch, "visual", generator), expected)
    monkeypatch.setattr(noise_as_missing, "RELEASED_NOISE", {"audio": 0.0, "visual": 50.0})
    assert not torch.allclose(noise_as_missing.answer_noisy(method, batch, "visual", generator), expected)
    accuracies = noise_as_missing.measure(method, dataset, "audio")
    assert accuracies.noise == accuracies.complete


def test_only_methods_that_impute_features_are_measured_with_noise(monkeypatch, tmp_path):
    store = make_store(60)
    config = SimpleNamespace(map_size=None)
    for name, rows in (("rmm-avr", 2), ("prompts", 0), ("drfuse", 0)):
        monkeypatch.setattr(noise_as_missing, "load_run", lambda folder, name=name: (make(name), config))
        accuracies = noise_as_missing.measure_run(tmp_path, make_manifest(store), FeatureBank(store), "val")
        assert len(accuracies) == rows


def test_a_missing_prediction_of_an_answer_outside_the_vocabulary_is_not_correct():
    store = make_store(60)
    dataset = QuestionDataset(
        FeatureBank(store), make_manifest(store), "train", inputs_of(make_backbone("avst", SIZES))
    )
    dataset.answers[:2] = torch.tensor([-1, 2])
    assert percent_correct(dataset, np.arange(2), [-1, 2]) == 50


def test_validation_questions_are_added_to_train_and_other_splits_are_unchanged():
    manifest = make_manifest(make_store())
    both = validation_in_training.with_validation(manifest).questions
    assert both["train"] == (*manifest.questions["train"], *manifest.questions["val"])
    assert both["val"] == manifest.questions["val"]
    assert both["test"] == manifest.questions["test"]


def test_validation_in_training_reports_the_selected_epoch_and_the_test_accuracy(monkeypatch, tmp_path):
    manifest = make_manifest(make_store())
    trained = []

    def run(cells, given, bank, out, progress, jobs):
        trained.extend(cell.name for cell in cells)
        accuracies = {cell.name: {"complete": {"overall": 40.0 + cell.config.seed}} for cell in cells}
        return Outcome({name: {"scenarios": scenarios} for name, scenarios in accuracies.items()}, {})

    monkeypatch.setattr(validation_in_training, "run_cells", run)
    monkeypatch.setattr(validation_in_training, "best_validation", lambda folder: {"complete": len(folder.name)})
    accuracies = validation_in_training.measure(manifest, FeatureBank(make_store()), tmp_path, tmp_path, 2, 1)
    assert trained == ["zero-fill-seed0", "zero-fill-seed1"]
    assert accuracies == [(15, 40.0), (15, 41.0)]
