"""The training loop on a tiny store: learning, selection, and resuming a stopped run to the same weights."""

import json
from dataclasses import replace
from importlib.metadata import version

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_run import Killed, tiny_config, train
from tiny_store import make_manifest, make_store, offer

from pipeline.errors import UserError
from pipeline.store.schema import State
from train.data.dataset import QuestionDataset
from train.data.feature_bank import FeatureBank
from train.data.scenarios import load_masks
from train.interfaces import Stage, inputs_of
from train.runs.claim import hash_training_data, read_data
from train.runs.folder import is_finished, load_run, write_tensors
from train.runs.identity import run_id
from train.runs.log import read_metrics, read_times
from train.training.fit import fit
from train.training.loop import plan_stages
from train.training.validation import measure_accuracy


def test_the_loop_learns_separable_features(tmp_path):
    method, _ = train(tmp_path / "run", make_store(videos=120), epochs=12, decay_epochs=12, learning_rate=1e-2)
    last = read_metrics(tmp_path / "run")[-1]
    assert last["validation"]["complete"] > 90
    assert last["losses"]["answer"] < 0.3
    assert not method.training


def test_equal_seeds_give_equal_weights_and_different_seeds_different_ones(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(tmp_path / name, seed=seed)
    first, same, other = (load_file(tmp_path / name / "last.safetensors") for name in "abc")
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


STOPS = [("zero-fill", (1, 2)), ("zero-fill", (3, 1)), ("rmm", (2, 1))]


@pytest.mark.parametrize(("method", "stop"), STOPS)
def test_a_stopped_run_resumes_to_the_weights_of_an_uninterrupted_one(tmp_path, method, stop):
    def stop_training(progress):
        if (progress.epoch, progress.step) == stop and progress.validation is None:
            raise Killed

    settings = {"method": method, "training": "staged"}
    train(tmp_path / "uninterrupted", **settings)
    with pytest.raises(Killed):
        train(tmp_path / "stopped", **settings, report=stop_training)
    train(tmp_path / "stopped", **settings, resume=True)
    epochs = [row["epoch"] for row in read_metrics(tmp_path / "uninterrupted")]
    assert list(read_times(tmp_path / "stopped")) == list(read_times(tmp_path / "uninterrupted")) == epochs
    for file in ("checkpoint.safetensors", "last.safetensors", "metrics.jsonl", "config.json"):
        assert (tmp_path / "stopped" / file).read_bytes() == (tmp_path / "uninterrupted" / file).read_bytes(), file


@pytest.mark.parametrize("facts", [{}, {"metrics": [], "best": 0.0}])
def test_a_state_that_does_not_fit_the_run_is_one_line(tmp_path, facts):
    def stop(progress):
        if progress.validation is not None:
            raise Killed

    with pytest.raises(Killed):
        train(tmp_path / "run", report=stop)
    write_tensors(tmp_path / "run" / "last.safetensors", {"model/x": torch.zeros(1)}, facts)
    with pytest.raises(UserError, match=r"last\.safetensors does not fit the run"):
        train(tmp_path / "run", resume=True)


def test_a_finished_run_is_loaded_and_not_trained_again(tmp_path):
    train(tmp_path / "run")
    written = (tmp_path / "run" / "last.safetensors").stat().st_mtime_ns
    train(tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "last.safetensors").stat().st_mtime_ns == written
    train(tmp_path / "run", resume=True, keep_state=False)
    assert (tmp_path / "run" / "last.safetensors").exists()
    assert is_finished(tmp_path / "run", tiny_config())


def test_the_state_of_a_training_is_removed_at_its_end_unless_it_is_to_be_kept(tmp_path):
    train(tmp_path / "run", epochs=1, keep_state=False)
    assert not (tmp_path / "run" / "last.safetensors").exists()
    assert is_finished(tmp_path / "run", tiny_config(epochs=1))


def test_runs_on_questions_or_videos_in_another_order_are_other_runs(tmp_path):
    store, turned = make_store(), make_store()
    turned.video_ids.reverse()
    for arrays in (turned.states, turned.step_counts, turned.arrays):
        arrays.update({name: values[::-1].copy() for name, values in arrays.items()})
    manifest = make_manifest(store)
    reversed_train = replace(manifest, questions=manifest.questions | {"train": manifest.questions["train"][::-1]})
    config = tiny_config(epochs=1)
    for name, own, data in (("a", store, manifest), ("b", turned, manifest), ("c", store, reversed_train)):
        fit(config, data, FeatureBank(own), tmp_path / name)
    assert len({run_id(tmp_path / name) for name in "abc"}) == 3
    assert len({hash_training_data(read_data(tmp_path / name)) for name in "abc"}) == 3
    with pytest.raises(UserError, match="or in another order"):
        fit(config, reversed_train, FeatureBank(store), tmp_path / "a", resume=True)
    fit(tiny_config(epochs=1, start_from="a"), reversed_train, FeatureBank(store), tmp_path / "d")


def test_overwriting_a_run_or_resuming_it_with_other_settings_is_an_error(tmp_path):
    train(tmp_path / "run")
    with pytest.raises(UserError, match="--resume"):
        train(tmp_path / "run")
    with pytest.raises(UserError, match="other settings"):
        train(tmp_path / "run", resume=True, learning_rate=1e-2)


def test_the_run_folder_records_configuration_environment_vocabulary_and_masks(tmp_path):
    train(tmp_path / "run", missing_rates={"audio": 0.4}, method="modality-dropout")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["method"], config["seed"], config["sizes"]["input_shapes"]["resnet18-map"]) == (
        "modality-dropout",
        1,
        [16, 2, 2],
    )
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert environment["libraries"]["torch"] == version("torch")
    assert set(environment["store_fingerprints"]) == {"vggish", "resnet18-map"}
    assert json.loads((tmp_path / "run" / "vocabulary.json").read_text())["answers"] == [
        "flute",
        "drum",
        "piano",
    ]
    assert load_masks(tmp_path / "run" / "masks-train.json").rates == {"audio": 0.4}
    assert not list((tmp_path / "run").glob("*.partial"))


