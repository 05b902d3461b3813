"""Floors: the accuracies of majority answers, which use no video. A trained model should exceed them.

The majority answer is the most frequent one among the training questions, for a multiple-choice question the most
frequent one among its choices. Of equals it is the most frequent one of all training questions, else the first by name:
the order of the questions does not matter. A choice that is no training answer is never given. On the test split of
MUSIC-AVQA json_update, the majorities of val reach 51.05 % by template and 51.98 % by filled question.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from operator import attrgetter

from pipeline.manifests.manifest import Manifest, Question
from train.runs.results import Accuracies, tally

TRAINING_SPLITS = ("train", "val")

Key = Callable[[Question], str]


def floor_training_questions(manifest: Manifest, split: str) -> tuple[Question, ...]:
    """Return the questions to compute the floors of `split` from: train, else val; () if neither is another split."""
    for candidate in TRAINING_SPLITS:
        if candidate != split and manifest.questions.get(candidate):
            return manifest.questions[candidate]
    return ()


def template_majority(train: Sequence[Question], test: Sequence[Question]) -> Accuracies:
    """Answer each test question with the majority answer of its template in `train`, else of all questions.

    Raises ValueError if `train` or `test` is empty.
    """
    return tally(test, _predict_majorities(train, test, [attrgetter("template")]))


def filled_majority(train: Sequence[Question], test: Sequence[Question]) -> Accuracies:
    """Answer each test question with the majority answer of its filled text in `train`, else as `template_majority`.

    Raises ValueError if `train` or `test` is empty.
    """
    return tally(test, _predict_majorities(train, test, [attrgetter("text"), attrgetter("template")]))


def _predict_majorities(train: Sequence[Question], test: Sequence[Question], keys: Sequence[Key]) -> list[str]:
    """Return the majority answers of the `train` questions with the same first key, else second, ..., else of all."""
    if not train:
        raise ValueError("there are no training questions to find a majority answer in")
    tables = [(key, _rank_answers(train, key)) for key in (*keys, lambda question: "")]
    return [_best_allowed(question, [table.get(key(question), ()) for key, table in tables]) for question in test]


def _best_allowed(question: Question, rankings: Sequence[Sequence[str]]) -> str:
    """Return the first answer in `rankings` that is a choice of the question; "" if there is none."""
    answers = (answer for ranking in rankings for answer in ranking)
    return next((answer for answer in answers if question.choices is None or answer in question.choices), "")


def _rank_answers(train: Sequence[Question], key: Key) -> dict[str, list[str]]:
    """Return {key: its answers, the most frequent first; equals in the order of all answers, then by name}."""
    overall = Counter(question.answer for question in train)
    counts: dict[str, Counter[str]] = {}
    for question in train:
        counts.setdefault(key(question), Counter())[question.answer] += 1
    return {
        name: sorted(answers, key=lambda answer: (-answers[answer], -overall[answer], answer))
        for name, answers in counts.items()
    }
