"""The errors that a user can mend: wrong use or bad input. It is not for bugs of ours (those stay tracebacks)."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

# What the operating system says of a disk that takes no more, and how that is mended.
_DISK_REFUSALS = {
    errno.ENOSPC: ("no space is left", "free some"),
    errno.EDQUOT: ("no quota is left", "free some"),
    errno.EROFS: ("it is read-only", "mount it for writing"),
    errno.EFBIG: ("a file of it is larger than a process may write", "raise its 'ulimit -f'"),
}


LONGEST_MESSAGE = 300


class UserError(Exception):
    """Tell the user in one line which thing has which wrong value and how to mend it; commands exit with 2."""


def one_line(error: BaseException) -> str:
    """Return the message of `error` on one line, at most 300 characters of it; its type where it has none."""
    return " ".join(str(error).split())[:LONGEST_MESSAGE] or type(error).__name__


@contextmanager
def reporting_full_disks(place: object) -> Iterator[None]:
    """Raise a `UserError` that names `place` where a disk takes no more inside the block, on whichever machine."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_REFUSALS:
            raise
        what, mend = _DISK_REFUSALS[error.errno]
        raise UserError(f"{place} cannot be written, {what} ({error}): {mend}, and run again to go on") from None
