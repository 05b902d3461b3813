"""The question templates: filling, tokenising, vocabulary, encoding, and the question types and answers."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.manifests.manifest import Question
from pipeline.manifests.templates import (
    ANSWERS,
    AVQA_COLUMNS,
    AVQA_TYPES,
    COLUMNS,
    GROUPS,
    INSTRUMENTS,
    SLOTS,
    TYPES,
    build_vocabulary,
    encode,
    fill,
    freeze_vocabulary,
    group_of,
    index_tokens,
    normalise,
    order_answers,
    tokenise,
)

WORDS = st.lists(st.text("abcXYZ_,'", min_size=1, max_size=6), min_size=1, max_size=8)


@pytest.mark.parametrize(
    ("template", "values", "text"),
    [
        ("Is there a voiceover?", [], "Is there a voiceover?"),
        ("How many sounding <Object> in the video？", ["violin"], "How many sounding violin in the video?"),
        ("What is the <LRer> instrument? ", ["leftest"], "What is the leftest instrument?"),
        ("Is the <Object> louder than the <Object>?", ["erhu", "drum"], "Is the erhu louder than the drum?"),
        ("Is  this\tthe <Object>？ ", ["tuba"], "Is this the tuba?"),
        ("Name the <Object> ?", ["tuba"], "Name the tuba?"),
        ("Name the x<Object>y", ["tuba"], "Name the tuba"),
    ],
)  # fmt: skip
def test_slots_are_replaced_and_the_question_mark_stays(template, values, text):
    assert fill(template, values) == text


@pytest.mark.parametrize("values", [[], ["a", "b"]])
def test_different_numbers_of_slots_and_values_are_an_error(values):
    with pytest.raises(UserError, match="1 slots"):
        fill("Is there a <Object> sound?", values)


@given(WORDS, st.sampled_from(["", "?", "？", " ?", "? "]))
def test_tokens_are_the_words_without_the_question_mark(words, mark):
    assert tokenise(" ".join(words) + mark) == words
    assert tokenise(normalise(" ".join(words) + mark)) == words


def test_normalise_keeps_a_text_without_a_question_mark():
    assert normalise(" Say  it. ") == "Say it."


def test_the_vocabulary_is_in_order_of_first_appearance_after_the_padding_token():
    vocabulary = build_vocabulary(["Is it red?", "Is red loud?", "is it"], ["no", "yes", "no"])
    assert vocabulary.tokens == ("<pad>", "Is", "it", "red", "loud", "is")
    assert vocabulary.answers == ("no", "yes")


def test_a_word_equal_to_the_padding_token_does_not_occur_twice():
    assert build_vocabulary(["a <pad> b"], []).tokens == ("<pad>", "a", "b")


def question(text, answer="yes"):
    return Question("1", "a", text, text, answer, "Why", "Visual")


def test_the_frozen_vocabulary_comes_from_the_training_split_or_else_from_all():
    questions = {"test": [question("Is it loud?", "no")], "train": [question("Is it red?")]}
    assert freeze_vocabulary(questions) == build_vocabulary(["Is it red?"], ["yes"])
    del questions["train"]
    assert freeze_vocabulary({**questions, "val": [question("Why?")]}).tokens == ("<pad>", "Why", "Is", "it", "loud")
    assert freeze_vocabulary({}).tokens == ("<pad>",)


def test_question_length_is_that_of_the_longest_question_and_at_least_fourteen():
    train = [question("Is it red?")]
    assert freeze_vocabulary({"train": train, "test": [question(" ".join(["Is"] * 14) + "?")]}).question_length == 14
    assert freeze_vocabulary({"train": train, "test": [question(" ".join(["Is"] * 15) + "?")]}).question_length == 15


def test_an_open_vocabulary_excludes_words_of_a_single_question():
    train = [question("Is it red?"), question("Is it loud loud?"), question("Why red?")]
    assert freeze_vocabulary({"train": train}, is_open=True).tokens == ("<pad>", "<unk>", "Is", "it", "red")
    assert build_vocabulary(["a <unk> b"], []).tokens == ("<pad>", "a", "b")


@given(WORDS)
def test_encoding_can_be_inverted(words):
    vocabulary = build_vocabulary([" ".join(words) + "?"], [])
    indices = encode(" ".join(words) + "？", index_tokens(vocabulary), 10)
    assert len(indices) == 10
    assert [vocabulary.tokens[index] for index in indices] == words + ["<pad>"] * (10 - len(words))


def test_the_error_of_unknown_words_has_them_and_the_question():
    index = index_tokens(build_vocabulary(["Is it red?"], []))
    with pytest.raises(UserError, match=r"'Is it a zither\?'.*: a, zither;"):
        encode("Is it a zither?", index, 14)


def test_a_question_that_is_too_long_is_an_error():
    index = index_tokens(build_vocabulary(["Is it red?"], []))
    assert encode("Is it red?", index, 3) == [1, 2, 3]
    with pytest.raises(UserError, match="3 words, at most 2"):
        encode("Is it red?", index, 2)


def test_the_answers_are_the_published_42_in_order():
    numbers = {
        "zero",
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
        "eight",
        "nine",
        "ten",
        "more than ten",
    }
    others = {"yes", "no", "left", "middle", "right", "indoor", "outdoor", "simultaneously"}
    assert len(ANSWERS) == 42
    assert set(ANSWERS) == set(INSTRUMENTS) | numbers | others
    assert (ANSWERS[0], ANSWERS[7], ANSWERS[20], ANSWERS[41]) == ("two", "yes", "more than ten", "suona")


def test_known_answers_get_the_published_order_and_others_keep_theirs():
    assert order_answers(["yes", "no"]) == ANSWERS
    assert order_answers(["yes", "maybe", "yes"]) == ("yes", "maybe")


def test_types_groups_and_columns_are_in_the_order_of_the_paper():
    assert len(TYPES) == 9
    assert [group_of(name) for name in TYPES] == [GROUPS[0]] * 2 + [GROUPS[1]] * 2 + [GROUPS[2]] * 5
    singles = [column.types[0] for column in COLUMNS if len(column.types) == 1]
    assert tuple(singles) == TYPES
    labels = " ".join(column.label for column in COLUMNS)
    assert labels == "A-Cnt A-Comp A V-Cnt V-Loc V AV-Exist AV-Cnt AV-Loc AV-Comp AV-Temp AV All"
    assert [len(column.types) for column in COLUMNS] == [1, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1, 5, 0]
    for column in COLUMNS:
        groups = {group_of(name) for name in column.types}
        assert len(groups) <= 1


def test_avqas_types_are_columns_in_the_papers_order():
    labels = ["Used for", "When", "Before/Next", "Why", "Where", "Happening", "Come from", "Which", "All"]
    assert [column.label for column in AVQA_COLUMNS] == labels
    assert tuple(name for column in AVQA_COLUMNS for name in column.types) == AVQA_TYPES


def test_every_slot_has_fillers():
    assert len(INSTRUMENTS) == len(set(INSTRUMENTS)) == 22
    assert set(SLOTS) == {"<Object>", "<LR>", "<LRer>", "<FL>", "<TH>", "<LL>", "<BA>"}


def test_importing_the_templates_loads_nothing_heavy():
    code = (
        "import sys, pipeline.manifests.templates; print(*{'torch', 'dask', 'av', 'click', 'numpy'} & set(sys.modules))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == ""
