"""All questions about a scene: the fillers of MUSIC-AVQA's templates, and the answers according to the scene.

A question is only asked if its answer is unambiguous: "the violin" is the only violin, "the first" starts alone, "on
the left" is the only one there. `balance` selects among the questions.
Source: the 33 templates and their types are those of MUSIC-AVQA's annotations.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations
from operator import attrgetter

from pipeline.synthetic.scene import INSTRUMENTS, Performer, Scene

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")
ORDINALS = ("first", "second", "third", "fourth", "fifth")

Answers = Iterator[tuple[tuple[str, ...], str]]


@dataclass(frozen=True)
class TemplateRule:
    """One template: its question type, its relative share of the questions (`weight`), and its answers.

    `answers` yields (fillers of the template's slots, answer) for a scene.
    """

    template: str
    type: str
    weight: float
    answers: Callable[[Scene], Answers]


def _yes_or_no(claim: bool) -> str:
    return "yes" if claim else "no"


def _instruments(performers: Sequence[Performer]) -> set[str]:
    return {performer.instrument for performer in performers}


def _unique(scene: Scene, among: Sequence[Performer]) -> list[Performer]:
    """Return those of `among` whose instrument has no other performer in the whole scene."""
    counts = Counter(performer.instrument for performer in scene.performers)
    return [performer for performer in among if counts[performer.instrument] == 1]


def _alone_in_place(scene: Scene) -> list[Performer]:
    """Return the visible performers that share their place (left, middle, right) with no other."""
    counts = Counter(performer.place for performer in scene.visible)
    return [performer for performer in scene.visible if counts[performer.place] == 1]


def _extreme(performers: Sequence[Performer], key: Callable[[Performer], int], last: bool) -> Performer | None:
    """Return the performer with the smallest (`last`: largest) key; None if it is tied or there is no other."""
    if len(performers) < 2:
        return None
    best = (max if last else min)(key(performer) for performer in performers)
    found = [performer for performer in performers if key(performer) == best]
    return found[0] if len(found) == 1 else None


def _first_and_last(scene: Scene) -> Iterator[tuple[str, Performer]]:
    """Yield ("first", performer) and ("last", performer) in order of start, each unless several start together."""
    for word in ("first", "last"):
        performer = _extreme(scene.audible, lambda p: p.start, last=word == "last")
        if performer is not None:
            yield word, performer


def _neighbours(scene: Scene, performer: Performer) -> Iterator[tuple[str, str]]:
    """Yield ("left" or "right", the instrument next to a visible performer on that side)."""
    index = scene.visible.index(performer)
    if index > 0:
        yield "left", scene.visible[index - 1].instrument
    if index + 1 < len(scene.visible):
        yield "right", scene.visible[index + 1].instrument


def _is_audible(scene: Scene) -> Answers:
    for instrument in INSTRUMENTS:
        yield (instrument,), _yes_or_no(instrument in _instruments(scene.audible))


def _are_both_audible(scene: Scene) -> Answers:
    for pair in combinations(INSTRUMENTS, 2):
        yield pair, _yes_or_no(set(pair) <= _instruments(scene.audible))


def _how_many_audible(scene: Scene) -> Answers:
    yield (), NUMBERS[len(scene.audible)]


def _comparison(key: Callable[[Performer], int]) -> Callable[[Scene], Answers]:
    """Return the answers to "is the A more ... than the B" for pairs of audible instruments that differ in `key`."""

    def answers(scene: Scene) -> Answers:
        for one, other in permutations(_unique(scene, scene.audible), 2):
            if key(one) != key(other):
                yield (one.instrument, other.instrument), _yes_or_no(key(one) > key(other))

    return answers


def _comparison_by_place(key: Callable[[Performer], int], is_named: bool) -> Callable[[Scene], Answers]:
    """Return the answers to "is the A on the left more ... than the B on the right" for pairs that differ in `key`.

    Pairs are audible and visible performers, each alone in its place. The fillers are the instrument and the place of
    each one if `is_named`, else the places only ("the instrument on the left").
    """

    def answers(scene: Scene) -> Answers:
        for one, other in permutations([p for p in _alone_in_place(scene) if p.is_audible], 2):
            if key(one) != key(other):
                words = [(p.instrument, str(p.place)) if is_named else (str(p.place),) for p in (one, other)]
                yield words[0] + words[1], _yes_or_no(key(one) > key(other))

    return answers


def _is_visible(scene: Scene) -> Answers:
    for instrument in INSTRUMENTS:
        yield (instrument,), _yes_or_no(instrument in _instruments(scene.visible))


def _are_both_visible(scene: Scene) -> Answers:
    for pair in combinations(INSTRUMENTS, 2):
        yield pair, _yes_or_no(set(pair) <= _instruments(scene.visible))


def _how_many_visible_types(scene: Scene) -> Answers:
    yield (), NUMBERS[len(_instruments(scene.visible))]


def _how_many_visible_of(scene: Scene) -> Answers:
    for instrument in INSTRUMENTS:
        yield (instrument,), NUMBERS[sum(p.instrument == instrument for p in scene.visible)]


def _where_performance(scene: Scene) -> Answers:
    yield (), scene.setting


def _which_single_type(scene: Scene) -> Answers:
    types = _instruments(scene.performers)
    if scene.visible and len(types) == 1:
        yield (), types.pop()


def _which_neighbour(scene: Scene) -> Answers:
    for performer in _unique(scene, scene.visible):
        for side, neighbour in _neighbours(scene, performer):
            yield (side, performer.instrument), neighbour


def _which_outermost(scene: Scene) -> Answers:
    if len(scene.visible) >= 2:
        yield ("leftest",), scene.visible[0].instrument
        yield ("rightest",), scene.visible[-1].instrument


def _is_always_playing(scene: Scene) -> Answers:
    for performer in _unique(scene, scene.visible):
        yield (performer.instrument,), _yes_or_no(performer.duration_seconds == scene.seconds)


def _has_voiceover(scene: Scene) -> Answers:
    yield (), _yes_or_no(scene.has_voiceover)


def _is_source_visible(scene: Scene) -> Answers:
    if scene.visible and len(_instruments(scene.audible)) == 1 and not scene.has_voiceover:
        yield (), _yes_or_no(_instruments(scene.audible) <= _instruments(scene.visible))


def _how_many_audible_types(scene: Scene) -> Answers:
    yield (), NUMBERS[len(_instruments(scene.audible))]


def _how_many_audible_of(scene: Scene) -> Answers:
    for instrument in INSTRUMENTS:
        yield (instrument,), NUMBERS[sum(p.instrument == instrument for p in scene.audible)]


def _how_many_silent(scene: Scene) -> Answers:
    yield (), NUMBERS[sum(not performer.is_audible for performer in scene.visible)]


def _where_loudest(scene: Scene) -> Answers:
    for word in ("loudest", "lowest"):
        performer = _extreme(scene.audible, lambda p: p.level, last=word == "loudest")
        if performer in _alone_in_place(scene):
            yield (word,), str(performer.place)


def _is_first_or_last_at(scene: Scene) -> Answers:
    alone = _alone_in_place(scene)
    for word, performer in _first_and_last(scene):
        if performer in alone:
            for other in alone:
                yield (word, str(other.place)), _yes_or_no(other is performer)


def _which_neighbour_of_first_or_last(scene: Scene) -> Answers:
    for word, performer in _first_and_last(scene):
        if performer.is_visible:
            for side, neighbour in _neighbours(scene, performer):
                yield (side, word), neighbour


def _which_plays_with(scene: Scene) -> Answers:
    for performer in _unique(scene, scene.audible):
        others = [p for p in scene.audible if p is not performer and _overlap(p, performer)]
        if len(others) == 1:
            yield (performer.instrument,), others[0].instrument


def _overlap(one: Performer, other: Performer) -> bool:
    return max(one.start, other.start) < min(one.stop, other.stop)


def _which_starts_nth(scene: Scene) -> Answers:
    if len(_instruments(scene.audible)) < 2:
        return
    starts = Counter(performer.start for performer in scene.audible)
    for ordinal, performer in zip(ORDINALS, scene.audible, strict=False):
        if starts[performer.start] == 1:
            yield (ordinal,), performer.instrument


def _which_starts_before_or_after(scene: Scene) -> Answers:
    starts = Counter(performer.start for performer in scene.audible)
    for one, other in zip(scene.audible, scene.audible[1:], strict=False):
        if starts[one.start] == starts[other.start] == 1 and one.instrument != other.instrument:
            if other in _unique(scene, scene.audible):
                yield ("before", other.instrument), one.instrument
            if one in _unique(scene, scene.audible):
                yield ("after", one.instrument), other.instrument


def _where_first_or_last(scene: Scene) -> Answers:
    for word, performer in _first_and_last(scene):
        if performer in _alone_in_place(scene):
            yield (word,), str(performer.place)


def _which_of_ensemble(scene: Scene) -> Answers:
    for instrument in sorted(_instruments(scene.audible)):
        players = [p for p in scene.audible if p.instrument == instrument]
        if len(players) < 2 or not all(player.is_visible for player in players):
            continue
        for word in ("first", "last"):
            player = _extreme(players, lambda p: p.start, last=word == "last")
            if len({p.start for p in players}) == 1:
                yield (instrument, word), "simultaneously"
            elif player in _alone_in_place(scene):
                yield (instrument, word), str(player.place)


def _rules(question_type: str, *rows: tuple[str, float, Callable[[Scene], Answers]]) -> tuple[TemplateRule, ...]:
    return tuple(TemplateRule(template, question_type, weight, answers) for template, weight, answers in rows)


TEMPLATE_RULES: tuple[TemplateRule, ...] = (
    *_rules(
        "Audio Counting",
        ("How many musical instruments were heard throughout the video?", 2.0, _how_many_audible),
        ("Is there a <Object> sound?", 1.0, _is_audible),
        ("Are there <Object> and <Object> sound?", 0.7, _are_both_audible),
    ),
    *_rules(
        "Audio Comparative",
        ("Is the <Object> louder than the <Object>?", 0.7, _comparison(attrgetter("level"))),
        ("Is the <Object> playing longer than the <Object>?", 0.7, _comparison(attrgetter("duration_seconds"))),
        ("Is the <Object> more rhythmic than the <Object>?", 0.4, _comparison(attrgetter("tempo"))),
    ),
    *_rules(
        "Visual Counting",
        ("How many types of musical instruments appeared in the entire video?", 2.0, _how_many_visible_types),
        ("How many <Object> are in the entire video?", 2.0, _how_many_visible_of),
        ("Is there a <Object> in the entire video?", 0.8, _is_visible),
        ("Are there <Object> and <Object> instruments in the video?", 0.6, _are_both_visible),
    ),
    *_rules(
        "Visual Location",
        ("Where is the performance?", 0.8, _where_performance),
        ("What kind of musical instrument is it?", 1.2, _which_single_type),
        ("What is the instrument on the <LR> of <Object>?", 1.2, _which_neighbour),
        ("What kind of instrument is the <LRer> instrument?", 1.2, _which_outermost),
    ),
    *_rules(
        "Audio-Visual Existential",
        ("Is the <Object> in the video always playing?", 0.8, _is_always_playing),
        ("Is there a voiceover?", 0.8, _has_voiceover),
        ("Is this sound from the instrument in the video?", 0.8, _is_source_visible),
    ),
    *_rules(
        "Audio-Visual Counting",
        ("How many instruments are sounding in the video?", 1.5, _how_many_audible),
        ("How many types of musical instruments sound in the video?", 1.5, _how_many_audible_types),
        ("How many sounding <Object> in the video?", 1.5, _how_many_audible_of),
        ("How many instruments in the video did not sound from beginning to end?", 1.0, _how_many_silent),
    ),
    *_rules(
        "Audio-Visual Location",
        ("Where is the <LL> instrument?", 0.7, _where_loudest),
        ("Is the <FL> sound coming from the <LR> instrument?", 0.5, _is_first_or_last_at),
        ("What is the <LR> instrument of the <FL> sounding instrument?", 1.0, _which_neighbour_of_first_or_last),
        (
            "Which is the musical instrument that sounds at the same time as the <Object>?",
            1.5,
            _which_plays_with,
        ),
    ),
    *_rules(
        "Audio-Visual Comparative",
        (
            "Is the <Object> on the <LR> louder than the <Object> on the <LR>?",
            0.6,
            _comparison_by_place(attrgetter("level"), True),
        ),
        (
            "Is the <Object> on the <LR> more rhythmic than the <Object> on the <LR>?",
            0.4,
            _comparison_by_place(attrgetter("tempo"), True),
        ),
        (
            "Is the instrument on the <LR> louder than the instrument on the <LR>?",
            0.5,
            _comparison_by_place(attrgetter("level"), False),
        ),
        (
            "Is the instrument on the <LR> more rhythmic than the instrument on the <LR>?",
            0.4,
            _comparison_by_place(attrgetter("tempo"), False),
        ),
    ),
    *_rules(
        "Audio-Visual Temporal",
        ("Where is the <FL> sounding instrument?", 0.7, _where_first_or_last),
        ("Which <Object> makes the sound <FL>?", 0.8, _which_of_ensemble),
        ("Which instrument makes sounds <BA> the <Object>?", 1.0, _which_starts_before_or_after),
        ("What is the <TH> instrument that comes in?", 1.5, _which_starts_nth),
    ),
)