def test_the_latest_of_the_best_epochs_is_returned(tmp_path, monkeypatch):
    scores = iter([50.0, 80.0, 60.0, 80.0, 10.0])
    monkeypatch.setattr("train.training.validation.measure_accuracy", lambda *arguments: next(scores))
    weights = []

    def collect_weights(progress):
        if progress.validation is not None:
            weights.append(load_file(tmp_path / "run" / "last.safetensors"))

    method, _ = train(tmp_path / "run", epochs=5, report=collect_weights)
    assert [row["selected"] for row in read_metrics(tmp_path / "run")] == [True, True, False, True, False]
    for name, values in method.state_dict().items():
        assert torch.equal(values, weights[3][f"model/{name}"])


@pytest.mark.parametrize("stopped_after", [0, 1, 2, 3])
def test_an_epoch_of_an_earlier_stage_is_never_selected(tmp_path, monkeypatch, stopped_after):
    accuracies = iter([90.0, 80.0, 10.0, 20.0])
    monkeypatch.setattr("train.training.loop.Loop._validate", lambda loop: {"audio-missing": next(accuracies)})
    settings = {"method": "prompts", "training": "staged", "epochs": 4}

    def stop(progress):
        if progress.validation is not None and progress.epoch == stopped_after:
            raise Killed

    if stopped_after:
        with pytest.raises(Killed):
            train(tmp_path / "run", report=stop, **settings)
    train(tmp_path / "run", resume=bool(stopped_after), **settings)
    rows = read_metrics(tmp_path / "run")
    assert [row["stage"] for row in rows] == ["backbone", "backbone", "prompts", "prompts"]
    assert [row["selected"] for row in rows] == [True, False, True, True]
    with safe_open(tmp_path / "run" / "checkpoint.safetensors", "pt") as checkpoint:
        assert json.loads(checkpoint.metadata()["facts"])["epoch"] == 4


def test_validation_uses_only_naturally_complete_questions(tmp_path):
    store = make_store(videos=20)
    method, config = train(tmp_path / "run", store, epochs=1)
    dataset = QuestionDataset(
        FeatureBank(store), make_manifest(store), "train", inputs_of(method.backbone, config.map_size)
    )
    complete = [row for row in range(len(dataset)) if dataset.naturally_complete[row]]
    assert complete == list(range(4, len(dataset)))
    assert measure_accuracy(method, dataset, "complete", torch.device("cpu")) == pytest.approx(
        100 * sum(_is_correct(method, dataset, row) for row in complete) / len(complete)
    )


def test_a_split_without_complete_videos_is_validated_on_its_natural_questions(tmp_path):
    store = make_store(videos=20)
    val = slice(12, 16)  # the videos of make_manifest's val split
    store.states["audio"][val], store.step_counts["audio"][val], store.arrays["vggish"][val] = State.ABSENT, 0, np.nan
    method, config = train(tmp_path / "run", store, epochs=1)
    dataset = QuestionDataset(
        FeatureBank(store), make_manifest(store), "val", inputs_of(method.backbone, config.map_size)
    )
    hits = [_is_correct(method, dataset, row) for row in range(len(dataset))]
    (row,) = read_metrics(tmp_path / "run")
    assert row["validation"] == {"natural": pytest.approx(100 * sum(hits) / len(hits))}
    assert any(hits)
    with pytest.raises(ValueError, match="no questions in scenario 'complete'"):
        measure_accuracy(method, dataset, "complete", torch.device("cpu"))


def test_a_val_split_of_failed_videos_is_an_error_before_any_epoch(tmp_path):
    store = make_store(videos=20)
    store.states["visual"][12:16], store.step_counts["visual"][12:16] = State.FAILED, 0
    with pytest.raises(UserError, match="no video of the val split was extracted"):
        train(tmp_path / "run", store, epochs=1)
    assert not (tmp_path / "run" / "config.json").exists()


