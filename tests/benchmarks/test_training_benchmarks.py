"""The measuring programs of stage two at small size: what peeks is caught, slot spreads obey their bounds."""

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


class LeakyDataset(QuestionDataset):
    """A dataset that gives the model what a mask hides."""

    def batch(self, rows, generator=None, masks=None):
        return super().batch(rows, generator)


class Peeking(nn.Module):
    """A method that looks behind its batch: it answers with the largest value stored for the video's sound."""

    def __init__(self, bank):
        super().__init__()
        self.backbone, self.bank = make_backbone("avst", SIZES), bank

    def predict(self, batch):
        store = self.bank().store
        array = store.values("vggish")
        stored = np.stack([array[store.rows[video], 0] for video in batch.video_id])
        return torch.nn.functional.one_hot(torch.from_numpy(stored)[:, :3].argmax(1), 3).float()


class Hearing(nn.Module):
    """A method that answers with the loudest of the first three channels of the sound that it is given."""

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
def test_a_method_that_reads_nothing_absent_shows_no_peek(method):
    findings = measure(make(method))
    assert [(found.scenario, found.peeks) for found in findings] == [(name, 0) for name in peek.DEPRIVED]
    assert all(found.questions == 24 for found in findings)
    assert [found.swapped is None for found in findings] == [False, False, True]


def test_a_thread_that_hands_over_what_is_hidden_is_caught(monkeypatch):
    monkeypatch.setattr(peek, "QuestionDataset", LeakyDataset)
    for found in measure(make("zero-fill")):
        assert found.emptied
        assert found.drawn
        assert found.verdict == "PEEKS"


def test_a_method_that_looks_into_the_store_behind_its_batch_is_caught(monkeypatch):
    opened = []

    class Watched(QuestionDataset):
        def batches(self, *given, **options):
            opened.append(self.bank)
            return super().batches(*given, **options)

        def __init__(self, bank, *given):
            super().__init__(bank, *given)
            self.bank = bank

    monkeypatch.setattr(peek, "QuestionDataset", Watched)
    audio_missing, visual_missing, both_missing = measure(Peeking(lambda: opened[-1]))
    for found in (audio_missing, both_missing):
        assert found.emptied
        assert found.drawn
    assert visual_missing.peeks == 0


def test_a_reference_that_sees_nothing_changes_no_answer_and_a_swap_that_it_reads_is_a_peek():
    honest = measure(make("reference", inputs="question"), "question")
    assert [found.verdict for found in honest] == ["ok"] * 3
    dishonest = measure(Hearing(), "visual,question")
    assert [found.verdict for found in dishonest] == ["changes less than 20 %", "PEEKS", "ok"]
    assert [found.verdict for found in measure(Hearing(), "audio,question")] == ["ok"] * 3


def test_a_method_that_ignores_what_is_present_misses_the_criterion():
    verdicts = [found.verdict for found in measure(make("reference", inputs="question"), "all")]
    assert verdicts == ["changes less than 20 %", "changes less than 20 %", "ok"]


def test_altered_stores_read_as_they_say():
    store = make_store(60)
    banks = peek.open_banks(store, make_manifest(store), "test", 0)
    emptied, drawn = banks.emptied["audio-missing"].store, banks.drawn["audio-missing"].store
    asked, steps = slice(48, 60), slice(0, 4)
    assert np.isnan(emptied.values("vggish")[50, steps]).all()
    assert (emptied.state("vggish") == 2).all()
    assert not emptied.steps("audio").any()
    other = drawn.values("vggish")[50, steps]
    assert np.isfinite(other).all()
    assert not np.isclose(other, store.arrays["vggish"][50, :4]).any()
    assert (drawn.presence("audio")[asked] == 1).all()
    assert len(set(drawn.steps("audio")[asked])) > 1
    swapped = banks.swapped["visual-missing"].store.values("vggish")[50, steps]
    assert np.array_equal(swapped, store.arrays["vggish"][49, :4])
    for altered in (emptied, drawn):
        maps = altered.values("resnet18-map")[50, steps]
        assert np.array_equal(maps, store.arrays["resnet18-map"][50, :4])


def test_slot_spreads_stay_within_what_the_formulas_allow():
    store, method = make_store(60), make("rmm", slots=5)
    steps = slot_spread.encode_steps(method, store, make_manifest(store), "test", None)
    assert {missing: len(rows) for missing, (rows, _) in steps.items()} == {"audio": 24 * 4, "visual": 24 * 4}
    for variant in ("paper", "released"):
        memory = slot_spread.fresh_memory(method, variant, 75, 0)
        limit = slot_spread.bound(memory.settings, 75)
        for missing, some in steps.items():
            found = slot_spread.spreads(memory, missing, some)
            assert 1 < float(found.max()) <= limit
    memory = slot_spread.fresh_memory(method, "recommended", 75, 0)
    assert slot_spread.bound(memory.settings, 75) is None
    assert float(slot_spread.spreads(memory, "audio", steps["audio"]).median()) > 3


