"""A run is evaluated on manifests with other vocabularies: with its own numbering, or not at all."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from result_rows import stored_predictions
from tiny_run import tiny_config
from tiny_store import CLASSES, TEXTS, WORDS, make_manifest, make_store

from pipeline.errors import UserError
from pipeline.manifests.manifest import UNKNOWN_TOKEN, Manifest, Vocabulary
from pipeline.manifests.templates import encode, index_tokens
from pipeline.store.schema import tokens_name
from train.data.feature_bank import FeatureBank
from train.evaluation.evaluate_run import evaluate_run
from train.evaluation.summary import summarise_rows
from train.runs.results import Prediction, ResultRow
from train.training.fit import fit


@pytest.fixture(scope="module")
def store():
    """A store with the words of `WORDS`, encoded as an extraction does."""
    store = make_store(videos=40)
    vocabulary = Vocabulary(WORDS, CLASSES)
    encoded = [encode(text, index_tokens(vocabulary), vocabulary.question_length) for text in TEXTS.values()]
    store.questions[tokens_name(WORDS)] = np.array(encoded, np.int32)
    return store


@pytest.fixture(scope="module")
def run(store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    fit(tiny_config(epochs=3), make_manifest(store), FeatureBank(store), folder)
    return folder


@pytest.fixture
def evaluate_on(store, run: Path, tmp_path: Path) -> Callable[[Manifest], tuple[list[ResultRow], list[Prediction]]]:
    """A function that evaluates the run on the test split of a manifest; it returns the rows and the predictions."""

    def evaluate(manifest: Manifest) -> tuple[list[ResultRow], list[Prediction]]:
        out = tmp_path / f"{len(manifest.questions['test'])} questions"
        rows = evaluate_run(run, manifest, FeatureBank(store), "test", ("complete",), out=out)
        return rows, stored_predictions(out, "complete")

    return evaluate


def of_another_release(manifest: Manifest, words: tuple[str, ...], answers: tuple[str, ...]) -> Manifest:
    """Return the test split of a manifest, with its own vocabulary."""
    vocabulary = Vocabulary(words, answers)
    return replace(manifest, questions={"test": manifest.questions["test"]}, vocabulary=vocabulary)


def test_words_and_answers_in_another_order_give_the_predictions_of_the_runs_own_manifest(store, evaluate_on) -> None:
    manifest = make_manifest(store)
    _, expected = evaluate_on(manifest)
    assert len({prediction.prediction for prediction in expected}) > 1
    release = of_another_release(manifest, ("<pad>", "shows", "sounds", "What"), CLASSES[::-1])
    rows, predictions = evaluate_on(release)
    assert predictions == expected
    assert rows[0].unknown_answers == 0


def test_a_part_of_the_words_and_answers_is_enough(store, evaluate_on) -> None:
    manifest = make_manifest(store)
    _, expected = evaluate_on(manifest)
    heard = tuple(question for question in manifest.questions["test"] if question.text == TEXTS["audio"])
    part = of_another_release(replace(manifest, questions={"test": heard}), ("<pad>", "sounds", "What"), CLASSES[1:])
    _, predictions = evaluate_on(part)
    assert predictions == [one for one in expected if one.question_id in {question.question_id for question in heard}]


def test_words_that_a_run_does_not_have_are_named_with_how_to_go_on(store, run: Path, evaluate_on) -> None:
    manifest = make_manifest(store)
    asked = tuple(replace(question, text="Which lute plays ?") for question in manifest.questions["test"])
    other = of_another_release(
        replace(manifest, questions={"test": asked}), (*WORDS, "Which", "lute", "plays"), CLASSES
    )
    with pytest.raises(UserError) as caught:
        evaluate_on(other)
    assert f"run {run} has no 3 words ('Which', 'lute', 'plays') of split 'test' of manifest 'tiny'" in str(
        caught.value
    )
    assert "train a run on a manifest built with --unknown-words map" in str(caught.value)


def test_an_open_run_names_the_vocabulary_to_build_with(store, evaluate_on, run: Path, tmp_path: Path) -> None:
    words = (*WORDS, UNKNOWN_TOKEN)
    store.questions[tokens_name(words)] = store.questions[tokens_name(WORDS)]
    manifest = make_manifest(store)
    opened = replace(manifest, vocabulary=Vocabulary(words, CLASSES))
    fit(tiny_config(epochs=1), opened, FeatureBank(store), tmp_path / "open")
    asked = tuple(replace(question, text="What lute ?") for question in manifest.questions["test"])
    store.question_rows["What lute ?"] = 0
    other = of_another_release(replace(manifest, questions={"test": asked}), ("<pad>", "lute", "What"), CLASSES)
    with pytest.raises(UserError, match=r"no word 'lute' .* build the manifest again with --vocabulary .*vocabulary"):
        evaluate_run(tmp_path / "open", other, FeatureBank(store), "test", ("complete",))
    both_open = replace(other, vocabulary=Vocabulary(("<pad>", "What", UNKNOWN_TOKEN), CLASSES))
    assert evaluate_run(tmp_path / "open", both_open, FeatureBank(store), "test", ("complete",))


def test_answers_that_a_run_does_not_have_are_named_or_counted(store, run: Path, evaluate_on) -> None:
    manifest = make_manifest(store)
    first, *others = manifest.questions["test"]
    asked = replace(manifest, questions={**manifest.questions, "test": (replace(first, answer="lute"), *others)})
    with pytest.raises(UserError, match=r"has no answer 'lute' of split 'test' .* --vocabulary .*run/vocabulary\.json"):
        evaluate_on(of_another_release(asked, WORDS, (*CLASSES, "lute")))
    rows, predictions = evaluate_on(asked)
    assert {row.unknown_answers for row in rows} == {1}
    assert not predictions[0].correct
    assert summarise_rows(rows)["unknown_answers"] == 1


def test_a_vocabulary_that_is_not_the_runs_own_is_refused(store, run: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(run, tmp_path / "copy"))
    (copied / "vocabulary.json").write_text(json.dumps(Vocabulary(WORDS, CLASSES[::-1]).to_json()))
    with pytest.raises(UserError, match=r"vocabulary.json has other words or answers, or in another order, than"):
        evaluate_run(copied, make_manifest(store), FeatureBank(store), "test", ("complete",))
