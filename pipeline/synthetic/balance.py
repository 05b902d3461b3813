"""Balanced selection of the questions of one split, so that guessing from the question alone is rarely right."""

import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Candidate:
    """One possible question: `text` is the filled template."""

    video_id: str
    template: str
    text: str
    answer: str


def choose_balanced(
    candidates: Sequence[Candidate], weights: Mapping[str, float], total: int, rng: random.Random
) -> list[Candidate]:
    """Return about `total` of the candidates, spread over templates by `weights`, and evenly over answers and videos.

    In a filled text, an answer is chosen at most as often as the text's second most frequent answer occurs among the
    candidates (once if the text has only one answer). In a template, the most frequent answer is chosen at most once
    more often than the second most frequent one. The share of a template with too few candidates is not redistributed:
    fewer than `total` are returned.
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
    """Return up to `quota` of one template's candidates, always of the rarest answer; count them in `per_video`."""
    limits = _limits(Counter((c.text, c.answer) for c in pool))
    answers: Counter[str] = Counter()
    cells: Counter[tuple[str, str]] = Counter()
    chosen: list[Candidate] = []
    remaining: dict[str, list[Candidate]] = {answer: [] for answer in sorted({c.answer for c in pool})}
    for candidate in pool:
        remaining[candidate.answer].append(candidate)
    while remaining and len(chosen) < quota:
        answer = min(remaining, key=lambda name: answers[name])
        allowed = [c for c in remaining[answer] if cells[c.text, answer] < limits[c.text, answer]]
        others = max((count for name, count in answers.items() if name != answer), default=1)
        if not allowed or (len(remaining) == 1 and answers[answer] >= others):
            del remaining[answer]
            continue
        best = min(allowed, key=lambda c: (cells[c.text, answer], per_video[c.video_id]))
        remaining[answer].remove(best)
        answers[answer] += 1
        cells[best.text, answer] += 1
        per_video[best.video_id] += 1
        chosen.append(best)
    return chosen


def _limits(cells: Counter[tuple[str, str]]) -> dict[tuple[str, str], int]:
    """Return how often each (text, answer) may be chosen: as often as the text's second most frequent one, or once."""
    sizes: dict[str, list[int]] = defaultdict(list)
    for (text, _answer), count in cells.items():
        sizes[text].append(count)
    seconds = {text: max(1, sorted(counts)[-2]) if len(counts) > 1 else 1 for text, counts in sizes.items()}
    return {cell: seconds[cell[0]] for cell in cells}
