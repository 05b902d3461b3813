"""Questions as a run reads them: their words, and the answers to choose from."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from pipeline.errors import UserError, did_you_mean
from pipeline.manifests.manifest import PADDING_TOKEN, UNKNOWN_TOKEN, Question, Vocabulary
from pipeline.manifests.templates import normalise, tokenise


@dataclass(frozen=True)
class AskedQuestion:
    """A question that a run can read. `notes`: on its words and choices, for the user; `question`: for the dataset."""

    question: Question
    notes: tuple[str, ...] = ()


def read_question(
    text: str,
    vocabulary: Vocabulary,
    reads_tokens: bool,
    choices: Sequence[str] | None = None,
    question_id: str = "1",
    video_id: str = "",
) -> AskedQuestion:
    """Return the question `text` about the video `video_id`.

    `reads_tokens`: whether the run reads words of `vocabulary`; other question features know every word. An unknown
    word is read as `<unk>` if the vocabulary is open. A choice that is none of the run's answers is never given.
    Raises `UserError`, with the nearest known words, if a word is unknown to a closed vocabulary, if no word is known,
    if the question is too long, or if no choice is known.
    """
    asked = normalise(text)
    words = tokenise(asked)
    if not words:
        raise UserError(f"question {text!r} has no words: pass a question such as 'How many instruments are there?'")
    notes: list[str] = []
    if reads_tokens:
        notes += _check_words(asked, words, vocabulary)
    unknown = [choice for choice in choices or () if choice not in vocabulary.answers]
    if unknown and len(unknown) == len(choices or ()):
        raise UserError(
            f"none of the choices is one of the run's {len(vocabulary.answers)} answers: "
            f"{_with_hints(unknown, vocabulary.answers)}: pass others"
        )
    if unknown:
        notes.append(f"choices that the run does not know are never given: {_with_hints(unknown, vocabulary.answers)}")
    chosen = None if choices is None else tuple(choices)
    question = Question(question_id, video_id, asked, asked, answer="", type="", modality="", choices=chosen)
    return AskedQuestion(question, tuple(notes))


def _check_words(text: str, words: Sequence[str], vocabulary: Vocabulary) -> list[str]:
    """Return the notes on the words of `text`; raise `UserError` if they cannot be read."""
    known = set(vocabulary.tokens) - {PADDING_TOKEN, UNKNOWN_TOKEN}
    unknown = [word for word in dict.fromkeys(words) if word not in known]
    if len(words) > vocabulary.question_length:
        raise UserError(
            f"question {text!r} has {len(words)} words, the run reads at most {vocabulary.question_length}: shorten it"
        )
    if not unknown:
        return []
    hints = _with_hints(unknown, known)
    if len(unknown) == len(set(words)):
        raise UserError(f"question {text!r} has no word that the run knows: {hints}: use words of its training")
    if not vocabulary.is_open:
        raise UserError(
            f"question {text!r} has words that the run does not know: {hints}: use others, or train a run on a "
            "manifest built with --unknown-words map"
        )
    return [f"unknown words are read as {UNKNOWN_TOKEN}: {hints}"]


def _with_hints(names: Sequence[str], known: Collection[str]) -> str:
    return ", ".join(f"{name!r}{did_you_mean(name, sorted(known))}" for name in names)