def test_validation_answers_among_the_choices_and_never_counts_an_unknown_answer(tmp_path):
    store = make_store(videos=20)
    method, config = train(tmp_path / "run", store, epochs=1)

    def measure(choices, answer):
        manifest = make_manifest(store)
        manifest.questions["val"] = tuple(replace(q, answer=answer) for q in manifest.questions["val"])
        offered = offer(manifest, {q.question_id: choices for q in manifest.questions["val"]})
        dataset = QuestionDataset(FeatureBank(store), offered, "val", inputs_of(method.backbone, config.map_size))
        return measure_accuracy(method, dataset, "complete", torch.device("cpu"))

    assert measure(("drum", "kazoo"), "drum") == 100
    assert measure(("drum", "kazoo"), "flute") == 0
    assert measure(("kazoo", "cowbell"), "kazoo") == 0


def test_choices_do_not_affect_training(tmp_path):
    store = make_store(videos=20)
    plain = make_manifest(store)
    offered = offer(plain, {q.question_id: (q.answer, "kazoo") for q in plain.questions["train"]})
    for name, manifest in (("plain", plain), ("offered", offered)):
        fit(tiny_config(epochs=1), manifest, FeatureBank(store), tmp_path / name)
    weights = [load_file(tmp_path / name / "checkpoint.safetensors") for name in ("plain", "offered")]
    assert all(torch.equal(values, weights[1][name]) for name, values in weights[0].items())


def _is_correct(method, dataset, row) -> bool:
    with torch.no_grad():
        return bool(method.predict(dataset.batch([row])).argmax() == dataset.answers[row])


def test_a_method_trained_on_complete_data_never_gets_a_question_with_a_missing_modality(tmp_path, monkeypatch):
    from train.methods.zero_fill import ZeroFill

    batches = []
    original = ZeroFill.training_loss
    monkeypatch.setattr(ZeroFill, "training_loss", lambda self, b: (batches.append(b), original(self, b))[1])
    train(tmp_path / "run", epochs=1, missing_rates={"audio": 0.3, "visual": 0.3})
    masks = load_masks(tmp_path / "run" / "masks-train.json").absent
    questions = [question for batch in batches for question in batch.question_id]
    assert all(batch.available == ("audio", "visual") for batch in batches)
    assert not set(questions) & set(masks)
    assert 20 < len(questions) < 50


def test_stages_divide_the_epochs():
    class Staged:
        def stages(self):
            return (Stage("backbone", 0.5, ("backbone.",)), Stage("all", 0.5))

        def enter(self, stage):
            raise AssertionError

    plan = plan_stages(Staged(), "staged", 5)
    assert [(stage.name, list(epochs)) for stage, epochs in plan] == [
        ("backbone", [0, 1]),
        ("all", [2, 3, 4]),
    ]
    assert [epochs for _, epochs in plan_stages(Staged(), "joint", 5)] == [range(5)]


def test_without_a_val_split_the_last_epoch_is_kept(tmp_path):
    store = make_store(videos=60)
    manifest = make_manifest(store)
    train_only = replace(manifest, questions={"train": manifest.questions["train"]})
    fit(tiny_config(), train_only, FeatureBank(store), tmp_path / "run")
    assert [row["selected"] for row in read_metrics(tmp_path / "run")] == [True] * 3


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"backbone": "avsd2"}, "backbone 'avsd2' is unknown"),
        ({"method": "magic"}, "method 'magic' is unknown"),
        ({"variant": "paper"}, "have no variant 'paper'"),
        ({"device": "tpu9"}, "device 'tpu9'"),
        ({"missing_rates": {"audio": 1.0}}, "every question loses a modality, lower --missing-rate"),
        ({"objective": "grounding", "missing_rates": {"visual": 1.0}}, "every question loses a modality, lower"),
        ({"objective": "grounding", "variant": "released"}, "have no variant 'released'"),
        ({"method": "prompts"}, r"'prompts' trains on a frozen backbone, which would stay random: start from"),
        (
            {"method": "prompts", "training": "staged", "epochs": 1},
            "leaves no epoch for the stage 'backbone'",
        ),
        ({"method": "rmm", "options": {"variant": "paper"}}, "takes no option 'variant': set the variant of the run"),
        ({"backbone": "avsd", "backbone_options": {"variant": "paper"}}, "'avsd' takes no option 'variant'"),
    ],
)
def test_invalid_settings_are_one_line_errors_before_anything_is_written(tmp_path, overrides, message):
    with pytest.raises(UserError, match=message) as raised:
        train(tmp_path / "run", **overrides)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize("damage", ["truncated", "missing", "of another model"])
def test_the_error_for_a_corrupt_checkpoint_has_its_file_name(tmp_path, damage):
    train(tmp_path / "run", epochs=1)
    path = tmp_path / "run" / "checkpoint.safetensors"
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:100])
    elif damage == "missing":
        path.unlink()
    else:
        path.write_bytes((tmp_path / "run" / "last.safetensors").read_bytes())
    with pytest.raises(UserError, match=r"checkpoint\.safetensors"):
        load_run(tmp_path / "run")
