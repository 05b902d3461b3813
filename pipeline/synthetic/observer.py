"""How well each modality answers the questions of a synthetic dataset: an observer that knows the generator.

The observer sees the question and one modality without error, and not the other one. It completes the clip in all the
ways that the generator may have, with their probabilities, and gives the answer that is most probable among those
completions in which the question can be asked; the balance of the answers (`balance`) enters as the share of each
template's and answer's candidates that was chosen in the training split. Nothing is fitted to the scored questions.
The order of instruments within a place is not known from the audio.
"""

import math
import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from pipeline.manifests.manifest import Question
from pipeline.manifests.templates import fill
from pipeline.synthetic.difficulty import Difficulty
from pipeline.synthetic.questions import TEMPLATE_RULES
from pipeline.synthetic.redundancy import Sides, combine, reorder_within_places, sample_redundant_scene
from pipeline.synthetic.scene import Scene

# Independent samples of the missing side, and orders within the places of the audio's instruments.
SAMPLES = 100
ORDERS = 4
# Samples in which the answer is as probable as without the modality, in addition: few of them say little of rare ones.
PRIOR_SAMPLES = 5

_RULES = {rule.template: rule for rule in TEMPLATE_RULES}
# Completions of a clip with their probabilities.
_Completions = Sequence[tuple[float, Scene]]


@dataclass(frozen=True)
class ModalityInformation:
    """`accuracy` of the observer of a modality and the question, in percent; `bits` about the answer.

    `bits`: the mean of log2(probability of the answer for the observer / for the question's observer), an estimate of
    the mutual information of modality and answer, given the question, from below.
    """

    accuracy: float
    bits: float


@dataclass(frozen=True)
class AnswerInformation:
    """Of the questions of one type: their number, the accuracy in percent of the question's observer, the modalities.

    The question's observer gives the most frequent training answer of the filled question.
    """

    questions: int
    question: float
    audio: ModalityInformation
    visual: ModalityInformation


@dataclass(frozen=True)
class _Score:
    type: str
    is_right: dict[str, bool]
    bits: dict[str, float]


def measure_answers(
    questions: Mapping[str, Sequence[Question]],
    sides: Mapping[str, Sides],
    redundancy: float,
    difficulty: Difficulty,
) -> dict[str, AnswerInformation]:
    """Return {question type, or "all": what its questions in val and test can be answered from}.

    `sides`: {video id: its sides}. Types without questions are left out; without any question the result is empty.
    """
    train_videos = sorted({q.video_id for q in questions["train"]})
    balance = _Balance(questions["train"], [combine(sides[name]) for name in train_videos])
    scored = sorted((q for split in ("val", "test") for q in questions[split]), key=lambda q: q.video_id)
    scores = [
        score
        for video_id, asked in groupby(scored, key=lambda q: q.video_id)
        for score in _score_video(list(asked), sides[video_id], redundancy, difficulty, balance)
    ]
    types = sorted({score.type for score in scores})
    pools = {**{name: [s for s in scores if s.type == name] for name in types}, "all": scores}
    return {name: _summarise(pool) for name, pool in pools.items() if pool}


def _summarise(scores: Sequence[_Score]) -> AnswerInformation:
    accuracy = {name: 100 * sum(s.is_right[name] for s in scores) / len(scores) for name in scores[0].is_right}
    bits = {name: math.fsum(s.bits[name] for s in scores) / len(scores) for name in scores[0].bits}
    audio, visual = (ModalityInformation(accuracy[name], bits[name]) for name in ("audio", "visual"))
    return AnswerInformation(len(scores), accuracy["question"], audio, visual)


class _Balance:
    """The answers of the training split: how probable each is, and how much of its candidates was chosen."""

    def __init__(self, chosen: Sequence[Question], scenes: Sequence[Scene]) -> None:
        self.chosen = Counter((q.template, q.answer) for q in chosen)
        self.by_text = Counter((q.text, q.answer) for q in chosen)
        self.candidates = Counter(
            (template, answer)
            for template, rule in _RULES.items()
            for scene in scenes
            for _, answer in rule.answers(scene)
        )

    def prior(self, question: Question) -> dict[str, float]:
        """Return the probability of each answer, given the question: of its text, smoothed by those of its template."""
        of_template = {answer: n for (template, answer), n in self.chosen.items() if template == question.template}
        total = sum(of_template.values())
        counts = {a: self.by_text[question.text, a] + n / total for a, n in of_template.items()}
        return {answer: count / sum(counts.values()) for answer, count in counts.items()}

    def chosen_share(self, template: str, answer: str) -> float:
        """Return the share of the candidates with this answer that was chosen; 0 if there was none."""
        return self.chosen[template, answer] / max(1, self.candidates[template, answer])


def _score_video(
    asked: Sequence[Question], sides: Sides, redundancy: float, difficulty: Difficulty, balance: _Balance
) -> list[_Score]:
    """Return the score of each question about one video."""
    completions = _complete(sides, redundancy, difficulty)
    answers = {name: _answer_weights(of, {q.template for q in asked}) for name, of in completions.items()}
    scores = []
    for question in asked:
        prior = balance.prior(question)
        beliefs = {"question": prior}
        for name, of in answers.items():
            weights = of[question.template, question.text]
            likely = {a: balance.chosen_share(question.template, a) * weights[a] for a in prior}
            share = sum(balance.chosen_share(question.template, a) * prior[a] for a in prior)
            beliefs[name] = {a: likely[a] + PRIOR_SAMPLES / SAMPLES * share * prior[a] for a in prior}
        scores.append(_score(question, beliefs))
    return scores


def _score(question: Question, beliefs: Mapping[str, Mapping[str, float]]) -> _Score:
    """Return the score; an answer that no training question of the template has is never given and has 0 bits."""
    is_known = question.answer in beliefs["question"]
    best = {name: max(sorted(belief), key=belief.__getitem__, default="") for name, belief in beliefs.items()}
    probability = {
        name: belief[question.answer] / sum(belief.values()) if is_known else 1.0 for name, belief in beliefs.items()
    }
    prior = probability.pop("question")
    bits = {name: math.log2(found / prior) for name, found in probability.items()}
    return _Score(question.type, {name: answer == question.answer for name, answer in best.items()}, bits)


def _complete(sides: Sides, redundancy: float, difficulty: Difficulty) -> dict[str, _Completions]:
    """Return the completions of the clip for the observers of its audio and of its frames."""
    seen, heard = sides.visual, sides.audio
    rng = random.Random(f"observer {seen.video_id}")
    others = [sample_redundant_scene(seen.video_id, seen.seconds, rng, difficulty) for _ in range(SAMPLES)]
    apart, orders = (1 - redundancy) / SAMPLES, redundancy / ORDERS
    return {
        "visual": [(redundancy, seen), *((apart, combine(Sides(other, seen))) for other in others)],
        "audio": [
            *((orders, reorder_within_places(heard, rng)) for _ in range(ORDERS)),
            *((apart, combine(Sides(heard, other))) for other in others),
        ],
    }


def _answer_weights(completions: _Completions, templates: set[str]) -> dict[tuple[str, str], dict[str, float]]:
    """Return {(template, filled question): {answer: probability of the completions that have it}}."""
    weights: dict[tuple[str, str], dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for probability, scene in completions:
        for template in templates if probability else ():
            for values, answer in _RULES[template].answers(scene):
                weights[template, fill(template, values)][answer] += probability
    return weights
