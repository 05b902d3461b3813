"""A feature store in a folder. Its lock is released when its owner dies; partial files end in `.partial`."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import filelock
import zarr

from pipeline.errors import UserError

CANNOT_LOCK = (filelock.Timeout, FileNotFoundError, FileExistsError, NotADirectoryError, PermissionError)
READ_ONLY = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})


class Folder:
    """A store in a local folder, or in one on a shared file system."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._linked_to = Path(os.path.realpath(path))

    @property
    def address(self) -> str:
        """The absolute path."""
        return str(self._path.absolute())

    def zarr_store(self) -> Any:
        """Return the zarr store of the folder: each file is written as a partial file and renamed."""
        return zarr.storage.LocalStore(self._linked_to)

    def names(self, path: str = "") -> set[str]:
        """Return the names of the files and folders directly under `path`."""
        folder = self._path / path
        return {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()

    def read(self, path: str) -> bytes:
        """Return the content of the file at `path`."""
        return (self._path / path).read_bytes()

    def bytes_stored(self, path: str) -> int:
        """Return the size of all files under `path`, in bytes, except those that an active run renames meanwhile."""
        total = 0
        for at, _, names in os.walk(self._path / path):
            for name in names:
                with suppress(FileNotFoundError):
                    total += os.stat(os.path.join(at, name)).st_size
        return total

    @contextmanager
    def hold(self, break_lock: bool) -> Iterator[bool]:
        """Lock a file next to the folder and remove partial files of killed writers; yield True.

        The folder is created if it is missing, and removed if it stays empty; links to it share one lock. False,
        without a lock: the folder contains a store that cannot be written. Raises `UserError` if another writer holds
        the lock, or if the folder or the lock file cannot be created.
        """
        lock = filelock.FileLock(self._linked_to.with_name(self._linked_to.name + ".lock"))
        try:
            self._linked_to.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except OSError as error:
            if error.errno in READ_ONLY and "zarr.json" in self.names():
                yield False
                return
            if not isinstance(error, CANNOT_LOCK):
                raise
            if not isinstance(error, filelock.Timeout) or not os.path.exists(lock.lock_file):
                raise UserError(f"store {self._path} cannot be created: pass another --store") from None
            raise UserError(
                f"store {self._path} is being written by another run (it holds {lock.lock_file}): "
                "wait for it, or stop it first"
            ) from None
        try:
            for partial in self._path.rglob("*.partial"):
                partial.unlink(missing_ok=True)
            yield True
        finally:
            # Of a store that was not created, nothing remains.
            with suppress(OSError):
                self._linked_to.rmdir()
            lock.release()
