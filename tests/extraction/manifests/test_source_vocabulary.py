"""The vocabulary of a source's questions: unknown words, and the vocabulary of an existing run."""

import json
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.extractors.question_tokens import QuestionTokens
from pipeline.manifests.manifest import Question, Vocabulary
from pipeline.manifests.sources.vocabulary import choose_vocabulary


def ask(*texts: str) -> tuple[Question, ...]:
    return tuple(Question(text, "v", text, text, "yes", "", "") for text in texts)


KNOWN = ask("Is it loud?", "Is it quiet?", "Is it loud or quiet?")
QUESTIONS = {"test": ask("Is it loud?", "Is zither loud?"), "train": KNOWN}
OF_TRAIN = ("<pad>", "Is", "it", "loud", "quiet", "or")


@pytest.mark.parametrize("unknown_words", [None, "keep", "map"])
def test_no_choice_lets_an_unknown_word_stop_the_extraction(unknown_words: str | None) -> None:
    tokens = QuestionTokens(choose_vocabulary(QUESTIONS, unknown_words))
    assert len(tokens.extract([question.text for members in QUESTIONS.values() for question in members])) == 5


@pytest.mark.parametrize(
    ("unknown_words", "tokens"),
    [
        (None, ("<pad>", "<unk>", "Is", "it", "loud", "quiet")),
        ("map", ("<pad>", "<unk>", "Is", "it", "loud", "quiet")),
        ("keep", (*OF_TRAIN, "zither")),
    ],
)
def test_unknown_words_are_mapped_by_default_or_kept(unknown_words: str | None, tokens: tuple[str, ...]) -> None:
    assert choose_vocabulary(QUESTIONS, unknown_words).tokens == tokens


def test_unknown_words_are_refused_with_their_number_and_an_example() -> None:
    message = "1 of 5 questions have words, such as 'zither' in 'Is zither loud\\?', that no training question has"
    with pytest.raises(UserError, match=message):
        choose_vocabulary(QUESTIONS, "refuse")


def test_without_unknown_words_only_map_opens_the_vocabulary() -> None:
    for unknown_words in (None, "keep", "refuse"):
        assert choose_vocabulary({"train": KNOWN, "test": KNOWN}, unknown_words).tokens == OF_TRAIN
    assert choose_vocabulary({"train": KNOWN}, "map").is_open


def existing(tmp_path: Path, *tokens: str) -> tuple[Path, Vocabulary]:
    vocabulary = Vocabulary(("<pad>", *tokens), ("no", "maybe"))
    (tmp_path / "vocabulary.json").write_text(json.dumps(vocabulary.to_json()))
    return tmp_path / "vocabulary.json", vocabulary


def test_the_vocabulary_of_a_run_is_taken_as_it_is(tmp_path: Path) -> None:
    path, vocabulary = existing(tmp_path, "zither", "loud", "it", "Is", "quiet", "or")
    assert choose_vocabulary(QUESTIONS, existing=path) == vocabulary
    path, vocabulary = existing(tmp_path, "<unk>", "loud")
    assert choose_vocabulary(QUESTIONS, existing=path) == vocabulary
    assert choose_vocabulary(QUESTIONS, "map", path) == choose_vocabulary({"test": ()}, existing=path) == vocabulary


def test_a_vocabulary_that_does_not_fit_the_questions_is_refused(tmp_path: Path) -> None:
    path, _ = existing(tmp_path, "Is", "it", "loud")
    with pytest.raises(UserError, match=r"that --vocabulary .*json does not have: remove them, or train another run"):
        choose_vocabulary(QUESTIONS, existing=path)
    with pytest.raises(UserError, match=r"--unknown-words keep would add words to --vocabulary .*json: pass map"):
        choose_vocabulary(QUESTIONS, "keep", path)
    path, _ = existing(tmp_path, "<unk>")
    with pytest.raises(UserError, match="does not have: pass --unknown-words map"):
        choose_vocabulary(QUESTIONS, "refuse", path)
    with pytest.raises(UserError, match=r"'Is Is .* has 15 words, --vocabulary .*json allows at most 14: shorten it"):
        choose_vocabulary({"test": ask(" ".join(["Is"] * 15))}, existing=path)
    with pytest.raises(UserError, match=r"--vocabulary nowhere.json does not exist: pass the vocabulary.json of a run"):
        choose_vocabulary(QUESTIONS, existing=Path("nowhere.json"))


def test_the_message_of_an_extraction_that_an_unknown_word_stops_names_the_cure() -> None:
    tokens = QuestionTokens(Vocabulary(OF_TRAIN, ("yes",)))
    with pytest.raises(UserError) as caught:
        tokens.check(["Is zither loud?"])
    assert "outside the vocabulary: zither" in str(caught.value)
    assert "--unknown-words map, or add '<unk>' to the tokens of its vocabulary.json" in str(caught.value)
