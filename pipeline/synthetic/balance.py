"""Choose the questions of one split among all that can be asked, so that guessing from the question pays little.

It knows no scene: it sees only which video, which text and which answer each candidate has.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Candidate:
    """One question that could be asked: `text` is the filled template."""

    video_id: str
    template: str
    text: str
    answer: str


def choose_balanced(
    candidates: Sequence[Candidate], weights: Mapping[str, float], total: int, rng: random.Random
) -> list[Candidate]:
    """Return about `total` of the candidates, spread over templates by `weights`, over answers and over videos evenly.

    Within a template, and within a filled text, no answer stands more often than the second most frequent one could
    (once, where there is no second). So in a template of two answers both are equally frequent. Templates that lack
    candidates leave their share to none: fewer than `total` come back.
    """
    by_template: dict[str, list[Candidate]] = defaultdict(list)
    for candidate in candidates:
        by_template[candidate.template].append(candidate)
    per_video: Counter[str] = Counter()
    chosen = []
    share = total / sum(weights.values())
    for template in sorted(by_template, key=lambda name: (len(by_template[name]), name)):
        pool = by_template[template]
        rng.shuffle(pool)
        chosen += _choose_of_template(pool, round(weights[template] * share), per_video)
    return chosen


def _choose_of_template(pool: list[Candidate], quota: int, per_video: Counter[str]) -> list[Candidate]:
    """Return up to `quota` of one template's candidates, always the rarest answer first; count them in `per_video`."""
    limits = _limits(Counter((c.text, c.answer) for c in pool))
    answers: Counter[str] = Counter()
    cells: Counter[tuple[str, str]] = Counter()
    chosen: list[Candidate] = []
    left = _by_answer(pool)
    while left and len(chosen) < quota:
        answer = min(left, key=lambda name: answers[name])
        open_ones = [c for c in left[answer] if cells[c.text, answer] < limits[c.text, answer]]
        others = max((count for name, count in answers.items() if name != answer), default=1)
        if not open_ones or (len(left) == 1 and answers[answer] >= others):
            del left[answer]
            continue
        best = min(open_ones, key=lambda c: (cells[c.text, answer], per_video[c.video_id]))
        left[answer].remove(best)
        answers[answer] += 1
        cells[best.text, answer] += 1
        per_video[best.video_id] += 1
        chosen.append(best)
    return chosen


def _by_answer(pool: Sequence[Candidate]) -> dict[str, list[Candidate]]:
    groups: dict[str, list[Candidate]] = defaultdict(list)
    for candidate in pool:
        groups[candidate.answer].append(candidate)
    return dict(sorted(groups.items()))


def _limits(cells: Counter[tuple[str, str]]) -> dict[tuple[str, str], int]:
    """Return how often each (text, answer) may be chosen: as its text's second most frequent answer, or once."""
    sizes: dict[str, list[int]] = defaultdict(list)
    for (text, _answer), count in cells.items():
        sizes[text].append(count)
    seconds = {text: max(1, sorted(counts)[-2]) if len(counts) > 1 else 1 for text, counts in sizes.items()}
    return {cell: seconds[cell[0]] for cell in cells}
