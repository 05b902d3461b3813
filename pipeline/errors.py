"""Errors that the user can fix: wrong use or invalid input. Bugs of mavqa keep their tracebacks."""

import difflib
import errno
import re
import reprlib
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError

# Why the operating system refuses to write to a disk, and how to fix it.
_DISK_ERRORS = {
    errno.ENOSPC: ("no space is left", "free some"),
    errno.EDQUOT: ("no quota is left", "free some"),
    errno.EROFS: ("it is read-only", "mount it for writing"),
    errno.EFBIG: ("one of its files is larger than a process may write", "raise its 'ulimit -f'"),
}


LONGEST_MESSAGE = 300


class UserError(Exception):
    """An error that the user can fix. One line: the thing, its value and what to do; commands exit with 2."""


class Stopped(KeyboardInterrupt):
    """SIGTERM ended the work, which can be resumed; commands exit with 75, the code for "try again" of sysexits.h.

    It ends whatever Ctrl-C ends.
    """


# Of the operating system, such as for a folder without write permission. FileNotFoundError is none: a path of the user
# that is missing is a `UserError`.
_USER_ERRORS = (UserError, PermissionError, NotADirectoryError, FileExistsError, IsADirectoryError)
# Those that have no type of their own: of paths, disks, network drives and limits.
_ENVIRONMENT = {
    *(errno.ENAMETOOLONG, errno.ELOOP, errno.EIO, errno.ENXIO, errno.ENODEV, errno.ESTALE, errno.ENOTCONN),
    *(errno.EMFILE, errno.ENFILE, errno.ENOLCK, errno.ENOMEM),
    *_DISK_ERRORS,
}


def is_user_error(error: BaseException) -> bool:
    """Return whether the user can fix `error`: a `UserError`, or one of the operating system that is no bug."""
    return isinstance(error, _USER_ERRORS) or (isinstance(error, OSError) and error.errno in _ENVIRONMENT)


def one_line(error: BaseException) -> str:
    """Return the message of `error` on one line, cut to 300 characters; the name of its type if it has none."""
    return " ".join(str(error).split())[:LONGEST_MESSAGE] or type(error).__name__


def describe_error(error: BaseException) -> str:
    """Return the message of a user's error on one line: of the operating system's, the path and the cause."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror.lower()}"
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
        cause, fix = _DISK_ERRORS[error.errno]
        return f"a file or the output of the command cannot be written, {cause}: {fix}"
    return " ".join(str(error).split())


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a hint at the one of `known` that is nearest to the unknown `name`, for messages; "" if none is near."""
    by_lower_case = {one.lower(): one for one in known}
    near = difflib.get_close_matches(name.lower(), by_lower_case, n=1)
    return f" (did you mean {by_lower_case[near[0]]!r}?)" if near else ""


def unknown_name(kind: str, name: str, known: Collection[str]) -> UserError:
    """Return the error for a `name` that is none of the `known` ones; `kind` is what the message calls it."""
    return UserError(f"{kind} {name!r} is unknown{did_you_mean(name, known)}: choose one of {', '.join(known)}")


def describe_invalid(error: "ValidationError") -> str:
    """Return the first problem of pydantic's `error`: the field with its value, and why it is invalid."""
    first = error.errors()[0]
    field, problem = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
    if not field:
        return problem
    return (
        f"{field}: {problem}" if first["type"] == "missing" else f"{field} = {reprlib.repr(first['input'])}: {problem}"
    )


def why_unreadable(path: Path, error: Exception) -> str:
    """Return why torch or safetensors cannot read a file of tensors, for messages.

    Their own messages may name only a number, or advise unsafe loading.
    """
    if not path.stat().st_size:
        return "it is empty"
    foreign = re.search(r"Unsupported global: GLOBAL (\S+)", str(error))
    return f"it contains {foreign[1]}, not only tensors" if foreign else "it is incomplete or corrupt"


@contextmanager
def reporting_full_disks(place: object) -> Iterator[None]:
    """Convert the error of a full or read-only disk, here or on a worker, into a `UserError` that names `place`."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        cause, fix = _DISK_ERRORS[error.errno]
        raise UserError(f"{place} cannot be written, {cause} ({error}): {fix}, and run again to resume") from None
