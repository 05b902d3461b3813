"""Read `.npy` files of unknown origin: memory-mapped, never unpickled, with a reason for each that is unusable."""

from pathlib import Path
from tokenize import TokenError

import numpy as np

from pipeline.errors import one_line

SUFFIX = ".npy"
# Raised by numpy, and by Python's parser of its headers, for files that are not an array or have a corrupt header.
_UNREADABLE = (
    *(ValueError, TypeError, OSError, EOFError, OverflowError, SyntaxError, TokenError),
    *(MemoryError, RecursionError),
)


class ArrayError(Exception):
    """An array that cannot be used; the message is the reason, such as "cannot be read (...)"."""


def list_arrays(folder: Path) -> dict[str, Path]:
    """Return {name without suffix: path} of the `.npy` files in `folder`, sorted; {} if it is not a folder."""
    return {path.stem: path for path in sorted(folder.glob(f"*{SUFFIX}"))} if folder.is_dir() else {}


def open_array(path: Path, kinds: str = "fiu") -> np.ndarray:
    """Return the array at `path` as a memory map. Raises `ArrayError` if it is not an array of numbers.

    `kinds`: the kinds of its data type that are accepted, as numpy names them.
    """
    if path.exists() and not path.is_file():
        raise ArrayError("is not a regular file")
    try:
        array: np.ndarray = np.lib.format.open_memmap(path, mode="r")
    except _UNREADABLE as error:
        raise ArrayError(f"cannot be read ({one_line(error)})") from None
    if array.dtype.kind not in kinds:
        expected = "numbers" if "i" in kinds else "floating-point numbers"
        raise ArrayError(f"contains {array.dtype}, not {expected}")
    return array


def convert(array: np.ndarray, dtype: str) -> np.ndarray:
    """Return a copy of `array` [step, ...] in `dtype`. Raises `ArrayError` if a value is or becomes not finite."""
    with np.errstate(over="ignore"):
        converted = np.array(array, dtype)
    is_finite = np.isfinite(converted).reshape(len(converted), -1).all(axis=1)
    if is_finite.all():
        return converted
    row = int(np.flatnonzero(~is_finite)[0])
    if np.isfinite(array[row]).all():
        raise ArrayError(f"row {row} contains values that are too large for {dtype}")
    raise ArrayError(f"row {row} contains values that are not finite")
