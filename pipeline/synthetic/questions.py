"""What can be asked of a scene: MUSIC-AVQA's templates with their fillers and the answers that the scene gives.

It selects nothing (`balance` does) and sees neither pictures nor sound. A question is asked only where its answer is
beyond doubt: "the violin" is one violin, "the first" starts alone, "on the left" stands alone there. Source: the 33
templates and their types are those of MUSIC-AVQA's annotations.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations

from pipeline.synthetic.scene import INSTRUMENTS, Performer, Scene

NUMBERS = ("zero", "one", "two", "three", "four")
ORDINALS = ("first", "second", "third", "fourth")

Answers = Iterator[tuple[tuple[str, ...], str]]


@dataclass(frozen=True)
class Ask:
    """One template: its type, its share of the questions relative to the others, and its answers for a scene.

    `answers` yields (fillers of the template's slots, answer).
    """

    template: str
    type: str
    weight: float
    answers: Callable[[Scene], Answers]


def _yes(claim: bool) -> str:
    return "yes" if claim else "no"


def _types(performers: Sequence[Performer]) -> set[str]:
    return {performer.instrument for performer in performers}


def _singles(scene: Scene, among: Sequence[Performer]) -> list[Performer]:
    """Return those of `among` that are the only one of their instrument in the whole scene."""
    counts = Counter(performer.instrument for performer in scene.performers)
    return [performer for performer in among if counts[performer.instrument] == 1]


def _standing_alone(scene: Scene) -> list[Performer]:
    """Return the seen performers whose place (left, middle, right) holds no other."""
    counts = Counter(performer.place for performer in scene.seen)
    return [performer for performer in scene.seen if counts[performer.place] == 1]


def _extreme(performers: Sequence[Performer], key: Callable[[Performer], int], last: bool) -> Performer | None:
    """Return the one performer of two or more with the smallest (`last`: largest) key, None where it is shared."""
    if len(performers) < 2:
        return None
    best = (max if last else min)(key(performer) for performer in performers)
    found = [performer for performer in performers if key(performer) == best]
    return found[0] if len(found) == 1 else None


def _edges(scene: Scene) -> Iterator[tuple[str, Performer]]:
    """Yield ("first" or "last", the performer that starts to sound then), where only one does."""
    for word in ("first", "last"):
        performer = _extreme(scene.heard, lambda p: p.start, last=word == "last")
        if performer is not None:
            yield word, performer


def _neighbours(scene: Scene, performer: Performer) -> Iterator[tuple[str, str]]:
    """Yield ("left" or "right", the instrument that stands next to a seen performer on that side)."""
    index = scene.seen.index(performer)
    if index > 0:
        yield "left", scene.seen[index - 1].instrument
    if index + 1 < len(scene.seen):
        yield "right", scene.seen[index + 1].instrument


def _is_there_sound(scene: Scene) -> Answers:
    for instrument in INSTRUMENTS:
        yield (instrument,), _yes(instrument in _types(scene.heard))


def _are_there_sounds(scene: Scene) -> Answers:
    for pair in combinations(INSTRUMENTS, 2):
        yield pair, _yes(set(pair) <= _types(scene.heard))


def _how_many_heard(scene: Scene) -> Answers:
    yield (), NUMBERS[len(scene.heard)]


def _comparison(key: Callable[[Performer], int]) -> Callable[[Scene], Answers]:
    """Return the answers to "is the A more ... than the B" over pairs of heard instruments that differ in `key`."""

    def answers(scene: Scene) -> Answers:
        for one, other in permutations(_singles(scene, scene.heard), 2):
            if key(one) != key(other):
                yield (one.instrument, other.instrument), _yes(key(one) > key(other))

    return answers


def _placed_comparison(key: Callable[[Performer], int], named: bool) -> Callable[[Scene], Answers]:
    """Return the same over pairs named by their places, with (`named`) or without their instruments' names."""

    def answers(scene: Scene) -> Answers:
        for one, other in permutations([p for p in _standing_alone(scene) if p.is_heard], 2):
            if key(one) != key(other):
                words = [(p.instrument, str(p.place)) if named else (str(p.place),) for p in (one, other)]
                yield words[0] + words[1], _yes(key(one) > key(other))

    return answers


def _is_there_picture(scene: Scene) -> Answers:
    for instrument in INSTRUMENTS:
        yield (instrument,), _yes(instrument in _types(scene.seen))


def _are_there_pictures(scene: Scene) -> Answers:
    for pair in combinations(INSTRUMENTS, 2):
        yield pair, _yes(set(pair) <= _types(scene.seen))


def _how_many_seen_types(scene: Scene) -> Answers:
    yield (), NUMBERS[len(_types(scene.seen))]


def _how_many_seen_of(scene: Scene) -> Answers:
    for instrument in INSTRUMENTS:
        yield (instrument,), NUMBERS[sum(p.instrument == instrument for p in scene.seen)]


def _where_performance(scene: Scene) -> Answers:
    yield (), scene.setting


def _what_is_it(scene: Scene) -> Answers:
    types = _types(scene.performers)
    if scene.seen and len(types) == 1:
        yield (), types.pop()


def _what_beside(scene: Scene) -> Answers:
    for performer in _singles(scene, scene.seen):
        for side, neighbour in _neighbours(scene, performer):
            yield (side, performer.instrument), neighbour


def _what_outermost(scene: Scene) -> Answers:
    if len(scene.seen) >= 2:
        yield ("leftest",), scene.seen[0].instrument
        yield ("rightest",), scene.seen[-1].instrument


def _is_always_playing(scene: Scene) -> Answers:
    for performer in _singles(scene, scene.seen):
        yield (performer.instrument,), _yes(performer.duration_seconds == scene.seconds)


def _is_there_voiceover(scene: Scene) -> Answers:
    yield (), _yes(scene.has_voiceover)


def _is_sound_from_picture(scene: Scene) -> Answers:
    if scene.seen and len(_types(scene.heard)) == 1 and not scene.has_voiceover:
        yield (), _yes(_types(scene.heard) <= _types(scene.seen))


def _how_many_sounding_types(scene: Scene) -> Answers:
    yield (), NUMBERS[len(_types(scene.heard))]


def _how_many_sounding_of(scene: Scene) -> Answers:
    for instrument in INSTRUMENTS:
        yield (instrument,), NUMBERS[sum(p.instrument == instrument for p in scene.heard)]


def _how_many_silent(scene: Scene) -> Answers:
    yield (), NUMBERS[sum(not performer.is_heard for performer in scene.seen)]


def _where_loudest(scene: Scene) -> Answers:
    for word in ("loudest", "lowest"):
        performer = _extreme(scene.heard, lambda p: p.level, last=word == "loudest")
        if performer in _standing_alone(scene):
            yield (word,), str(performer.place)


def _is_edge_at(scene: Scene) -> Answers:
    alone = _standing_alone(scene)
    for word, performer in _edges(scene):
        if performer in alone:
            for other in alone:
                yield (word, str(other.place)), _yes(other is performer)


def _what_beside_edge(scene: Scene) -> Answers:
    for word, performer in _edges(scene):
        if performer.is_seen:
            for side, neighbour in _neighbours(scene, performer):
                yield (side, word), neighbour


def _what_sounds_with(scene: Scene) -> Answers:
    for performer in _singles(scene, scene.heard):
        others = [p for p in scene.heard if p is not performer and _overlap(p, performer)]
        if len(others) == 1:
            yield (performer.instrument,), others[0].instrument


def _overlap(one: Performer, other: Performer) -> bool:
    return max(one.start, other.start) < min(one.stop, other.stop)


def _what_comes_in(scene: Scene) -> Answers:
    if len(_types(scene.heard)) < 2:
        return
    starts = Counter(performer.start for performer in scene.heard)
    for ordinal, performer in zip(ORDINALS, scene.heard, strict=False):
        if starts[performer.start] == 1:
            yield (ordinal,), performer.instrument


def _what_sounds_before(scene: Scene) -> Answers:
    starts = Counter(performer.start for performer in scene.heard)
    for one, other in zip(scene.heard, scene.heard[1:], strict=False):
        if starts[one.start] == starts[other.start] == 1 and one.instrument != other.instrument:
            if other in _singles(scene, scene.heard):
                yield ("before", other.instrument), one.instrument
            if one in _singles(scene, scene.heard):
                yield ("after", one.instrument), other.instrument


def _where_edge(scene: Scene) -> Answers:
    for word, performer in _edges(scene):
        if performer in _standing_alone(scene):
            yield (word,), str(performer.place)


def _which_of_ensemble(scene: Scene) -> Answers:
    for instrument in sorted(_types(scene.heard)):
        players = [p for p in scene.heard if p.instrument == instrument]
        if len(players) < 2 or not all(player.is_seen for player in players):
            continue
        for word in ("first", "last"):
            player = _extreme(players, lambda p: p.start, last=word == "last")
            if len({p.start for p in players}) == 1:
                yield (instrument, word), "simultaneously"
            elif player in _standing_alone(scene):
                yield (instrument, word), str(player.place)


def _level(performer: Performer) -> int:
    return performer.level


def _tempo(performer: Performer) -> int:
    return performer.tempo


def _duration(performer: Performer) -> int:
    return performer.duration_seconds


def _asks(question_type: str, *rows: tuple[str, float, Callable[[Scene], Answers]]) -> tuple[Ask, ...]:
    return tuple(Ask(template, question_type, weight, answers) for template, weight, answers in rows)


ASKS: tuple[Ask, ...] = (
    *_asks(
        "Audio Counting",
        ("How many musical instruments were heard throughout the video?", 2.0, _how_many_heard),
        ("Is there a <Object> sound?", 1.0, _is_there_sound),
        ("Are there <Object> and <Object> sound?", 0.7, _are_there_sounds),
    ),
    *_asks(
        "Audio Comparative",
        ("Is the <Object> louder than the <Object>?", 0.7, _comparison(_level)),
        ("Is the <Object> playing longer than the <Object>?", 0.7, _comparison(_duration)),
        ("Is the <Object> more rhythmic than the <Object>?", 0.4, _comparison(_tempo)),
    ),
    *_asks(
        "Visual Counting",
        ("How many types of musical instruments appeared in the entire video?", 2.0, _how_many_seen_types),
        ("How many <Object> are in the entire video?", 2.0, _how_many_seen_of),
        ("Is there a <Object> in the entire video?", 0.8, _is_there_picture),
        ("Are there <Object> and <Object> instruments in the video?", 0.6, _are_there_pictures),
    ),
    *_asks(
        "Visual Location",
        ("Where is the performance?", 0.8, _where_performance),
        ("What kind of musical instrument is it?", 1.2, _what_is_it),
        ("What is the instrument on the <LR> of <Object>?", 1.2, _what_beside),
        ("What kind of instrument is the <LRer> instrument?", 1.2, _what_outermost),
    ),
    *_asks(
        "Audio-Visual Existential",
        ("Is the <Object> in the video always playing?", 0.8, _is_always_playing),
        ("Is there a voiceover?", 0.8, _is_there_voiceover),
        ("Is this sound from the instrument in the video?", 0.8, _is_sound_from_picture),
    ),
    *_asks(
        "Audio-Visual Counting",
        ("How many instruments are sounding in the video?", 1.5, _how_many_heard),
        ("How many types of musical instruments sound in the video?", 1.5, _how_many_sounding_types),
        ("How many sounding <Object> in the video?", 1.5, _how_many_sounding_of),
        ("How many instruments in the video did not sound from beginning to end?", 1.0, _how_many_silent),
    ),
    *_asks(
        "Audio-Visual Location",
        ("Where is the <LL> instrument?", 0.7, _where_loudest),
        ("Is the <FL> sound coming from the <LR> instrument?", 0.5, _is_edge_at),
        ("What is the <LR> instrument of the <FL> sounding instrument?", 1.0, _what_beside_edge),
        (
            "Which is the musical instrument that sounds at the same time as the <Object>?",
            1.5,
            _what_sounds_with,
        ),
    ),
    *_asks(
        "Audio-Visual Comparative",
        (
            "Is the <Object> on the <LR> louder than the <Object> on the <LR>?",
            0.6,
            _placed_comparison(_level, True),
        ),
        (
            "Is the <Object> on the <LR> more rhythmic than the <Object> on the <LR>?",
            0.4,
            _placed_comparison(_tempo, True),
        ),
        (
            "Is the instrument on the <LR> louder than the instrument on the <LR>?",
            0.5,
            _placed_comparison(_level, False),
        ),
        (
            "Is the instrument on the <LR> more rhythmic than the instrument on the <LR>?",
            0.4,
            _placed_comparison(_tempo, False),
        ),
    ),
    *_asks(
        "Audio-Visual Temporal",
        ("Where is the <FL> sounding instrument?", 0.7, _where_edge),
        ("Which <Object> makes the sound <FL>?", 0.8, _which_of_ensemble),
        ("Which instrument makes sounds <BA> the <Object>?", 1.0, _what_sounds_before),
        ("What is the <TH> instrument that comes in?", 1.5, _what_comes_in),
    ),
)
