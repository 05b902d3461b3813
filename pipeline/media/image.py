"""Preparation of decoded images for a network: orientation, resizing and cropping."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from pipeline.media.timeline import FrameSize

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def orient(image: np.ndarray, matrix: Sequence[int]) -> np.ndarray:
    """Return [height, width, channel] rotated by quarter turns and mirrored according to a display matrix.

    `matrix` is the 3 x 3 matrix of ISO 14496-12, row by row (a, b, _, c, d, ...): pixel (x, y) is displayed at
    (a x + c y, b x + d y). Other angles are rounded to the nearest quarter turn.
    """
    a, b, c, d = matrix[0], matrix[1], matrix[3], matrix[4]
    if is_transposed(matrix):
        image = image.transpose(1, 0, 2)
    along_x, along_y = (c, b) if is_transposed(matrix) else (a, d)
    if along_x < 0:
        image = image[:, ::-1]
    if along_y < 0:
        image = image[::-1]
    return np.ascontiguousarray(image)


def is_transposed(matrix: Sequence[int]) -> bool:
    """Return whether a display matrix exchanges rows and columns (see `orient`)."""
    a, b, c, d = matrix[0], matrix[1], matrix[3], matrix[4]
    return abs(b) + abs(c) > abs(a) + abs(d)


def is_mirrored(matrix: Sequence[int]) -> bool:
    """Return whether a display matrix mirrors the image in addition to any rotation (see `orient`)."""
    return matrix[0] * matrix[4] < matrix[1] * matrix[3]


def fit(image: np.ndarray, frame_size: FrameSize) -> np.ndarray:
    """Return uint8 [size, size, 3] of an RGB image [height, width, 3]: stretched, or resized and center-cropped."""
    original = Image.fromarray(image)
    size, resample = frame_size.size, FILTERS[frame_size.filter]
    if frame_size.mode == "stretch":
        return np.asarray(original.resize((size, size), resample))
    width, height = (frame_size.shorter_side * side // min(original.size) for side in original.size)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return np.asarray(original.resize((width, height), resample).crop((left, top, left + size, top + size)))
