"""Question tokens: indices into the frozen vocabulary, whose hash is part of the feature name."""

import numpy as np
import pytest

from pipeline.errors import UserError
from pipeline.extractors.registry import make_question_extractor
from pipeline.extractors.weights import WeightsSource
from pipeline.manifests.manifest import Vocabulary
from pipeline.store.schema import tokens_name

TOKENS = ("<pad>", "Is", "the", "violin", "is", "playing", "more", "than", "ten")
WORDS = Vocabulary(TOKENS, ())


def test_questions_become_indices_padded_to_fourteen():
    extractor = make_question_extractor("tokens", WORDS)
    assert extractor.shape == (14,)
    assert extractor.load(WeightsSource("seeded"), "cpu") == ""
    rows = extractor.extract(["Is the violin playing?", "the violin is playing more than the violin？"])
    assert rows.dtype == np.int32
    assert rows.shape == (2, 14)
    assert rows[0].tolist() == [1, 2, 3, 5] + [0] * 10
    assert rows[1].tolist() == [2, 3, 4, 5, 6, 7, 2, 3] + [0] * 6


def test_no_questions_return_no_rows():
    assert make_question_extractor("tokens", WORDS).extract([]).shape == (0, 14)


def test_the_name_changes_with_the_vocabulary():
    extractor = make_question_extractor("tokens", WORDS)
    assert extractor.name == tokens_name(TOKENS)
    assert extractor.name != make_question_extractor("tokens", Vocabulary((*TOKENS, "cello"), ())).name
    assert extractor.constants() == {"version": 1, "vocabulary": list(TOKENS), "length": 14}


def test_names_for_fourteen_words_equal_those_of_existing_stores():
    assert tokens_name(("<pad>", "Is")) == "tokens-f09f798b"


def test_a_greater_question_length_gives_longer_rows_and_another_name():
    longer = make_question_extractor("tokens", Vocabulary(TOKENS, (), 15))
    rows = longer.extract([" ".join(["the"] * 15) + "?", "Is the violin playing?"])
    assert rows.tolist() == [[2] * 15, [1, 2, 3, 5, *[0] * 11]]
    assert longer.shape == (15,)
    assert longer.constants()["length"] == 15
    assert longer.name not in (tokens_name(TOKENS), tokens_name((*TOKENS, "15")), tokens_name(TOKENS, 16))


def test_an_open_vocabulary_maps_unknown_words_to_one_token():
    words = Vocabulary(("<pad>", "<unk>", "Is", "playing"), ())
    row = make_question_extractor("tokens", words).extract(["Is the theremin playing?"])[0]
    assert row.tolist() == [2, 1, 1, 3, *[0] * 10]


def test_the_error_for_an_unknown_word_names_the_word_and_its_question():
    with pytest.raises(UserError) as raised:
        make_question_extractor("tokens", WORDS).extract(["Is the violin playing?", "Is the theremin playing?"])
    assert "theremin" in str(raised.value)
    assert "Is the theremin playing?" in str(raised.value)


def test_a_question_that_is_too_long_raises():
    with pytest.raises(UserError, match="15"):
        make_question_extractor("tokens", WORDS).extract([" ".join(["the"] * 15) + "?"])
