"""The ground truth of one synthetic clip: who stands where, who plays when, how loud and how fast.

`render`, `audio` and `questions` derive the frames, the waveform and the answers from a `Scene`.
Source: the instruments and the places are those of MUSIC-AVQA's annotations; the rest is invented.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from pipeline.synthetic.difficulty import NORMAL, Difficulty, Distractor, sample_distractors

Place = Literal["left", "middle", "right"]
Setting = Literal["indoor", "outdoor"]

INSTRUMENTS = ("accordion", "drum", "flute", "saxophone", "violin", "xylophone")
PLACES: tuple[Place, ...] = get_args(Place)
SETTINGS: tuple[Setting, ...] = get_args(Setting)
LEVELS = (1, 2, 3)
TEMPOS = (1, 2, 4)

ENSEMBLE_SHARE = 0.25
ALL_PLAY_SHARE = 0.5
ROLE_WEIGHTS = {"plays": 0.4, "silent": 0.34, "hidden": 0.26}
ALWAYS_PLAYING_SHARE = 0.35
TOGETHER_SHARE = 0.3
VOICEOVER_SHARE = 0.25
SHORTEST_PLAY_SECONDS = 2


@dataclass(frozen=True)
class Movement:
    """The motion of an instrument on screen: in the seconds [start, stop), as large as that of `level` (1 to 3)."""

    start: int
    stop: int
    level: int


@dataclass(frozen=True)
class Performer:
    """One instrument of a scene.

    `place` is None if it is off screen; `column` is its horizontal centre as a share of the frame's width. It plays
    in the seconds [start, stop); equal means never. `level` (1 soft to 3 loud) and `tempo` (notes per second) apply
    while it plays; `pitch` in [0, 1) places its notes within the instrument's range.
    `movement`: None if it moves as it plays. `lights`: number of lights in front of it. `holds_note`: whether it
    repeats the note of its pitch instead of playing a melody from there.
    """

    instrument: str
    place: Place | None
    column: float
    start: int
    stop: int
    level: int
    tempo: int
    pitch: float
    movement: Movement | None = None
    lights: int = 0
    holds_note: bool = False

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

    def motion_during(self, second: int) -> int:
        """Return the level of its motion in the second [second, second + 1), 0 if it rests."""
        moves = self.movement or Movement(self.start, self.stop, self.level)
        return moves.level if moves.start <= second < moves.stop else 0


@dataclass(frozen=True)
class Scene:
    """The events of one clip of `seconds` seconds, and the tracks of its file (`has_audio`, `has_visual`).

    A missing track does not change the scene or its answers. `distractors`: shapes behind the instruments.
    `noise_gain`: standard deviation of the noise in the audio.
    """

    video_id: str
    seconds: int
    setting: Setting
    performers: tuple[Performer, ...]
    has_voiceover: bool
    has_audio: bool
    has_visual: bool
    distractors: tuple[Distractor, ...] = ()
    noise_gain: float = 0.0

    @property
    def visible(self) -> tuple[Performer, ...]:
        """The performers on screen, from left to right."""
        return tuple(sorted((p for p in self.performers if p.is_visible), key=lambda p: p.column))

    @property
    def audible(self) -> tuple[Performer, ...]:
        """The performers that play, in order of their start."""
        return tuple(sorted((p for p in self.performers if p.is_audible), key=lambda p: p.start))


def sample_scene(video_id: str, seconds: int, rng: random.Random, difficulty: Difficulty = NORMAL) -> Scene:
    """Return a random scene for one clip with both tracks, sampled from `rng`."""
    instruments = sample_instruments(difficulty.count_weights, rng)
    roles = _sample_roles(len(instruments), rng)
    positions = iter(sample_positions(sum(role != "hidden" for role in roles), rng))
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
        has_audio=True,
        has_visual=True,
        distractors=sample_distractors(difficulty, rng),
        noise_gain=difficulty.noise_gain,
    )


def sample_instruments(count_weights: Mapping[int, float], rng: random.Random) -> list[str]:
    """Return the instruments of a scene: of one kind in `ENSEMBLE_SHARE` of the scenes, else all different."""
    (count,) = rng.choices(tuple(count_weights), tuple(count_weights.values()))
    if rng.random() < ENSEMBLE_SHARE:
        return [rng.choice(INSTRUMENTS)] * count
    return rng.sample(INSTRUMENTS, count)


def _sample_roles(count: int, rng: random.Random) -> list[str]:
    """Return each performer's role. In half of the scenes all play on screen: one modality informs about the other."""
    if rng.random() < ALL_PLAY_SHARE:
        return ["plays"] * count
    return rng.choices(tuple(ROLE_WEIGHTS), tuple(ROLE_WEIGHTS.values()), k=count)


def sample_positions(count: int, rng: random.Random) -> list[tuple[Place, float]]:
    """Return places and columns of `count` visible performers in random order; four or more share places."""
    if count > len(PLACES):
        columns = [(2 * index + 1) / (2 * count) for index in range(count)]
        positions: list[tuple[Place, float]] = [(PLACES[int(column * len(PLACES))], column) for column in columns]
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
        start, stop = sample_span(seconds, rng)
        if previous_start is not None and previous_start < stop and rng.random() < TOGETHER_SHARE:
            start = previous_start
        previous_start = start
        spans.append((start, stop))
    return spans


def sample_span(seconds: int, rng: random.Random) -> tuple[int, int]:
    """Return [start, stop) in which an instrument plays: in `ALWAYS_PLAYING_SHARE` of the cases the whole clip."""
    if rng.random() < ALWAYS_PLAYING_SHARE:
        return 0, seconds
    start = rng.randint(0, max(0, seconds - SHORTEST_PLAY_SECONDS))
    return start, rng.randint(min(start + SHORTEST_PLAY_SECONDS, seconds), seconds)
