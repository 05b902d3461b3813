"""The accuracies that need no video: what any trained model has to beat. It is no model and reads no store.

A majority is the most frequent answer in the questions learnt from, of a multiple-choice question the most frequent
among its choices; of equals, the one met first there. Choices that were never an answer there cannot be given.
Learnt on MUSIC-AVQA json_update val, its test gives 51.05 % by template and 51.81 % by filled question.
"""

from collections import Counter
from collections.abc import Callable, Sequence

from pipeline.manifests.manifest import Manifest, Question
from train.runs.results import Accuracies, tally

LEARNING_SPLITS = ("train", "val")

Key = Callable[[Question], str]


def learning_questions(manifest: Manifest, split: str) -> tuple[Question, ...]:
    """Return what floors of `split` may learn from: train, else val; () where neither is another split."""
    for candidate in LEARNING_SPLITS:
        if candidate != split and manifest.questions.get(candidate):
            return manifest.questions[candidate]
    return ()


def template_majority(train: Sequence[Question], test: Sequence[Question]) -> Accuracies:
    """Answer each test question with its template's majority in `train`, else with the overall majority.

    Raises ValueError where either is empty.
    """
    return tally(test, _back_off(train, test, [_template, _anything]))


def filled_majority(train: Sequence[Question], test: Sequence[Question]) -> Accuracies:
    """Answer with the majority of the filled text, else of the template, else of all questions.

    Raises ValueError where either is empty.
    """
    return tally(test, _back_off(train, test, [_text, _template, _anything]))


def always(answer: str, test: Sequence[Question]) -> Accuracies:
    """Give the same answer to every question. Raises ValueError where there is none."""
    return tally(test, [answer] * len(test))


def _back_off(train: Sequence[Question], test: Sequence[Question], keys: Sequence[Key]) -> list[str]:
    if not train:
        raise ValueError("no question to learn a majority from")
    tables = [(key, _rankings(train, key)) for key in keys]
    return [_best(question, [table.get(key(question), ()) for key, table in tables]) for question in test]


def _best(question: Question, rankings: Sequence[Sequence[str]]) -> str:
    """Return the first answer of the first ranking that the question allows, "" where none is."""
    answers = (answer for ranking in rankings for answer in ranking)
    return next((answer for answer in answers if question.choices is None or answer in question.choices), "")


def _rankings(train: Sequence[Question], key: Key) -> dict[str, list[str]]:
    """Return {key: its answers, the most frequent first}."""
    counts: dict[str, Counter[str]] = {}
    for question in train:
        counts.setdefault(key(question), Counter())[question.answer] += 1
    # Counter.most_common keeps the order of first appearance among equals.
    return {name: [answer for answer, _ in answers.most_common()] for name, answers in counts.items()}


def _text(question: Question) -> str:
    return question.text


def _template(question: Question) -> str:
    return question.template


def _anything(question: Question) -> str:
    return ""
