"""Where a feature store is: a folder, or a prefix in a bucket of an object store. It does not know what a store holds.

All that differs between the two stands in `folder` and `bucket`; the rest of mavqa has a store's address, a text.
"""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import zarr

from pipeline.errors import UserError


class StoreLocation(Protocol):
    """One place that a store may be in."""

    @property
    def address(self) -> str:
        """What names this place in every process: an absolute path, or a URL."""
        ...

    def zarr_store(self) -> Any:
        """Return zarr's own store of this place."""
        ...

    def names(self, path: str = "") -> set[str]:
        """Return the names directly under `path`, the empty set where there is nothing."""
        ...

    def bytes_stored(self, path: str) -> int:
        """Return the bytes of everything under `path`."""
        ...

    def hold(self, break_lock: bool) -> AbstractContextManager[None]:
        """Be the one writer while the block runs, and clear what a killed one left half-written.

        Raises `UserError` where another writer is at work; `break_lock` takes over a lock that outlived its writer.
        """
        ...


def locate(store: str | Path) -> StoreLocation:
    """Return the place that a path or a URL (`s3://bucket/name.zarr`) names.

    Raises `UserError` for a URL of another kind, and where the client of object stores is not installed.
    """
    text = str(store)
    if "://" not in text:
        from pipeline.store.folder import Folder

        return Folder(Path(text))
    if not text.startswith("s3://") or not all(text.removeprefix("s3://").rstrip("/").partition("/")):
        raise UserError(f"store {text}: give a path or a URL such as s3://bucket/name.zarr")
    if "@" in text.removeprefix("s3://").partition("/")[0]:
        raise UserError(
            "the store's URL holds credentials: give them by AWS's variables or files, and s3://bucket/name"
        )
    from pipeline.store.bucket import Bucket

    return Bucket(text.rstrip("/"))


def has_store(location: StoreLocation) -> bool:
    """Return whether a whole store is there; one whose making was killed before its format was written is none yet."""
    if "zarr.json" not in location.names():
        return False
    try:
        root = zarr.open_group(location.zarr_store(), mode="r", use_consolidated=False)
    except (FileNotFoundError, ValueError):
        return True
    return "mavqa_format" in root.attrs
