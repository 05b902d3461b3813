"""The display matrix of a frame, whatever other side data the frame has.

`frame.side_data` of PyAV creates an object for every entry, and raises `ValueError` if its table has no name for the
type of one, for example for the EXIF data of a JPEG frame. Here such a type is a nameless member of the table instead.
"""

from typing import Any, cast

import av
import numpy as np
from av.sidedata.sidedata import Type


def _nameless_type(value: Any) -> Type:
    """Return a member of PyAV's table for a type of FFmpeg that it has no name for."""
    member = object.__new__(Type)
    member._name_ = f"TYPE_{value}"
    member._value_ = value
    return member


Type._missing_ = staticmethod(_nameless_type)  # type: ignore[method-assign]


def display_matrix(frame: av.VideoFrame) -> list[int] | None:
    """Return the 3 x 3 display matrix of a frame, row by row; None if it has none."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    return None if matrix is None else np.frombuffer(cast(bytes, matrix), np.int32).tolist()
