"""What users should know of their questions before they train on them: one finding per kind, with its number.

None of these makes a manifest unusable, and some are right: the questions are taken as they are.
"""

import unicodedata
from collections.abc import Iterator

from pipeline.manifests.findings import Finding
from pipeline.manifests.manifest import Manifest
from pipeline.manifests.templates import tokenise


def review_vocabulary(manifest: Manifest) -> Iterator[Finding]:
    """Yield, for each split, how many of its questions have answers or words outside the vocabulary.

    Words of the training split are not reported: an open vocabulary excludes rare ones.
    """
    answers, words = set(manifest.vocabulary.answers), set(manifest.vocabulary.tokens)
    reading = "are read as <unk>, as are words of one training question only"
    if not manifest.vocabulary.is_open:
        reading = "stop the extraction of tokens: build the manifest again with --unknown-words map"
    for split in manifest.splits:
        questions = manifest.questions[split]
        if unknown := [question.answer for question in questions if question.answer not in answers]:
            message = (
                f"{len(unknown):,} of {len(questions):,} questions of {split!r} have answers outside the vocabulary, "
                f"such as {unknown[0]!r}: they always count as wrong"
            )
            yield Finding("unknown answers", split, message)
        if split == "train":
            continue
        new = [word for q in questions if (word := next((w for w in tokenise(q.text) if w not in words), None))]
        if new:
            message = (
                f"{len(new):,} of {len(questions):,} questions of {split!r} have words outside the vocabulary, such as "
                f"{new[0]!r}: they {reading}"
            )
            yield Finding("unknown words", split, message)


def review_questions(manifest: Manifest) -> Iterator[Finding]:
    """Yield what is odd about the questions themselves: answers alike, contradicting answers, undivided texts."""
    yield from _review_answers(manifest)
    yield from _review_contradictions(manifest)
    yield from _review_words(manifest)


def _review_answers(manifest: Manifest) -> Iterator[Finding]:
    alike: dict[str, dict[str, None]] = {}
    asked = (question.answer for split in manifest.splits for question in manifest.questions[split])
    for answer in (*manifest.vocabulary.answers, *asked):
        plain = " ".join(unicodedata.normalize("NFKC", answer).casefold().split())
        alike.setdefault(plain, {})[answer] = None
    groups = [list(answers) for answers in alike.values() if len(answers) > 1]
    if groups:
        example = " and ".join(map(repr, groups[0]))
        message = (
            f"{sum(map(len, groups)):,} answers differ from another one only in case, spaces or Unicode form, such as "
            f"{example}: they are different answers; if they should not be, write them alike"
        )
        yield Finding("answers alike", groups[0][0], message)


def _review_contradictions(manifest: Manifest) -> Iterator[Finding]:
    answers: dict[tuple[str, str, tuple[str, ...] | None], dict[str, None]] = {}
    for split in manifest.splits:
        for question in manifest.questions[split]:
            key = question.video_id, question.text, question.choices
            answers.setdefault(key, {})[question.answer] = None
    found = [(key, list(given)) for key, given in answers.items() if len(given) > 1]
    if found:
        (video_id, text, _), given = found[0]
        message = (
            f"{len(found):,} questions are repeated on the same video with other answers, such as {text!r} on "
            f"{video_id!r}: {' and '.join(map(repr, given))}; a model can give one of them only"
        )
        yield Finding("contradicting answers", text, message)


def _review_words(manifest: Manifest) -> Iterator[Finding]:
    texts = manifest.texts()
    undivided = [text for text in texts if _is_undivided(tokenise(text))]
    if undivided:
        message = (
            f"{len(undivided):,} of {len(texts):,} question texts are one word each, such as {undivided[0]!r}: words "
            "are separated by spaces; separate them before building, as a word segmenter does"
        )
        yield Finding("one word", undivided[0], message)


def _is_undivided(words: list[str]) -> bool:
    """Return whether a question is a single word with letters of a script without case, as those without spaces are."""
    return len(words) == 1 and any(unicodedata.category(letter) == "Lo" for letter in words[0])
