"""What is done to a picture before a network sees it: turned upright, made square. It decodes nothing."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from pipeline.media.timeline import FrameSize

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def orient(picture: np.ndarray, matrix: Sequence[int]) -> np.ndarray:
    """Return [height, width, channel] as a display matrix shows it: turned by quarter turns and mirrored.

    `matrix` is the 3 x 3 matrix of ISO 14496-12, row by row (a, b, _, c, d, ...): a pixel (x, y) is shown
    at (a x + c y, b x + d y). Any other angle is taken as the nearest quarter turn.
    """
    a, b, c, d = matrix[0], matrix[1], matrix[3], matrix[4]
    if is_transposed(matrix):
        picture = picture.transpose(1, 0, 2)
    along_x, along_y = (c, b) if is_transposed(matrix) else (a, d)
    if along_x < 0:
        picture = picture[:, ::-1]
    if along_y < 0:
        picture = picture[::-1]
    return np.ascontiguousarray(picture)


def is_transposed(matrix: Sequence[int]) -> bool:
    """Say whether a display matrix makes rows of columns (see `orient`)."""
    a, b, c, d = matrix[0], matrix[1], matrix[3], matrix[4]
    return abs(b) + abs(c) > abs(a) + abs(d)


def is_mirrored(matrix: Sequence[int]) -> bool:
    """Say whether a display matrix mirrors the picture, besides turning it (see `orient`)."""
    return matrix[0] * matrix[4] < matrix[1] * matrix[3]


def fit(picture: np.ndarray, frame_size: FrameSize) -> np.ndarray:
    """Return uint8 [size, size, 3] of an RGB picture [height, width, 3]: stretched, or resized and cut."""
    image = Image.fromarray(picture)
    size, resample = frame_size.size, FILTERS[frame_size.filter]
    if frame_size.mode == "stretch":
        return np.asarray(image.resize((size, size), resample))
    width, height = (frame_size.shorter_side * side // min(image.size) for side in image.size)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return np.asarray(image.resize((width, height), resample).crop((left, top, left + size, top + size)))
