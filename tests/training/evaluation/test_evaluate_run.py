"""Evaluation of a run: the data must be those it was trained on; multiple choice in rows and floors."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from result_rows import stored_predictions
from tiny_run import tiny_config, train
from tiny_store import WORDS, TinyStore, make_manifest, make_store, offer

from pipeline.errors import UserError
from pipeline.store.schema import FeatureSpec, tokens_name
from train.data.feature_bank import FeatureBank
from train.evaluation.evaluate_run import evaluate_run
from train.training.fit import fit


class StoreWithWeights(TinyStore):
    """A store whose features record the weights that they were extracted with."""

    weights = "aaaa"

    def spec(self, feature: str) -> FeatureSpec:
        plain = super().spec(feature)
        constants = {"weights": {"weights": "file", "sha256": self.weights}}
        return FeatureSpec(plain.name, plain.modality, plain.dims, plain.shape, plain.dtype, constants)


def test_features_of_other_weights_are_an_error_with_both_hashes(tmp_path: Path) -> None:
    store = make_store(videos=60)
    store.__class__ = StoreWithWeights
    train(tmp_path / "run", store, epochs=1)
    manifest, bank = make_manifest(store), FeatureBank(store)
    assert evaluate_run(tmp_path / "run", manifest, bank, "val", ("complete",))[0].scenario == "complete"
    store.weights = "bbbb"
    with pytest.raises(UserError, match="weights aaaa, store tiny has weights bbbb"):
        evaluate_run(tmp_path / "run", manifest, bank, "val", ("complete",))


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
