"""The errors that a user can mend: wrong use or bad input. It is not for bugs of ours (those stay tracebacks)."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


class UserError(Exception):
    """Tell the user in one line which thing has which wrong value and how to mend it; commands exit with 2."""


@contextmanager
def naming_full_disks(place: object) -> Iterator[None]:
    """Raise a `UserError` that names `place` where a disk is full, bounded or read-only inside the block."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise UserError(
            f"{place} cannot be written ({error.strerror}): make room or give another place, and run again to go on"
        ) from None
