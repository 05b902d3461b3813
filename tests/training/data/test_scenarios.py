"""Scenarios, rates and saved masks."""

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_store import make_manifest, make_store

from pipeline.errors import UserError
from train.data.scenarios import (
    hidden_in,
    load_masks,
    missing_span,
    parse_parts,
    parse_rates,
    sample_masks,
    save_masks,
)

QUESTIONS = [
    dataclasses.replace(question, question_id=f"{copy}/{question.question_id}", video_id=f"{copy}/{question.video_id}")
    for copy in range(20)
    for question in make_manifest(make_store()).questions["train"]
]


def test_scenarios_hide_the_modalities_in_their_names():
    hidden = {s: hidden_in(s) for s in ("complete", "audio-missing", "visual-missing", "both-missing", "natural")}
    assert hidden == {
        "complete": (),
        "audio-missing": ("audio",),
        "visual-missing": ("visual",),
        "both-missing": ("audio", "visual"),
        "natural": (),
    }
    with pytest.raises(UserError, match="'silence' is unknown"):
        hidden_in("silence")


def test_rates_are_parsed_from_text():
    assert parse_rates("audio=0.3, visual=0.2") == {"audio": 0.3, "visual": 0.2}
    assert parse_rates("visual=1") == {"visual": 1.0}
    for invalid in (
        "audio",
        "audio=x",
        "sound=0.1",
        "audio=0.1,audio=0.2",
        "audio=1.5",
        "audio=nan",
        "audio=0.6,visual=0.6",
        "",
    ):
        with pytest.raises(UserError, match=r"^missing rate \(share of the questions\) ['a]"):
            parse_rates(invalid)


@settings(max_examples=40)
@given(st.floats(0, 0.35), st.floats(0, 0.35), st.integers(0, 10**6), st.sampled_from(["video", "question"]))
def test_masks_are_nested_over_rates_and_hide_at_most_one_modality(low, more, seed, unit):
    few = sample_masks(QUESTIONS, {"audio": low, "visual": low / 2}, seed, unit).absent
    many = sample_masks(QUESTIONS, {"audio": low + more / 2, "visual": low / 2 + more / 2}, seed, unit).absent
    assert few.items() <= many.items()
    assert all(modalities in (("audio",), ("visual",)) for modalities in many.values())


def test_masks_have_about_their_rates():
    hidden = list(sample_masks(QUESTIONS, {"audio": 0.3, "visual": 0.2}, seed=1).absent.values())
    assert abs(hidden.count(("audio",)) / len(QUESTIONS) - 0.3) < 0.06
    assert abs(hidden.count(("visual",)) / len(QUESTIONS) - 0.2) < 0.06


def test_with_unit_video_all_questions_on_a_video_lose_the_same_modality():
    absent = sample_masks(QUESTIONS, {"audio": 0.5}, seed=1, unit="video").absent
    states = {}
    for question in QUESTIONS:
        states.setdefault(question.video_id, set()).add(absent.get(question.question_id, ()))
    assert all(len(found) == 1 for found in states.values())
    assert len({next(iter(found)) for found in states.values()}) == 2


def test_a_mask_file_round_trips_with_its_header(tmp_path):
    masks = sample_masks(QUESTIONS, {"audio": 0.3, "visual": 0.2}, seed=4, unit="video")
    save_masks(masks, tmp_path / "masks.json")
    assert load_masks(tmp_path / "masks.json") == masks
    header = json.loads((tmp_path / "masks.json").read_text())
    assert (header["seed"], header["unit"], header["rates"]) == (4, "video", {"audio": 0.3, "visual": 0.2})


MASKS = {"format": 1, "seed": 1, "unit": "video", "rates": {"audio": 0.5}, "absent": {"p": [], "q": ["audio"]}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", " is not a JSON object with format, seed"),
        ("{", " is not JSON: Expecting"),
        ("[" * 100_000, " is not JSON: nested too deeply"),
        ({"format": 2}, ": 'format' is 2: it must be 1"),
        ({"seed": "1"}, ": 'seed' is '1': it must be a whole number"),
        ({"unit": "second"}, ": 'unit' is 'second': it must be 'video' or 'question'"),
        ({"rates": [0.5]}, r": 'rates' is \[0.5\]: it must be {modality: share"),
        ({"rates": {"smell": 0.5}}, r": missing rate .* smell=0.5: 'smell' is no modality"),
        ({"rates": {"audio": "x"}}, ": missing rate .* audio=x: it must be a number"),
        ({"absent": 3}, ": 'absent' is 3: it must be {question id: list of modalities}"),
        (
            {"absent": {"p": [], "q": ["smell"]}},
            r": 'absent', record 2, question 'q' is \['smell'\]: .* or \['audio'\]",
        ),
        ({"absent": {"q": "audio"}}, ": 'absent', record 1, question 'q' is 'audio': it must be"),
        ({"absent": {"q": [["audio"]]}}, ": 'absent', record 1, question 'q'"),
        *[({name: None}, f": '{name}' is missing: it must be") for name in MASKS],
    ],
)
def test_the_error_for_an_invalid_mask_file_has_its_field_and_value(tmp_path, content, message):
    valid = content if isinstance(content, str) else {k: v for k, v in {**MASKS, **content}.items() if v is not None}
    (tmp_path / "masks.json").write_text(valid if isinstance(valid, str) else json.dumps(valid))
    with pytest.raises(UserError, match=rf"^mask file \S+masks\.json{message}"):
        load_masks(tmp_path / "masks.json")


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_a_missing_span_has_its_share_of_the_steps_and_any_position(share: float) -> None:
    spans = [missing_span(8, share, 0, f"video{number}") for number in range(300)]
    assert {len(span) for span in spans} == {round(8 * share)}
    assert {span.start for span in spans} == set(range(8 - round(8 * share) + 1))
    assert missing_span(8, share, 0, "video7") == spans[7]
    assert missing_span(0, share, 0, "video7") == range(0)


def test_parts_may_cover_both_modalities_and_rates_may_not() -> None:
    assert parse_parts("audio=0.8,visual=0.7") == {"audio": 0.8, "visual": 0.7}
    assert parse_parts(None) is None
    for invalid in ("audio=1.5", "smell=0.1", "audio", ""):
        with pytest.raises(UserError, match=r"^missing part \(share of the seconds\) ['a]"):
            parse_parts(invalid)