def test_a_spread_is_the_largest_over_the_smallest_weight_of_each_step():
    class Known(nn.Module):
        def weights(self, modality, available, question):
            assert modality == "visual"
            return torch.tensor([[0.1, 0.2, 0.7], [0.5, 0.25, 0.25]], dtype=torch.float64)

    found = slot_spread.spreads(Known(), "audio", (torch.zeros(2, 4), torch.zeros(2, 4)))
    assert found.tolist() == pytest.approx([7.0, 2.0])


def test_the_bounds_are_those_of_the_specification():
    settings = slot_spread.RECALL_VARIANTS
    assert slot_spread.bound(settings["paper"], 75) == pytest.approx(2.718282, abs=1e-6)
    assert slot_spread.bound(settings["released"], 75) == pytest.approx(1.0083, abs=5e-5)


@pytest.mark.parametrize("program", [peek, slot_spread, noise_as_missing, validation_in_training])
def test_without_the_demo_one_line_says_so_and_the_exit_code_is_2(program, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["program"])
    with pytest.raises(SystemExit) as left:
        program.main()
    said = capsys.readouterr()
    assert left.value.code == 2
    assert said.err.count("\n") == 1
    assert "run 'make demo' first" in said.err
    assert not said.out


def test_the_question_floor_names_what_the_training_split_lacks():
    manifest = replace(make_manifest(make_store(videos=20)), release="json_update")
    said = question_floor.describe_training(manifest)
    assert said.startswith("24 training questions, 0.1 % of the 31,927 published\n")
    assert said.count("50.0") == 4


def test_the_question_floor_writes_a_store_that_only_questions_can_be_read_from(tmp_path):
    manifest = make_manifest(make_store(videos=20))
    question_floor.write_store(manifest, tmp_path / "store.zarr")
    question_floor.write_store(manifest, tmp_path / "store.zarr")  # a second run finds it
    store = open_store(tmp_path / "store.zarr")
    backbone = make_backbone("avst", SIZES)
    dataset = QuestionDataset(FeatureBank(store), manifest, "train", inputs_of(backbone, None))
    assert len(dataset) == 24
    assert not dataset.naturally_complete.any()
    assert dataset.naturally_incomplete.all()


def test_noise_on_real_features_is_told_from_a_modality_that_is_gone(monkeypatch):
    store = make_store(60)
    method = make_method("zero-fill", make_backbone("avst", SIZES)).eval()
    dataset = QuestionDataset(FeatureBank(store), make_manifest(store), "train", inputs_of(method.backbone))
    monkeypatch.setattr(noise_as_missing, "RELEASED_NOISE", {"audio": 0.0, "visual": 0.0})
    for missing in ("audio", "visual"):
        still = noise_as_missing.measure("run", method, dataset, missing)
        assert still.noise == still.complete
    batch, gone = dataset.batch([5, 9]), torch.Generator().manual_seed(0)
    expected = method.predict(batch)
    torch.testing.assert_close(noise_as_missing.answer_noisy(method, batch, "visual", gone), expected)
    monkeypatch.setattr(noise_as_missing, "RELEASED_NOISE", {"audio": 0.0, "visual": 50.0})
    assert not torch.allclose(noise_as_missing.answer_noisy(method, batch, "visual", gone), expected)
    still = noise_as_missing.measure("run", method, dataset, "audio")
    assert still.noise == still.complete


def test_only_methods_with_stand_ins_are_asked_with_noise(monkeypatch, tmp_path):
    store = make_store(60)
    config = SimpleNamespace(map_size=None)
    for name, measured in (("rmm-avr", 2), ("prompts", 0), ("drfuse", 0)):
        monkeypatch.setattr(noise_as_missing, "load_run", lambda folder, name=name: (make(name), config))
        found = noise_as_missing.measure_run(tmp_path, make_manifest(store), FeatureBank(store), "val")
        assert len(found) == measured


def test_an_unanswered_question_whose_answer_is_in_no_list_is_not_right():
    store = make_store(60)
    dataset = QuestionDataset(
        FeatureBank(store), make_manifest(store), "train", inputs_of(make_backbone("avst", SIZES))
    )
    dataset.answers[:2] = torch.tensor([-1, 2])
    assert percent_correct(dataset, np.arange(2), [-1, 2]) == 50


def test_training_on_validation_asks_its_questions_in_both_splits_and_leaves_the_test_alone():
    manifest = make_manifest(make_store())
    both = validation_in_training.with_validation(manifest).questions
    assert both["train"] == (*manifest.questions["train"], *manifest.questions["val"])
    assert both["val"] == manifest.questions["val"]
    assert both["test"] == manifest.questions["test"]


def test_training_on_validation_reports_the_chosen_epoch_beside_the_test(monkeypatch, tmp_path):
    manifest = make_manifest(make_store())
    asked = []

    def run(cells, given, bank, out, progress, jobs):
        asked.extend(cell.name for cell in cells)
        return {cell.name: {"scenarios": {"complete": {"overall": 40.0 + cell.config.seed}}} for cell in cells}

    monkeypatch.setattr(validation_in_training, "run_cells", run)
    monkeypatch.setattr(validation_in_training, "best_validation", lambda folder: {"complete": len(folder.name)})
    found = validation_in_training.measure(manifest, None, tmp_path, tmp_path, 2, 1)
    assert asked == ["zero-fill-seed0", "zero-fill-seed1"]
    assert found == [(15, 40.0), (15, 41.0)]
