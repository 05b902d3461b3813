"""The ground truth of one synthetic clip: who stands where, who plays when, how loud and how fast.

It draws no picture and makes no sound (`render`, `sound`) and asks no question (`questions`): all three read a `Scene`.
Source: the instruments and the places are those of MUSIC-AVQA's annotations; the rest is made up here.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

Place = Literal["left", "middle", "right"]
Setting = Literal["indoor", "outdoor"]

INSTRUMENTS = ("accordion", "drum", "flute", "saxophone", "violin", "xylophone")
PLACES: tuple[Place, ...] = get_args(Place)
SETTINGS: tuple[Setting, ...] = get_args(Setting)
LEVELS = (1, 2, 3)
TEMPOS = (1, 2, 4)

COUNT_WEIGHTS = {1: 0.2, 2: 0.25, 3: 0.3, 4: 0.25}
ENSEMBLE_SHARE = 0.25
ALL_PLAY_SHARE = 0.5
ROLE_WEIGHTS = {"plays": 0.4, "silent": 0.34, "hidden": 0.26}
ALWAYS_PLAYING_SHARE = 0.35
TOGETHER_SHARE = 0.3
VOICEOVER_SHARE = 0.25
SHORTEST_PLAY_SECONDS = 2


@dataclass(frozen=True)
class Performer:
    """One instrument of a scene.

    `place` is None where it is hidden; `column` is its horizontal centre as a share of the picture's width. It sounds
    in the seconds [start, stop); equal means never. `level` (1 soft to 3 loud) and `tempo` (notes per second) hold
    while it sounds; `pitch` in [0, 1) places its notes within the instrument's range.
    """

    instrument: str
    place: Place | None
    column: float
    start: int
    stop: int
    level: int
    tempo: int
    pitch: float

    @property
    def is_seen(self) -> bool:
        """Whether it stands in the picture."""
        return self.place is not None

    @property
    def is_heard(self) -> bool:
        """Whether it ever sounds."""
        return self.stop > self.start

    @property
    def duration_seconds(self) -> int:
        """How long it sounds."""
        return self.stop - self.start

    def sounds_during(self, second: int) -> bool:
        """Whether it sounds in the second [second, second + 1)."""
        return self.start <= second < self.stop


@dataclass(frozen=True)
class Scene:
    """What happens in one clip of `seconds` seconds, and which tracks the recording kept.

    A lost track (`has_audio`, `has_picture`) changes nothing of what happened: the answers stay those of the scene.
    """

    video_id: str
    seconds: int
    setting: Setting
    performers: tuple[Performer, ...]
    has_voiceover: bool
    has_audio: bool
    has_picture: bool

    @property
    def seen(self) -> tuple[Performer, ...]:
        """The performers in the picture, from left to right."""
        return tuple(sorted((p for p in self.performers if p.is_seen), key=lambda p: p.column))

    @property
    def heard(self) -> tuple[Performer, ...]:
        """The performers that sound, in order of their start."""
        return tuple(sorted((p for p in self.performers if p.is_heard), key=lambda p: p.start))


def draw_scene(
    video_id: str, seconds: int, rng: random.Random, has_audio: bool = True, has_picture: bool = True
) -> Scene:
    """Draw the scene of one clip; `rng` alone decides."""
    instruments = _draw_instruments(rng)
    roles = _draw_roles(len(instruments), rng)
    stands = iter(_draw_stands(sum(role != "hidden" for role in roles), rng))
    spans = _draw_spans(roles, seconds, rng)
    performers = []
    for instrument, role, (start, stop) in zip(instruments, roles, spans, strict=True):
        place, column = (None, 0.0) if role == "hidden" else next(stands)
        level, tempo, pitch = rng.choice(LEVELS), rng.choice(TEMPOS), rng.random()
        performers.append(Performer(instrument, place, column, start, stop, level, tempo, pitch))
    return Scene(
        video_id=video_id,
        seconds=seconds,
        setting=rng.choice(SETTINGS),
        performers=tuple(performers),
        has_voiceover=rng.random() < VOICEOVER_SHARE,
        has_audio=has_audio,
        has_picture=has_picture,
    )


def _draw_instruments(rng: random.Random) -> list[str]:
    (count,) = rng.choices(tuple(COUNT_WEIGHTS), tuple(COUNT_WEIGHTS.values()))
    if rng.random() < ENSEMBLE_SHARE:
        return [rng.choice(INSTRUMENTS)] * count
    return rng.sample(INSTRUMENTS, count)


def _draw_roles(count: int, rng: random.Random) -> list[str]:
    """Return each performer's role: in half of the scenes all are seen and heard, so one sense tells of the other."""
    if rng.random() < ALL_PLAY_SHARE:
        return ["plays"] * count
    return rng.choices(tuple(ROLE_WEIGHTS), tuple(ROLE_WEIGHTS.values()), k=count)


def _draw_stands(count: int, rng: random.Random) -> list[tuple[Place, float]]:
    """Return places and columns of `count` seen performers, in random order; four share three names."""
    if count > len(PLACES):
        stands: list[tuple[Place, float]] = [
            ("left", 1 / 8),
            ("middle", 3 / 8),
            ("middle", 5 / 8),
            ("right", 7 / 8),
        ]
    else:
        stands = rng.sample([(place, (2 * i + 1) / 6) for i, place in enumerate(PLACES)], count)
    rng.shuffle(stands)
    return stands


def _draw_spans(roles: Sequence[str], seconds: int, rng: random.Random) -> list[tuple[int, int]]:
    """Return [start, stop) of each role; silent ones get (0, 0), some players enter together with the one before."""
    spans: list[tuple[int, int]] = []
    entered: int | None = None
    for role in roles:
        if role == "silent":
            spans.append((0, 0))
            continue
        start, stop = _draw_span(seconds, rng)
        if entered is not None and entered < stop and rng.random() < TOGETHER_SHARE:
            start = entered
        entered = start
        spans.append((start, stop))
    return spans


def _draw_span(seconds: int, rng: random.Random) -> tuple[int, int]:
    if rng.random() < ALWAYS_PLAYING_SHARE:
        return 0, seconds
    start = rng.randint(0, max(0, seconds - SHORTEST_PLAY_SECONDS))
    return start, rng.randint(min(start + SHORTEST_PLAY_SECONDS, seconds), seconds)
