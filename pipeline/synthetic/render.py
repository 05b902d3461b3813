"""The frames of a scene: a stage, and instruments that move as they play or as their `movement` says.

The louder an instrument plays, the larger its motion; each instrument moves in its own way.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from pipeline.synthetic.difficulty import Distractor
from pipeline.synthetic.scene import Performer, Scene, Setting
from pipeline.synthetic.sprites import HEIGHT, render_sprite

SIZE = 224
FRAMES_PER_SECOND = 8
FLOOR_ROW = 196
LEVEL_MOTION = {0: 0.0, 1: 0.4, 2: 0.7, 3: 1.0}
# More instruments than these are rendered smaller, so that they do not overlap.
MOST_FULL_SIZE = 4
LIGHT_SIZE = 8
LIGHT_SPACING = 12
LIGHT_ROW = 210
LIGHT_COLOUR = (255, 255, 255)


@dataclass(frozen=True)
class Motion:
    """The pose and motion of an instrument while it plays.

    `pose_degrees`: its tilt from the upright resting pose. The other fields are the amplitudes of its swing at the
    loudest level: pixels right and up, degrees of rotation, share of growth.
    """

    pose_degrees: float = 0.0
    right: float = 0.0
    up: float = 0.0
    degrees: float = 0.0
    growth: float = 0.0


MOTIONS = {
    "accordion": Motion(growth=0.3, right=4),
    "drum": Motion(up=36, growth=0.1),
    "flute": Motion(pose_degrees=30, degrees=16),
    "saxophone": Motion(pose_degrees=-22, right=6, up=18),
    "violin": Motion(pose_degrees=-34, right=8, degrees=10),
    "xylophone": Motion(right=14, up=10, growth=0.2),
}


def render_frames(scene: Scene) -> Iterator[np.ndarray]:
    """Yield the frames of the scene in order: uint8 [height, width, 3], RGB, `FRAMES_PER_SECOND` per second."""
    for index in range(scene.seconds * FRAMES_PER_SECOND):
        yield render_frame(scene, index)


def render_frame(scene: Scene, index: int) -> np.ndarray:
    """Return frame `index` of the scene: uint8 [height, width, 3], RGB."""
    second, part = divmod(index, FRAMES_PER_SECOND)
    frame = render_stage(scene.setting).copy()
    # In [-1, 1], with an extreme in the middle of every second: that is the frame that extraction samples.
    displacement = math.sin(math.pi * (second % 2 + part / FRAMES_PER_SECOND))
    for distractor in scene.distractors:
        _render_distractor(frame, distractor, displacement)
    size = min(1.0, MOST_FULL_SIZE / max(1, len(scene.visible)))
    for performer in scene.visible:
        _render_performer(frame, performer, LEVEL_MOTION[performer.motion_during(second)], displacement, size)
        _render_lights(frame, performer, size)
    return frame


@lru_cache(maxsize=2)
def render_stage(setting: Setting) -> np.ndarray:
    """Return the empty stage, a panelled room or a meadow under the sky: uint8 [height, width, 3], RGB, read-only."""
    wall, floor = ((172, 156, 140), (146, 112, 82)) if setting == "indoor" else ((168, 200, 228), (140, 168, 104))
    stage = np.empty((SIZE, SIZE, 3), np.uint8)
    stage[:FLOOR_ROW], stage[FLOOR_ROW:] = wall, floor
    if setting == "indoor":
        stage[:FLOOR_ROW, ::28] = (150, 134, 118)
        stage[FLOOR_ROW : FLOOR_ROW + 3] = (110, 84, 62)
    else:
        row, column = np.mgrid[:SIZE, :SIZE]
        stage[(row - 30) ** 2 + (column - 190) ** 2 < 16**2] = (255, 244, 190)
        for x, y in ((50, 34), (76, 28), (100, 36)):
            stage[((row - y) / 12) ** 2 + ((column - x) / 26) ** 2 < 1] = (240, 246, 250)
    stage.setflags(write=False)
    return stage


def _render_performer(
    frame: np.ndarray, performer: Performer, strength: float, displacement: float, size: float
) -> None:
    """Paste the performer's sprite; `strength` in [0, 1] of its motion, `size` as a share of the full one."""
    motion = MOTIONS[performer.instrument]
    degrees = motion.pose_degrees * (strength > 0) + strength * motion.degrees * displacement
    scale = size * (1 + strength * motion.growth * abs(displacement))
    colour, opacity = render_sprite(performer.instrument, round(scale, 3), round(degrees, 1))
    centre_x = performer.column * SIZE + strength * motion.right * displacement
    centre_y = FLOOR_ROW + 8 - size * HEIGHT / 2 - strength * motion.up * abs(displacement)
    _paste(frame, colour, opacity, round(centre_y - colour.shape[0] / 2), round(centre_x - colour.shape[1] / 2))


def _render_lights(frame: np.ndarray, performer: Performer, size: float) -> None:
    """Render a row of white squares on the floor in front of the performer."""
    spacing, side = round(size * LIGHT_SPACING), round(size * LIGHT_SIZE)
    left = round(performer.column * SIZE - ((performer.lights - 1) * spacing + side) / 2)
    for index in range(performer.lights):
        begin = left + index * spacing
        frame[LIGHT_ROW : LIGHT_ROW + side, begin : begin + side] = LIGHT_COLOUR


def _render_distractor(frame: np.ndarray, distractor: Distractor, displacement: float) -> None:
    row, column = np.ogrid[:SIZE, :SIZE]
    right, down = column - distractor.column - distractor.sway * displacement, row - distractor.row
    if distractor.shape == "disc":
        inside = right**2 + down**2 < (distractor.size / 2) ** 2
    else:
        inside = (abs(right) < distractor.size / 2) & (abs(down) < distractor.size / 2)
    frame[inside] = distractor.colour


def _paste(frame: np.ndarray, colour: np.ndarray, opacity: np.ndarray, top: int, left: int) -> None:
    """Blend a sprite into the frame, in place; parts outside the frame are cropped."""
    bottom, right = min(top + colour.shape[0], SIZE), min(left + colour.shape[1], SIZE)
    rows, columns = slice(max(top, 0), bottom), slice(max(left, 0), right)
    cut = slice(max(top, 0) - top, bottom - top), slice(max(left, 0) - left, right - left)
    under = frame[rows, columns]
    frame[rows, columns] = under + (opacity[cut] * (colour[cut].astype(np.float32) - under) + 0.5).astype(np.int16)
