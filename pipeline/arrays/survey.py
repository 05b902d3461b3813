"""What a folder of arrays has for the videos or questions of a manifest, from names and headers; and reading them."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.arrays.layouts import Layout
from pipeline.arrays.npy_files import SUFFIX, ArrayError, convert, list_arrays
from pipeline.errors import UserError
from pipeline.files import hash_file


@dataclass(frozen=True)
class Survey:
    """The arrays of one feature.

    `steps` {video or question id: time steps of its array}, of the usable ones. `reasons` {id: why its array cannot be
    used}. An id in neither has no array.
    """

    layout: Layout
    folder: Path
    steps: dict[str, int]
    reasons: dict[str, str]

    def path(self, name: str) -> Path:
        """Return the path of the array of a video or question."""
        return self.folder / f"{name}{SUFFIX}"

    def problem(self, name: str) -> str:
        """Return why the video or question `name` has no usable array; "" if it has one, by its header."""
        return "" if name in self.steps else self.reasons.get(name, f"no array {name}{SUFFIX}")

    def has_file(self, name: str) -> bool:
        """Return whether there is a file for the video or question `name`."""
        return name in self.steps or name in self.reasons

    def read(self, name: str, seconds: int | None = None) -> tuple[np.ndarray, str]:
        """Return the values of an array in the store's data type, at most `seconds` steps, and the SHA-256 of its file.

        Raises `ArrayError`, with the name of the file, if it cannot be used.
        """
        path = self.path(name)
        try:
            before = _identify(path)
            values = convert(self.layout.open(path)[:seconds], self.layout.dtype)
            sha256 = hash_file(path)
            if _identify(path) != before:
                raise ArrayError("was changed while it was read: run again when it is no longer written")
        except ArrayError as error:
            raise ArrayError(f"{path.name} {error}") from None
        return values, sha256


def survey_folder(
    layout: Layout, folder: Path, names: Collection[str], on_array: Callable[[], None] = lambda: None
) -> Survey:
    """Return what `folder` has for the videos or questions `names`; `on_array` is called for each of its arrays.

    Raises `UserError` if no array can be used: the folder is missing, or of other videos or of another feature.
    """
    source = f"--from {layout.feature}={folder}"
    if not folder.is_dir():
        raise UserError(f"{source}: the folder does not exist")
    found = list_arrays(folder)
    if not found:
        raise UserError(f"{source}: the folder contains no {SUFFIX}: pass the one with a file per {_unit(layout)}")
    steps, reasons = {}, {}
    for name in names:
        if name in found:
            try:
                steps[name] = len(layout.open(found[name]))
            except ArrayError as error:
                reasons[name] = f"{name}{SUFFIX} {error}"
            on_array()
    if not steps and not reasons:
        raise UserError(
            f"{source}: none of its {len(found)} arrays, such as {next(iter(found))}{SUFFIX}, is named after a "
            f"{_unit(layout)} of the manifest, such as {next(iter(names))}: pass another folder or manifest"
        )
    survey = Survey(layout, folder, steps, reasons)
    _check_values(survey, source)
    return survey


def _check_values(survey: Survey, source: str) -> None:
    """Raise `UserError` unless the values of some array can be stored; most folders are decided by their first."""
    problem = next(iter(survey.reasons.values()), "")
    for name in survey.steps:
        try:
            survey.read(name)
            return
        except ArrayError as error:
            problem = str(error)
    raise UserError(f"{source}: no array can be imported: {problem}; pass the folder of this feature's arrays")


def _identify(path: Path) -> tuple[int, ...]:
    """Return a signature that changes if the file is replaced, without reading it."""
    try:
        found = path.stat()
    except OSError as error:
        raise ArrayError(f"cannot be read ({error.strerror})") from None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _unit(layout: Layout) -> str:
    return "question" if layout.is_of_questions else "video"
