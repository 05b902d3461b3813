"""Evaluation of a run: the data must be those it was trained on; multiple choice in rows and floors."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from result_rows import stored_predictions
from tiny_run import tiny_config, train
from tiny_store import QUESTION_DIMS, WORDS, TinyStore, make_manifest, make_store, offer

from pipeline.errors import UserError
from pipeline.store.schema import FeatureSpec, tokens_name
from train.data.feature_bank import FeatureBank
from train.evaluation.evaluate_run import evaluate_run
from train.runs.claim import hash_training_data, read_data
from train.runs.folder import read_tensors, write_tensors
from train.runs.identity import CHECKPOINT, run_id
from train.training.fit import fit


class StoreWithWeights(TinyStore):
    """A store whose features record the weights that they were extracted with."""

    weights, question_weights = "aaaa", "cccc"

    def spec(self, feature: str) -> FeatureSpec:
        return replace(super().spec(feature), constants={"weights": {"weights": "file", "sha256": self.weights}})

    def question_spec(self, name: str) -> FeatureSpec:
        constants = {"weights": {"weights": "file", "sha256": self.question_weights}}
        return replace(super().question_spec(name), constants=constants)


def test_features_of_other_weights_are_an_error_with_both_hashes(tmp_path: Path) -> None:
    store = make_store(videos=60)
    store.__class__ = StoreWithWeights
    train(tmp_path / "run", store, epochs=1)
    manifest, bank = make_manifest(store), FeatureBank(store)
    assert evaluate_run(tmp_path / "run", manifest, bank, "val", ("complete",))[0].scenario == "complete"
    store.weights = "bbbb"
    with pytest.raises(UserError, match="weights aaaa, store tiny has weights bbbb"):
        evaluate_run(tmp_path / "run", manifest, bank, "val", ("complete",))


def store_with_question_weights(weights: str) -> StoreWithWeights:
    """Return a store whose question features are those of `weights`; all other features are the same."""
    store = make_store(videos=60)
    store.__class__ = StoreWithWeights
    store.question_weights = weights
    for values in store.questions.values():
        if values.dtype == np.float16:
            values += len(weights)
    return store


def test_question_features_of_other_weights_are_an_error_with_both_hashes(tmp_path: Path) -> None:
    store, other = store_with_question_weights("cccc"), store_with_question_weights("ddddd")
    train(tmp_path / "run", store, backbone="pstp", epochs=1)
    with pytest.raises(UserError, match="-sentence with weights cccc, store tiny has weights ddddd"):
        evaluate_run(tmp_path / "run", make_manifest(other), FeatureBank(other), "val", ("complete",))


def test_runs_on_other_question_features_are_other_runs_and_not_resumed(tmp_path: Path) -> None:
    stores = {name: store_with_question_weights(name) for name in ("cccc", "ddddd")}
    for name, store in stores.items():
        train(tmp_path / name, store, backbone="pstp", epochs=1)
    assert len({run_id(tmp_path / name) for name in stores}) == 2
    assert len({hash_training_data(read_data(tmp_path / name)) for name in stores}) == 2
    with pytest.raises(UserError, match="other questions or features"):
        train(tmp_path / "cccc", stores["ddddd"], backbone="pstp", epochs=1, resume=True)


def test_a_run_without_a_record_of_its_question_features_is_resumed_and_evaluated(tmp_path: Path) -> None:
    store, run = store_with_question_weights("cccc"), tmp_path / "run"
    train(run, store, backbone="pstp", epochs=1)
    data, environment = (json.loads((run / name).read_text()) for name in ("data.json", "environment.json"))
    for table in (data["features"], data["rows"], environment["store_fingerprints"], environment["feature_weights"]):
        for name in QUESTION_DIMS:
            del table[name]
    (run / "data.json").write_text(json.dumps(data))
    (run / "environment.json").write_text(json.dumps(environment))
    tensors, facts = read_tensors(run / CHECKPOINT)
    write_tensors(run / CHECKPOINT, tensors, {**facts, "run": run_id(run)})
    train(run, store, backbone="pstp", epochs=1, resume=True)
    assert evaluate_run(run, make_manifest(store), FeatureBank(store), "val", ("complete",))


def test_a_trained_run_without_its_metrics_is_refused_and_an_imported_one_is_not(tmp_path: Path) -> None:
    store, run = make_store(), tmp_path / "run"
    train(run, store)
    (run / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match=r"run/metrics.jsonl is missing"):
        evaluate_run(run, make_manifest(store), FeatureBank(store), "test", ("complete",))
    (run / "environment.json").write_text('{"imported_from": {}}')
    rows = evaluate_run(run, make_manifest(store), FeatureBank(store), "test", ("complete",))
    assert rows[0].training["epochs"] == 3


def test_floors_of_other_templates_are_told_apart(tmp_path: Path) -> None:
    store = make_store()
    train(tmp_path / "run", store, epochs=1)
    manifest = make_manifest(store)
    one_template = tuple(replace(question, template="?") for question in manifest.questions["train"])
    trained_on = set()
    for own in (manifest.questions["train"], one_template):
        changed = replace(manifest, questions={**manifest.questions, "train": own})
        rows = evaluate_run(tmp_path / "run", changed, FeatureBank(store), "test", ("complete",))
        trained_on |= {row.trained_on_sha256 for row in rows if row.kind == "floor"}
    assert len(trained_on) == 2


def test_rows_count_multiple_choice_questions_and_floors_answer_among_the_choices(tmp_path: Path) -> None:
    store = make_store(videos=60)
    train(tmp_path / "run", store, epochs=1)
    manifest = make_manifest(store)
    choices = {q.question_id: (q.answer, "kazoo") for q in manifest.questions["val"][:9]}
    offered = offer(manifest, choices)
    rows = evaluate_run(tmp_path / "run", offered, FeatureBank(store), "val", ("complete", "audio-missing"))
    assert {row.multiple_choice for row in rows} == {9}
    predictions = stored_predictions(tmp_path / "run", "audio-missing", "val")
    assert all(prediction.correct for prediction in predictions[:9])
    with_choices = [row.accuracies.overall for row in rows if row.kind == "floor"]
    rows = evaluate_run(tmp_path / "run", manifest, FeatureBank(store), "val", ("complete", "audio-missing"))
    plain = [row.accuracies.overall for row in rows if row.kind == "floor"]
    assert all(a.correct > b.correct for a, b in zip(with_choices, plain, strict=True))


def test_a_run_pads_questions_to_its_own_length(tmp_path: Path) -> None:
    store = make_store(videos=20)
    store.questions[tokens_name(WORDS, 20)] = np.tile(np.array([1, 2, 3, 0], np.int32), (2, 5))
    manifest = make_manifest(store)
    longer = replace(manifest, vocabulary=replace(manifest.vocabulary, question_length=20))
    fit(tiny_config(epochs=1), longer, FeatureBank(store), tmp_path / "run")
    assert evaluate_run(tmp_path / "run", longer, FeatureBank(store), "val", ("complete",))[0].scenario == "complete"
    assert evaluate_run(tmp_path / "run", manifest, FeatureBank(store), "val", ("complete",))[0].scenario == "complete"
    words = " ".join(["What"] * 21)
    asked = {"val": tuple(replace(q, text=words) for q in manifest.questions["val"])}
    with pytest.raises(UserError, match=r"reads questions of at most 20 words, a question of split .* has 21"):
        evaluate_run(tmp_path / "run", replace(manifest, questions=asked), FeatureBank(store), "val", ("complete",))
