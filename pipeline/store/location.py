"""Where a feature store is: a folder, or a prefix in a bucket of an object store.

All differences between the two are in `folder` and `bucket`; the rest of mavqa passes the store's address, a string.
"""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import zarr

from pipeline.errors import UserError
from pipeline.store.schema import FORMAT_ATTRIBUTE


class StoreLocation(Protocol):
    """A place that may contain a store."""

    @property
    def address(self) -> str:
        """The address of this place, valid in every process: an absolute path, or a URL."""
        ...

    def zarr_store(self) -> Any:
        """Return the zarr store object of this place."""
        ...

    def names(self, path: str = "") -> set[str]:
        """Return the names directly under `path`."""
        ...

    def read(self, path: str) -> bytes:
        """Return the content of the file or object at `path`. Raises FileNotFoundError if it is missing."""
        ...

    def bytes_stored(self, path: str) -> int:
        """Return the size of everything under `path`, in bytes."""
        ...

    def hold(self, break_lock: bool) -> AbstractContextManager[bool]:
        """Hold the writer's lock during the block, and remove partial files of a killed writer; yield True.

        False, without a lock: there is a store that cannot be written.

        `break_lock` takes over a lock whose writer was killed.
        Raises `UserError` if another writer holds the lock.
        """
        ...


def locate(store: str | Path) -> StoreLocation:
    """Return the location of a path or a URL (`s3://bucket/name.zarr`).

    Raises `UserError` for a URL of another kind, and if the object-store client is not installed.
    """
    text = str(store)
    if "://" not in text:
        from pipeline.store.folder import Folder

        return Folder(Path(text))
    if not text.startswith("s3://") or not all(text.removeprefix("s3://").rstrip("/").partition("/")):
        raise UserError(f"store {text}: use a path or a URL such as s3://bucket/name.zarr")
    if "@" in text.removeprefix("s3://").partition("/")[0]:
        raise UserError(
            "the store's URL contains credentials: pass them through AWS's variables or files, and use s3://bucket/name"
        )
    from pipeline.store.bucket import Bucket

    return Bucket(text.rstrip("/"))


def has_store(location: StoreLocation) -> bool:
    """Return whether a store exists; one whose creation was killed before its format was written does not count.

    A store whose root cannot be parsed counts: opening it reports that it is corrupt.
    """
    if "zarr.json" not in location.names():
        return False
    try:
        return has_format(location)
    except ValueError:
        return True


def has_format(location: StoreLocation) -> bool:
    """Return whether there is a root group with a store format, which creation writes last.

    Raises `ValueError` if the root's metadata cannot be parsed.
    """
    try:
        root = zarr.open_group(location.zarr_store(), mode="r", use_consolidated=False)
    except FileNotFoundError:
        return False
    return FORMAT_ATTRIBUTE in root.attrs
