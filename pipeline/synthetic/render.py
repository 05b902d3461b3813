"""The pictures of a scene: a stage, and instruments that move while they play and stand still while they do not.

It makes no sound and writes no file. The louder a player, the larger its motion; each instrument moves in its own way.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from pipeline.synthetic.scene import Performer, Scene, Setting
from pipeline.synthetic.sprites import HEIGHT, make_sprite, swing

SIZE = 224
FRAMES_PER_SECOND = 8
FLOOR_ROW = 196
LEVEL_MOTION = {1: 0.4, 2: 0.7, 3: 1.0}


@dataclass(frozen=True)
class Motion:
    """How far an instrument moves at its loudest: pixels right and up, degrees of turn, share of growth."""

    right: float = 0.0
    up: float = 0.0
    degrees: float = 0.0
    growth: float = 0.0


MOTIONS = {
    "accordion": Motion(growth=0.22),
    "acoustic_guitar": Motion(degrees=16),
    "drum": Motion(up=30),
    "flute": Motion(degrees=24),
    "piano": Motion(up=12, growth=0.15),
    "saxophone": Motion(right=10, up=16),
    "violin": Motion(right=12, degrees=10),
    "xylophone": Motion(right=14, growth=0.12),
}


def render_pictures(scene: Scene) -> Iterator[np.ndarray]:
    """Yield the scene's pictures in order: uint8 [height, width, 3], RGB, `FRAMES_PER_SECOND` a second."""
    for index in range(scene.seconds * FRAMES_PER_SECOND):
        yield render_picture(scene, index)


def render_picture(scene: Scene, index: int) -> np.ndarray:
    """Return picture `index` of the scene: uint8 [height, width, 3], RGB."""
    second, part = divmod(index, FRAMES_PER_SECOND)
    canvas = make_stage(scene.setting).copy()
    for performer in scene.seen:
        phase = (second % 2) + part / FRAMES_PER_SECOND
        displacement = swing(phase) if performer.sounds_during(second) else 0.0
        _draw_performer(canvas, performer, displacement)
    return canvas


@lru_cache(maxsize=2)
def make_stage(setting: Setting) -> np.ndarray:
    """Return the empty stage: uint8 [height, width, 3], RGB, read-only; a panelled room, or a meadow under the sky."""
    wall, floor = ((92, 74, 66), (140, 104, 72)) if setting == "indoor" else ((176, 214, 240), (150, 178, 110))
    stage = np.empty((SIZE, SIZE, 3), np.uint8)
    stage[:FLOOR_ROW], stage[FLOOR_ROW:] = wall, floor
    if setting == "indoor":
        stage[:FLOOR_ROW, ::28] = (72, 58, 52)
        stage[FLOOR_ROW : FLOOR_ROW + 3] = (60, 46, 40)
    else:
        row, column = np.mgrid[:SIZE, :SIZE]
        stage[(row - 30) ** 2 + (column - 190) ** 2 < 16**2] = (255, 244, 190)
        for x, y in ((50, 34), (76, 28), (100, 36)):
            stage[((row - y) / 12) ** 2 + ((column - x) / 26) ** 2 < 1] = (240, 246, 250)
    stage.setflags(write=False)
    return stage


def _draw_performer(canvas: np.ndarray, performer: Performer, displacement: float) -> None:
    motion, strength = MOTIONS[performer.instrument], LEVEL_MOTION[performer.level]
    scale = 1 + strength * motion.growth * abs(displacement)
    colour, opacity = make_sprite(performer.instrument, round(scale, 3), round(strength * motion.degrees * displacement, 1))
    centre_x = performer.column * SIZE + strength * motion.right * displacement
    centre_y = FLOOR_ROW + 6 - HEIGHT / 2 - strength * motion.up * abs(displacement)
    _paste(canvas, colour, opacity, round(centre_y - colour.shape[0] / 2), round(centre_x - colour.shape[1] / 2))


def _paste(canvas: np.ndarray, colour: np.ndarray, opacity: np.ndarray, top: int, left: int) -> None:
    """Lay a sprite over the canvas, in place; what sticks out is cut."""
    bottom, right = min(top + colour.shape[0], SIZE), min(left + colour.shape[1], SIZE)
    rows, columns = slice(max(top, 0), bottom), slice(max(left, 0), right)
    cut = slice(max(top, 0) - top, bottom - top), slice(max(left, 0) - left, right - left)
    under = canvas[rows, columns]
    canvas[rows, columns] = under + (opacity[cut] * (colour[cut].astype(np.float32) - under) + 0.5).astype(np.int16)
