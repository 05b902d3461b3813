"""Atomic writing of files, under a staging name first and renamed last; locks; the size up to which media are read."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import filelock

from pipeline.errors import UserError, reporting_full_disks

# Larger media files are neither hashed nor decoded, unless the user asks for it.
LARGEST_FILE_BYTES = 20_000_000_000


@contextmanager
def staged(path: Path) -> Iterator[Path]:
    """Yield the path to write to; it is renamed to `path` unless the block raises. Missing folders are created.

    Raises `UserError` with `path` if the disk is full or read-only.
    """
    with reporting_full_disks(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        staging = path.with_name(path.name + ".partial")
        yield staging
        staging.replace(path)


def replace_text(path: Path, text: str) -> None:
    """Write `text` to `path` in UTF-8, replacing the previous content."""
    with staged(path) as staging:
        staging.write_text(text, encoding="utf-8")


def hash_file(path: Path) -> str:
    """Return the SHA-256 of the file's bytes; a file that did not change since the last call is not read again."""
    facts = path.stat()
    return _hash_file(path.resolve(), facts.st_ino, facts.st_size, facts.st_mtime_ns)


@lru_cache(maxsize=1024)
def _hash_file(path: Path, *_version: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def locked(folder: Path, used_by: str) -> Iterator[None]:
    """Hold the lock of `folder`, the file `.lock` in it, for the block; the lock is released when its owner dies.

    The folder is created if it is missing. Raises `UserError` that says what the folder is `used_by` if another process
    holds the lock.
    """
    with reporting_full_disks(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            raise UserError(f"{folder} is in use by {used_by} (it holds {lock.lock_file}): wait for it") from None
    try:
        yield
    finally:
        lock.release()
