"""Questions as a run reads them: unknown words and choices are named with the nearest known ones, or refused."""

import pytest

from pipeline.errors import UserError
from pipeline.manifests.manifest import Vocabulary
from pipeline.manifests.templates import find_template
from train.asking.questions import read_question

WORDS = ("<pad>", "How", "many", "flutes", "play")
CLOSED = Vocabulary(WORDS, ("one", "two"), question_length=6)
OPEN = Vocabulary((*WORDS, "<unk>"), ("one", "two"), question_length=6)


def test_a_question_is_normalised_and_known_words_have_no_notes():
    read = read_question("How many  flutes play ？", CLOSED, reads_tokens=True)
    assert (read.question.text, read.notes) == ("How many flutes play?", ())
    assert read_question("Was singt da?", CLOSED, reads_tokens=False).notes == ()


def test_unknown_words_are_read_as_such_by_an_open_vocabulary_and_refused_by_a_closed_one():
    read = read_question("How many fluts play?", OPEN, reads_tokens=True)
    assert read.notes == ("unknown words are read as <unk>: 'fluts' (did you mean 'flutes'?)",)
    with pytest.raises(UserError, match=r"does not know: 'fluts' \(did you mean 'flutes'\?\): use others, or train"):
        read_question("How many fluts play?", CLOSED, reads_tokens=True)


@pytest.mark.parametrize("vocabulary", [OPEN, CLOSED], ids=["open", "closed"])
@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("Was singt <unk>?", "has no word that the run knows"),
        ("how MANY?", r"'how' \(did you mean 'How'\?\), 'MANY' \(did you mean 'many'\?\)"),
        ("How many many many many many many?", "has 7 words, the run reads at most 6"),
        (" ? ", "has no words"),
    ],
)
def test_a_question_that_cannot_be_read_is_refused_with_the_reason(vocabulary, text, problem):
    with pytest.raises(UserError, match=problem):
        read_question(text, vocabulary, reads_tokens=True)


def test_choices_are_kept_and_unknown_ones_named():
    read = read_question("How many play?", CLOSED, True, choices=("two", "tow"))
    assert read.question.choices == ("two", "tow")
    assert read.notes == ("choices that the run does not know are never given: 'tow' (did you mean 'two'?)",)
    with pytest.raises(UserError, match="none of the choices is one of the run's 2 answers"):
        read_question("How many play?", CLOSED, True, choices=("tow",))


def test_the_template_of_a_question_has_its_words_and_values_of_its_slots():
    templates = ["How many <Object> are in the <Room>?", "How many <Object> are in the video?", "Is there a voiceover?"]
    assert find_template("How many flute are in the video?", templates) == templates[1]
    assert find_template("How many flute are in the hall ?", templates) == templates[0]
    assert find_template("How many people are in the video?", templates) is None
    assert find_template("Is there a voiceover", templates) == templates[2]
    assert find_template("Is there a", templates) is None
