"""The vocabulary of a source's questions: their own words and answers, or those of an existing run or manifest.

`UNKNOWN_WORDS` and `VOCABULARY` are the options of sources whose questions come from the user's files.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.errors import UserError
from pipeline.manifests.manifest import SPLITS, Question, Vocabulary, load_vocabulary
from pipeline.manifests.sources.interface import Option
from pipeline.manifests.templates import build_vocabulary, freeze_vocabulary, tokenise

UNKNOWN_WORDS = Option(
    "unknown-words",
    "Words of val and test that no training question has: keep them as words without training, map them and words of "
    "one training question to <unk>, or refuse to build.  [default: map, if there are any]",
    ("keep", "map", "refuse"),
)
VOCABULARY = Option(
    "vocabulary", "File vocabulary.json of a run or manifest, to evaluate that run.  [default: from the questions]"
)


def choose_vocabulary(
    questions: Mapping[str, Sequence[Question]], unknown_words: str | None = None, existing: Path | None = None
) -> Vocabulary:
    """Return the vocabulary of {split: questions}: that of the file `existing`, else one of the questions.

    The words of the training split are known (of all splits, if there is none), or those of `existing`. `unknown_words`
    says what becomes of others: "keep" adds them; "map" freezes an open vocabulary, in which they are `<unk>`; "refuse"
    raises; None is "map" if there are any.
    Raises `UserError`, with an example, if words are refused, or if `existing` is not a vocabulary of these questions.
    """
    if existing is not None:
        return _load_existing(questions, unknown_words, existing)
    closed = freeze_vocabulary(questions)
    unknown = _describe_unknown(questions, closed)
    if unknown and unknown_words == "refuse":
        raise UserError(f"--unknown-words refuse: {unknown} that no training question has: pass map or keep")
    if unknown_words == "keep":
        texts = (question.text for split in SPLITS for question in questions.get(split, ()))
        return replace(closed, tokens=build_vocabulary(texts, ()).tokens)
    return freeze_vocabulary(questions, is_open=True) if unknown or unknown_words == "map" else closed


def _load_existing(
    questions: Mapping[str, Sequence[Question]], unknown_words: str | None, existing: Path
) -> Vocabulary:
    if unknown_words == "keep":
        raise UserError(f"--unknown-words keep would add words to --vocabulary {existing}: pass map or refuse")
    if not existing.is_file():
        raise UserError(f"--vocabulary {existing} does not exist: pass the vocabulary.json of a run or a manifest")
    vocabulary = load_vocabulary(existing)
    unknown = _describe_unknown(questions, vocabulary)
    if unknown and (unknown_words == "refuse" or not vocabulary.is_open):
        cure = (
            "pass --unknown-words map"
            if vocabulary.is_open
            else "remove them, or train another run on a manifest built with --unknown-words map"
        )
        raise UserError(f"{unknown} that --vocabulary {existing} does not have: {cure}")
    texts = (question.text for members in questions.values() for question in members)
    longest = max(texts, key=lambda text: len(tokenise(text)), default="")
    if len(tokenise(longest)) > vocabulary.question_length:
        raise UserError(
            f"question {longest!r} has {len(tokenise(longest))} words, --vocabulary {existing} allows at most "
            f"{vocabulary.question_length}: shorten it"
        )
    return vocabulary


def _describe_unknown(questions: Mapping[str, Sequence[Question]], vocabulary: Vocabulary) -> str:
    """Return how many questions have words outside `vocabulary`, with an example, as text; "" if there are none."""
    known = set(vocabulary.tokens)
    texts = [question.text for members in questions.values() for question in members]
    found = [(text, new) for text in texts if (new := [word for word in tokenise(text) if word not in known])]
    if not found:
        return ""
    text, words = found[0]
    return f"{len(found):,} of {len(texts):,} questions have words, such as {words[0]!r} in {text!r},"
