"""Question tokens: indices into the frozen vocabulary, named after it."""

import numpy as np
import pytest

from pipeline.extractors import make_question_extractor
from pipeline.failure import UserError
from pipeline.store.schema import tokens_name
from pipeline.weights import WeightsSource

TOKENS = ("<pad>", "Is", "the", "violin", "is", "playing", "more", "than", "ten")


def test_questions_become_indices_padded_to_fourteen():
    extractor = make_question_extractor("tokens", TOKENS)
    assert extractor.load(WeightsSource("seeded"), "cpu") == ""
    rows = extractor.extract(["Is the violin playing?", "the violin is playing more than the violin？"])
    assert rows.dtype == np.int32
    assert rows.shape == (2, 14)
    assert rows[0].tolist() == [1, 2, 3, 5] + [0] * 10
    assert rows[1].tolist() == [2, 3, 4, 5, 6, 7, 2, 3] + [0] * 6


def test_no_questions_give_no_rows():
    assert make_question_extractor("tokens", TOKENS).extract([]).shape == (0, 14)


def test_the_name_changes_with_the_vocabulary():
    extractor = make_question_extractor("tokens", TOKENS)
    assert extractor.name == tokens_name(TOKENS)
    assert extractor.name != make_question_extractor("tokens", (*TOKENS, "cello")).name
    assert extractor.constants()["vocabulary"] == list(TOKENS)


def test_an_unknown_word_is_named_with_its_question():
    with pytest.raises(UserError) as refusal:
        make_question_extractor("tokens", TOKENS).extract(["Is the violin playing?", "Is the theremin playing?"])
    assert "theremin" in str(refusal.value)
    assert "Is the theremin playing?" in str(refusal.value)


def test_a_question_that_is_too_long_is_refused():
    with pytest.raises(UserError, match="15"):
        make_question_extractor("tokens", TOKENS).extract([" ".join(["the"] * 15) + "?"])
