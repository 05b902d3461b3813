"""How hard the clips are to perceive: the number of instruments, shapes behind them and noise in the audio."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

Shape = Literal["box", "disc"]
SHAPES: tuple[Shape, ...] = get_args(Shape)


@dataclass(frozen=True)
class Difficulty:
    """The settings of a difficulty.

    `count_weights`: relative frequency of each number of instruments, at most 6. `distractors`: smallest and largest
    number of shapes behind the instruments. `noise_gain`: standard deviation of the noise in the audio; the waveform of
    the softest instrument has peak 0.06.
    """

    count_weights: Mapping[int, float]
    distractors: tuple[int, int]
    noise_gain: float


NORMAL = Difficulty({1: 0.2, 2: 0.25, 3: 0.3, 4: 0.25}, (0, 0), 0.0)
DIFFICULTIES = {
    "normal": NORMAL,
    "hard": Difficulty({2: 0.15, 3: 0.2, 4: 0.25, 5: 0.2, 6: 0.2}, (5, 9), 0.02),
}


@dataclass(frozen=True)
class Distractor:
    """A shape behind the instruments: `column` and `row` of its centre in pixels, `size` and `sway` in pixels.

    It moves `sway` pixels to either side, in every second of the clip, whether or not an instrument plays.
    """

    shape: Shape
    colour: tuple[int, int, int]
    column: int
    row: int
    size: int
    sway: int


def sample_distractors(difficulty: Difficulty, rng: random.Random) -> tuple[Distractor, ...]:
    """Return the shapes of one scene, each of a random colour; nothing is sampled where `difficulty` has none."""
    fewest, most = difficulty.distractors
    if most == 0:
        return ()
    return tuple(
        Distractor(
            shape=rng.choice(SHAPES),
            colour=(rng.randint(20, 240), rng.randint(20, 240), rng.randint(20, 240)),
            column=rng.randint(10, 214),
            row=rng.randint(20, 190),
            size=rng.randint(14, 44),
            sway=rng.choice((0, 6, 12)),
        )
        for _ in range(rng.randint(fewest, most))
    )
