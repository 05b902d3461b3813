"""The ground truth of one synthetic clip: who stands where, who plays when, how loud and how fast.

`render`, `audio` and `questions` derive the frames, the waveform and the answers from a `Scene`.
Source: the instruments and the places are those of MUSIC-AVQA's annotations; the rest is invented.
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

    `place` is None if it is off screen; `column` is its horizontal centre as a share of the frame's width. It plays
    in the seconds [start, stop); equal means never. `level` (1 soft to 3 loud) and `tempo` (notes per second) apply
    while it plays; `pitch` in [0, 1) places its notes within the instrument's range.
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
    def is_visible(self) -> bool:
        """Whether it is on screen."""
        return self.place is not None

    @property
    def is_audible(self) -> bool:
        """Whether it plays at all."""
        return self.stop > self.start

    @property
    def duration_seconds(self) -> int:
        """How long it plays."""
        return self.stop - self.start

    def plays_during(self, second: int) -> bool:
        """Whether it plays in the second [second, second + 1)."""
        return self.start <= second < self.stop


@dataclass(frozen=True)
class Scene:
    """The events of one clip of `seconds` seconds, and the tracks of its file (`has_audio`, `has_visual`).

    A missing track does not change the scene or its answers.
    """

    video_id: str
    seconds: int
    setting: Setting
    performers: tuple[Performer, ...]
    has_voiceover: bool
    has_audio: bool
    has_visual: bool

    @property
    def visible(self) -> tuple[Performer, ...]:
        """The performers on screen, from left to right."""
        return tuple(sorted((p for p in self.performers if p.is_visible), key=lambda p: p.column))

    @property
    def audible(self) -> tuple[Performer, ...]:
        """The performers that play, in order of their start."""
        return tuple(sorted((p for p in self.performers if p.is_audible), key=lambda p: p.start))


def sample_scene(
    video_id: str, seconds: int, rng: random.Random, has_audio: bool = True, has_visual: bool = True
) -> Scene:
    """Return a random scene for one clip, sampled from `rng`."""
    instruments = _sample_instruments(rng)
    roles = _sample_roles(len(instruments), rng)
    positions = iter(_sample_positions(sum(role != "hidden" for role in roles), rng))
    spans = _sample_spans(roles, seconds, rng)
    performers = []
    for instrument, role, (start, stop) in zip(instruments, roles, spans, strict=True):
        place, column = (None, 0.0) if role == "hidden" else next(positions)
        level, tempo, pitch = rng.choice(LEVELS), rng.choice(TEMPOS), rng.random()
        performers.append(Performer(instrument, place, column, start, stop, level, tempo, pitch))
    return Scene(
        video_id=video_id,
        seconds=seconds,
        setting=rng.choice(SETTINGS),
        performers=tuple(performers),
        has_voiceover=rng.random() < VOICEOVER_SHARE,
        has_audio=has_audio,
        has_visual=has_visual,
    )


def _sample_instruments(rng: random.Random) -> list[str]:
    (count,) = rng.choices(tuple(COUNT_WEIGHTS), tuple(COUNT_WEIGHTS.values()))
    if rng.random() < ENSEMBLE_SHARE:
        return [rng.choice(INSTRUMENTS)] * count
    return rng.sample(INSTRUMENTS, count)


def _sample_roles(count: int, rng: random.Random) -> list[str]:
    """Return each performer's role. In half of the scenes all play on screen: one modality informs about the other."""
    if rng.random() < ALL_PLAY_SHARE:
        return ["plays"] * count
    return rng.choices(tuple(ROLE_WEIGHTS), tuple(ROLE_WEIGHTS.values()), k=count)


def _sample_positions(count: int, rng: random.Random) -> list[tuple[Place, float]]:
    """Return places and columns of `count` visible performers in random order; with four, two share the middle."""
    if count > len(PLACES):
        positions: list[tuple[Place, float]] = [
            ("left", 1 / 8),
            ("middle", 3 / 8),
            ("middle", 5 / 8),
            ("right", 7 / 8),
        ]
    else:
        positions = rng.sample([(place, (2 * i + 1) / 6) for i, place in enumerate(PLACES)], count)
    rng.shuffle(positions)
    return positions


def _sample_spans(roles: Sequence[str], seconds: int, rng: random.Random) -> list[tuple[int, int]]:
    """Return [start, stop) of each role: (0, 0) for silent ones; some players start together with the previous one."""
    spans: list[tuple[int, int]] = []
    previous_start: int | None = None
    for role in roles:
        if role == "silent":
            spans.append((0, 0))
            continue
        start, stop = _sample_span(seconds, rng)
        if previous_start is not None and previous_start < stop and rng.random() < TOGETHER_SHARE:
            start = previous_start
        previous_start = start
        spans.append((start, stop))
    return spans


def _sample_span(seconds: int, rng: random.Random) -> tuple[int, int]:
    if rng.random() < ALWAYS_PLAYING_SHARE:
        return 0, seconds
    start = rng.randint(0, max(0, seconds - SHORTEST_PLAY_SECONDS))
    return start, rng.randint(min(start + SHORTEST_PLAY_SECONDS, seconds), seconds)
