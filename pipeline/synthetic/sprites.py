"""The images of the instruments, with transparency: one shape and one colour each.

Shapes are drawn four times too large and downsampled for smooth edges.
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

WIDTH = 54
HEIGHT = 120
DRAWING_SIZE = (208, 448)
DARK = (40, 30, 30)

Pen = ImageDraw.ImageDraw
COLOURS = {
    "accordion": (225, 25, 35),
    "drum": (35, 70, 230),
    "flute": (25, 220, 225),
    "saxophone": (250, 220, 30),
    "violin": (190, 40, 200),
    "xylophone": (40, 190, 60),
}


@lru_cache(maxsize=1024)
def render_sprite(instrument: str, scale: float = 1.0, degrees: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Return an instrument's image: colour uint8 [height, width, 3] and opacity float32 [height, width, 1] in [0, 1].

    `scale` 1 is `WIDTH` x `HEIGHT` pixels; `degrees` then rotates it counter-clockwise about its centre.
    """
    large = _draw_shape(instrument)
    size = (round(WIDTH * scale), round(HEIGHT * scale))
    sprite = large.resize(size, Image.Resampling.BOX)
    if degrees:
        sprite = sprite.rotate(degrees, Image.Resampling.BILINEAR, expand=True)
    pixels = np.asarray(sprite)
    return pixels[..., :3], pixels[..., 3:].astype(np.float32) / 255


@lru_cache(maxsize=32)
def _draw_shape(instrument: str) -> Image.Image:
    colour = COLOURS[instrument]
    image = Image.new("RGBA", DRAWING_SIZE, (*colour, 0))
    _SHAPES[instrument](ImageDraw.Draw(image), colour)
    return image


def _accordion(pen: Pen, colour: tuple[int, int, int]) -> None:
    pen.rounded_rectangle((6, 90, 70, 400), 16, fill=colour, outline=DARK, width=4)
    pen.rounded_rectangle((138, 90, 202, 400), 16, fill=colour, outline=DARK, width=4)
    for index in range(6):
        top = 102 + index * 49
        pen.polygon(
            [(70, top), (104, top + 14), (138, top), (138, top + 36), (104, top + 50), (70, top + 36)],
            fill=colour,
        )
    for index in range(8):
        pen.rectangle((152, 112 + index * 34, 192, 132 + index * 34), fill="white")


def _drum(pen: Pen, colour: tuple[int, int, int]) -> None:
    pen.line((30, 30, 120, 170), fill=(200, 160, 100), width=14)
    pen.line((180, 30, 90, 170), fill=(200, 160, 100), width=14)
    pen.ellipse((4, 360, 204, 440), fill=colour)
    pen.rectangle((4, 180, 204, 400), fill=colour)
    for x in (20, 78, 130, 188):
        pen.line((x, 190, x, 410), fill="white", width=8)
    pen.ellipse((4, 140, 204, 220), fill=(245, 240, 225), outline=DARK, width=5)


def _flute(pen: Pen, colour: tuple[int, int, int]) -> None:
    pen.rounded_rectangle((50, 4, 158, 440), 40, fill=colour, outline=DARK, width=4)
    pen.ellipse((84, 36, 124, 66), fill=DARK)
    for index in range(6):
        pen.ellipse((90, 170 + index * 40, 118, 198 + index * 40), fill=DARK)
    pen.rectangle((50, 110, 158, 130), fill="white")


def _saxophone(pen: Pen, colour: tuple[int, int, int]) -> None:
    pen.line((30, 30, 92, 30), fill=DARK, width=16)
    pen.line((88, 30, 100, 330), fill=colour, width=46)
    pen.arc((70, 230, 190, 440), 0, 180, fill=colour, width=56)
    pen.polygon([(134, 340), (190, 340), (204, 200), (110, 200)], fill=colour)
    pen.ellipse((108, 180, 206, 220), fill=(170, 130, 10), outline=DARK, width=4)
    for index in range(5):
        pen.ellipse((82, 90 + index * 46, 108, 116 + index * 46), fill=DARK)


def _violin(pen: Pen, colour: tuple[int, int, int]) -> None:
    pen.rectangle((94, 10, 114, 200), fill=DARK)
    pen.ellipse((84, 2, 124, 40), fill=DARK)
    pen.ellipse((40, 140, 168, 280), fill=colour)
    pen.ellipse((24, 260, 184, 440), fill=colour)
    pen.rectangle((56, 220, 152, 340), fill=colour)
    pen.rectangle((92, 150, 116, 330), fill=DARK)
    pen.line((14, 430, 200, 110), fill=(235, 225, 200), width=10)


def _xylophone(pen: Pen, colour: tuple[int, int, int]) -> None:
    pen.line((30, 210, 30, 440), fill=DARK, width=16)
    pen.line((178, 210, 178, 440), fill=DARK, width=16)
    for index in range(7):
        margin = 2 + index * 9
        top = 120 + 34 * (6 - index)
        pen.rounded_rectangle((margin, top, 208 - margin, top + 26), 8, fill=colour, outline=(10, 90, 30), width=3)
    pen.line((70, 110, 110, 20), fill=DARK, width=10)
    pen.ellipse((96, 2, 130, 36), fill="white")


_SHAPES: dict[str, Callable[[Pen, tuple[int, int, int]], None]] = {
    "accordion": _accordion,
    "drum": _drum,
    "flute": _flute,
    "saxophone": _saxophone,
    "violin": _violin,
    "xylophone": _xylophone,
}
