"""The question templates: filling, tokenising, vocabulary, encoding, and the tables of types and answers."""

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
def test_slots_are_replaced_whole_and_the_closing_mark_stays(template, values, text):
    assert fill(template, values) == text


@pytest.mark.parametrize("values", [[], ["a", "b"]])
def test_a_slot_without_its_value_is_refused(values):
    with pytest.raises(UserError, match="1 slots"):
        fill("Is there a <Object> sound?", values)


@given(WORDS, st.sampled_from(["", "?", "？", " ?", "? "]))
def test_tokens_are_the_words_without_the_closing_mark(words, mark):
    assert tokenise(" ".join(words) + mark) == words
    assert tokenise(normalise(" ".join(words) + mark)) == words


def test_normalise_keeps_a_text_without_a_question_mark():
    assert normalise(" Say  it. ") == "Say it."


def test_vocabulary_keeps_the_order_of_first_appearance_behind_the_padding():
    vocabulary = build_vocabulary(["Is it red?", "Is red loud?", "is it"], ["no", "yes", "no"])
    assert vocabulary.tokens == ("<pad>", "Is", "it", "red", "loud", "is")
    assert vocabulary.answers == ("no", "yes")


def test_a_word_called_like_the_padding_does_not_stand_twice():
    assert build_vocabulary(["a <pad> b"], []).tokens == ("<pad>", "a", "b")


def ask(text, answer="yes"):
    return Question("1", "a", text, text, answer, "Why", "Visual")


def test_the_frozen_vocabulary_is_of_the_training_split_else_of_all():
    questions = {"test": [ask("Is it loud?", "no")], "train": [ask("Is it red?")]}
    assert freeze_vocabulary(questions) == build_vocabulary(["Is it red?"], ["yes"])
    del questions["train"]
    assert freeze_vocabulary({**questions, "val": [ask("Why?")]}).tokens == ("<pad>", "Why", "Is", "it", "loud")
    assert freeze_vocabulary({}).tokens == ("<pad>",)


def test_the_longest_question_of_any_split_fits_and_fourteen_words_always():
    train = [ask("Is it red?")]
    assert freeze_vocabulary({"train": train, "test": [ask(" ".join(["Is"] * 14) + "?")]}).question_length == 14
    assert freeze_vocabulary({"train": train, "test": [ask(" ".join(["Is"] * 15) + "?")]}).question_length == 15


def test_an_open_vocabulary_leaves_out_what_a_single_question_says():
    train = [ask("Is it red?"), ask("Is it loud loud?"), ask("Why red?")]
    assert freeze_vocabulary({"train": train}, is_open=True).tokens == ("<pad>", "<unk>", "Is", "it", "red")
    assert build_vocabulary(["a <unk> b"], []).tokens == ("<pad>", "a", "b")


@given(WORDS)
def test_encoding_can_be_read_back(words):
    vocabulary = build_vocabulary([" ".join(words) + "?"], [])
    indices = encode(" ".join(words) + "？", index_tokens(vocabulary), 10)
    assert len(indices) == 10
    assert [vocabulary.tokens[index] for index in indices] == words + ["<pad>"] * (10 - len(words))


def test_unknown_words_are_named_with_their_question():
    index = index_tokens(build_vocabulary(["Is it red?"], []))
    with pytest.raises(UserError, match=r"'Is it a zither\?'.*: a, zither;"):
        encode("Is it a zither?", index, 14)


def test_a_question_longer_than_the_length_is_never_cut():
    index = index_tokens(build_vocabulary(["Is it red?"], []))
    assert encode("Is it red?", index, 3) == [1, 2, 3]
    with pytest.raises(UserError, match="3 words, at most 2"):
        encode("Is it red?", index, 2)


def test_the_answers_are_the_42_in_their_published_order():
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


def test_known_answers_take_the_published_order_and_others_their_own():
    assert order_answers(["yes", "no"]) == ANSWERS
    assert order_answers(["yes", "maybe", "yes"]) == ("yes", "maybe")


def test_types_groups_and_columns_stand_in_the_printed_order():
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


def test_slots_name_their_fillers():
    assert len(INSTRUMENTS) == len(set(INSTRUMENTS)) == 22
    assert set(SLOTS) == {"<Object>", "<LR>", "<LRer>", "<FL>", "<TH>", "<LL>", "<BA>"}


def test_importing_the_templates_loads_nothing_heavy():
    code = (
        "import sys, pipeline.manifests.templates; print(*{'torch', 'dask', 'av', 'click', 'numpy'} & set(sys.modules))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == ""
