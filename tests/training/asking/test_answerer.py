"""Answers about files: those of an evaluation on the store, whatever is missing; nothing is written."""

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
from asking_toys import Trained, open_answerer
from click.testing import CliRunner
from media_maker import steady, write_clip

from pipeline.errors import UserError
from pipeline.store.reader import FeatureStore
from pipeline.store.schema import State
from train.asking.answerer import Answerer, check_answers
from train.asking.loaded_run import LoadedRun, load_run
from train.asking.reply import Reply
from train.cli.ask import ask
from train.data.dataset import QuestionDataset
from train.data.feature_bank import FeatureBank
from train.data.scenarios import SCENARIO_OF
from train.evaluation.calibration import CALIBRATION, calibrate_run
from train.evaluation.evaluate_run import evaluate_run
from train.evaluation.predict import predict_each, probabilities
from train.interfaces import inputs_of
from train.runs.config import make_config
from train.runs.results import Count, save_results

QUESTION = "Is there a voiceover?"


def videos(store: FeatureStore, audio: State = State.COMPLETE, visual: State = State.COMPLETE) -> list[str]:
    found = (store.presence("audio") == audio) & (store.presence("visual") == visual)
    return [store.video_ids[row] for row in np.flatnonzero(found)]


def answers(reply: Reply, number: int = 0) -> dict[str, float]:
    return {ranked.answer: ranked.probability for ranked in reply.questions[number].answers}


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def from_store(trained: Trained, video: str, drop: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """Return {question: {answer: probability}} of the test questions on `video`, from the features of the store."""
    method, config = load_run(trained.run)
    manifest = trained.manifest
    dataset = QuestionDataset(
        FeatureBank(trained.opened), manifest, "train", inputs_of(method.backbone, config.map_size)
    )
    rows = np.array([row for row, question in enumerate(dataset.questions) if question.video_id == video])
    hidden = {dataset.questions[row].question_id: drop for row in rows}
    found = predict_each(
        method, dataset, rows, hidden, 64, "cpu", lambda batch, logits: probabilities(logits, None).tolist()
    )
    words = manifest.vocabulary.answers
    return {
        dataset.questions[row].text: dict(zip(words, own, strict=True)) for row, own in zip(rows, found, strict=True)
    }


@pytest.mark.parametrize("drop", [(), ("audio",), ("visual",), ("audio", "visual")], ids=SCENARIO_OF.get)
def test_answers_about_a_file_are_those_of_the_store_it_was_extracted_into(trained, answerer, drop):
    asked = {question.video_id for question in trained.manifest.questions["train"]}
    video = next(video for video in videos(trained.opened) if video in asked)
    expected = from_store(trained, video, drop)
    reply = answerer.ask(trained.clip(video), list(expected), drop=drop)
    assert (reply.scenario, reply.missing, reply.seconds) == (SCENARIO_OF[drop], drop, 2)
    assert [question.question for question in reply.questions] == list(expected)
    for number, text in enumerate(expected):
        given = answers(reply, number)
        assert reply.questions[number].best.answer == max(expected[text], key=expected[text].__getitem__)
        assert given == pytest.approx(expected[text], abs=1e-6)
    assert {states.state for name, states in reply.modalities.items() if name in drop} <= {"dropped"}


@pytest.mark.parametrize("missing", ["audio", "visual"])
def test_a_modality_that_the_file_does_not_have_is_found_and_imputed(trained, answerer, missing):
    (video, *_) = videos(trained.opened, **{missing: State.ABSENT})
    reply = answerer.ask(trained.clip(video), QUESTION)
    # What is there besides is of no influence: the same with the other one dropped is the question alone.
    other = {"audio": "visual", "visual": "audio"}[missing]
    alone = answerer.ask(trained.clip(video), QUESTION, drop=[other])
    assert (reply.missing, reply.scenario) == ((missing,), f"{missing}-missing")
    assert (reply.modalities[missing].state, reply.modalities[other].state) == ("absent", "available")
    assert reply.handling == f"zero-fill imputes the {missing} features"
    assert alone.scenario == "both-missing"
    assert "question alone" in alone.handling
    assert answers(alone) != answers(reply)


def test_silence_and_black_frames_are_hints_not_missing(answerer, tmp_path, monkeypatch):
    monkeypatch.setattr("media_maker.draw", lambda *size: np.zeros((128, 192, 3), np.uint8))
    monkeypatch.setattr("media_maker.make_waveform", lambda start, stop, rate: np.zeros(round(stop * rate), np.float32))
    clip = write_clip(tmp_path / "empty.mp4", steady(2), (0, 2))
    reply = answerer.ask(clip, QUESTION)
    assert reply.missing == ()
    assert {name: report.hint for name, report in reply.modalities.items()} == {"audio": "silent", "visual": "black"}


def test_a_modality_of_other_seconds_than_the_model_reads_is_missing(trained, tmp_path):
    clip = write_clip(tmp_path / "late.mp4", steady(2), (1.2, 2))
    method, config = load_run(trained.run)
    method.backbone.time_steps = 1
    with Answerer(trained.run, method, config) as answerer:
        reply = answerer.ask(clip, QUESTION)
    report = reply.modalities["audio"]
    assert (report.state, report.first_second, report.stop_second) == ("unread", 1, 2)
    assert reply.scenario == "audio-missing"


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("nowhere.mp4", None, "does not exist"),
        ("empty.mp4", b"", "neither audio nor frames that can be used"),
        ("text.mp4", b"no media" * 100, "neither audio nor frames that can be used"),
        (".", None, "is not a file"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_the_reason(answerer, tmp_path, name, content, problem):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=problem) as refused:
        answerer.ask(path, QUESTION)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_asking_changes_no_byte_of_the_run_and_needs_neither_store_nor_manifest(copied, tmp_path):
    (video, *_) = videos(copied.opened)
    config = json.loads((copied.run / "config.json").read_text())
    config |= {"store": str(tmp_path / "gone.zarr"), "manifest": str(tmp_path / "gone")}
    (copied.run / "config.json").write_text(json.dumps(config))
    before = contents(copied.run)
    reply = load_run(copied.run).ask(copied.clip(video), QUESTION)
    assert contents(copied.run) == before
    assert reply.temperature is None
    assert "mavqa-evaluate" in str(reply.questions[0].track_record)
    json.dumps(reply.to_document(top=2))


def test_a_run_that_recorded_no_specs_takes_those_of_the_store_if_it_is_that_of_the_training(copied, tmp_path):
    (video, *_) = videos(copied.opened)
    with open_answerer(copied.run) as answerer:
        expected = answers(answerer.ask(copied.clip(video), QUESTION))
    place = copied.run / "environment.json"
    environment = json.loads(place.read_text())
    del environment["feature_specs"]
    place.write_text(json.dumps(environment))
    with open_answerer(copied.run) as answerer:
        assert answers(answerer.ask(copied.clip(video), QUESTION)) == expected
    config = json.loads((copied.run / "config.json").read_text())
    (copied.run / "config.json").write_text(json.dumps(config | {"store": str(tmp_path / "gone.zarr")}))
    with pytest.raises(UserError, match=r"gone\.zarr is missing: pass the store .* as --store"):
        open_answerer(copied.run)
    with open_answerer(copied.run, store=str(copied.store)) as answerer:
        assert answers(answerer.ask(copied.clip(video), QUESTION)) == expected
    environment["store_fingerprints"]["vggish"] = "0" * 64
    place.write_text(json.dumps(environment))
    with pytest.raises(UserError, match="trained on vggish with fingerprint 0000"):
        open_answerer(copied.run, store=str(copied.store))
    place.write_text(json.dumps({**environment, "feature_specs": {"vggish": {"name": 3}}}))
    with pytest.raises(UserError, match=r"environment\.json is corrupt \(the spec of vggish: 'name'"):
        open_answerer(copied.run)


def test_weights_other_than_those_of_the_training_are_refused(trained, tmp_path):
    with open_answerer(trained.run, weights=str(tmp_path)) as answerer, pytest.raises(UserError, match="--weights"):
        answerer.ask(trained.clip(videos(trained.opened)[0]), QUESTION)


def test_choices_restrict_the_answers_and_their_probabilities(trained, answerer):
    (video, *_) = videos(trained.opened)
    free = answers(answerer.ask(trained.clip(video), QUESTION))
    least = min(free, key=free.__getitem__)
    reply = answerer.ask(trained.clip(video), QUESTION, choices=[least, "yes", "flut"])
    with pytest.raises(UserError, match=r"none of the choices .*'flut' \(did you mean 'flute'\?\)"):
        answerer.ask(trained.clip(video), QUESTION, choices=["flut"])
    assert set(answers(reply)) == {least, "yes"}
    assert sum(answers(reply).values()) == pytest.approx(1)
    assert answers(reply)["yes"] == pytest.approx(free["yes"] / (free["yes"] + free[least]), abs=1e-5)
    assert "'flut' (did you mean 'flute'?)" in reply.questions[0].notes[0]


def test_probabilities_are_those_at_the_temperature_of_the_scenario(copied):
    (video, *_) = videos(copied.opened)
    evaluated = calibrate_run(copied.run, copied.manifest, FeatureBank(copied.opened))
    assert evaluated is not None
    with open_answerer(copied.run) as answerer:
        calibrated = {drop: answerer.ask(copied.clip(video), QUESTION, drop=drop) for drop in SCENARIO_OF}
    (copied.run / CALIBRATION).unlink()
    with open_answerer(copied.run) as answerer:
        for drop, reply in calibrated.items():
            plain = answers(answerer.ask(copied.clip(video), QUESTION, drop=drop))
            temperature = evaluated.temperatures[SCENARIO_OF[drop]]
            powers = {answer: chance ** (1 / temperature) for answer, chance in plain.items()}
            expected = {answer: power / sum(powers.values()) for answer, power in powers.items()}
            assert reply.temperature == temperature
            assert answers(reply) == pytest.approx(expected, rel=1e-3, abs=1e-7)
            assert list(answers(reply)) == list(plain)
    assert len(set(evaluated.temperatures.values())) > 1


def test_the_track_record_is_the_accuracy_of_the_type_in_the_scenario_beside_the_higher_floor(copied):
    (video, *_) = videos(copied.opened)
    kind = "Visual Counting"
    question = next(q for q in copied.manifest.questions["test"] if q.type == kind)
    rows = evaluate_run(copied.run, copied.manifest, FeatureBank(copied.opened), "test", ("audio-missing",))
    number = rows[0].accuracies.types[kind].questions
    correct = {"zero-fill": number - 1, "template-majority": number - 2, "filled-majority": number}
    for row in rows:
        row.accuracies.types[kind] = Count(correct=correct[row.method], questions=number)
    save_results(copied.run, rows)
    with open_answerer(copied.run) as answerer:
        known = answerer.ask(copied.clip(video), question.text, drop=["audio"]).questions[0].track_record
        unknown = answerer.ask(copied.clip(video), question.text).questions[0].track_record
    assert (known.accuracy, known.questions) == (100 * (number - 1) / number, number)
    assert (known.floor, known.floor_name, known.exceeds_floor) == (100, "filled-majority", False)
    assert f"not evaluated on {kind!r} in scenario complete" in unknown
    shown = CliRunner().invoke(ask, [str(copied.run), str(copied.clip(video)), question.text, "--drop", "audio"])
    assert "the run does not exceed its floor on such questions" in shown.stderr


def test_a_pretraining_and_a_reference_are_refused_in_one_line():
    for settings, problem in (
        ({"objective": "grounding"}, "is a pre-training (grounding) without answers"),
        ({"inputs": "audio,question"}, "is a reference that reads only audio and question"),
    ):
        with pytest.raises(UserError, match=re.escape(problem)):
            check_answers(Path("run"), make_config("demo", **settings))


def test_a_loaded_run_is_its_method_and_configuration(trained):
    loaded = load_run(trained.run)
    method, config = loaded
    assert (loaded.method, loaded.config) == (method, config)
    assert isinstance(loaded, LoadedRun)
    assert config.method == "zero-fill"
    with pytest.raises(UserError, match="'sound' is no modality"):
        loaded.ask(trained.clip(videos(trained.opened)[0]), QUESTION, drop=["sound"])
