"""Atomic writing of files, under a staging name first and renamed last; locks; names and sizes that are accepted."""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import filelock

from pipeline.errors import UserError, describe_error, reporting_full_disks

# Larger media files are neither hashed nor decoded, unless the user asks for it.
LARGEST_FILE_BYTES = 20_000_000_000
# File systems allow 255 bytes; names get suffixes such as `-seed0` or `.jsonl.partial`.
LONGEST_NAME_BYTES = 200
_ODD_CHARACTERS = re.compile(r"[/\\\x00-\x1f\x7f-\x9f\ud800-\udfff]")


@contextmanager
def staged(path: Path) -> Iterator[Path]:
    """Yield the path to write to; it is renamed to `path` unless the block raises. Missing folders are created.

    Raises `UserError` with `path` if the disk is full or read-only.
    """
    with reporting_full_disks(path):
        make_folder(path.parent)
        staging = path.with_name(path.name + ".partial")
        yield staging
        staging.replace(path)


def make_folder(folder: Path) -> None:
    """Create `folder` and its parents if they are missing. Raises `UserError` if they cannot be created."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileNotFoundError, FileExistsError, NotADirectoryError) as error:
        raise UserError(f"folder {folder} cannot be created ({describe_error(error)}): pass another folder") from None


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
        make_folder(folder)
        lock = filelock.FileLock(folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            raise UserError(f"{folder} is in use by {used_by} (it holds {lock.lock_file}): wait for it") from None
    try:
        yield
    finally:
        lock.release()


def check_file_name(kind: str, name: str, fix: str) -> str:
    """Return `name`, which becomes a file or folder, or a part of its name: one that cannot lead out of its folder.

    Raises `UserError` if it is longer than `LONGEST_NAME_BYTES`, not a plain name (`check_plain_name`), or hidden or
    taken for something else: beginning with "." or "-", or with blanks around it.
    """
    check_plain_name(kind, name, fix)
    if name[0] in ".-":
        raise UserError(f"{kind} {name!r} begins with {name[0]!r}: {fix}")
    if name != name.strip():
        raise UserError(f"{kind} {name!r} has a blank at its beginning or end: {fix}")
    length = len(name.encode())
    if length > LONGEST_NAME_BYTES:
        raise UserError(f"{kind} {name[:20]!r}... has {length} bytes, more than {LONGEST_NAME_BYTES}: {fix}")
    return name


def check_plain_name(kind: str, name: str, fix: str) -> str:
    """Return `name`. Raises `UserError` with its `kind`, the cause and the `fix` unless it is a plain name.

    A plain name is not empty, "." or "..", and has no slash, backslash or control character.
    """
    if name in ("", ".", ".."):
        raise UserError(f"{kind} {name!r} is not a plain name: {fix}")
    if odd := describe_odd_character(name):
        raise UserError(f"{kind} {name!r} is not a plain name, it has {odd}: {fix}")
    return name


def describe_odd_character(name: str) -> str:
    """Return the first character of `name` that a plain name cannot have, such as "a slash"; "" if there is none."""
    found = _ODD_CHARACTERS.search(name)
    if found is None:
        return ""
    character = found[0]
    if "\ud800" <= character <= "\udfff":
        # Python decodes the byte 0xNN of a name that is not UTF-8 to U+DCNN.
        return f"the byte 0x{ord(character) & 0xFF:02x}, which is not UTF-8,"
    return {"/": "a slash", "\\": "a backslash"}.get(character, f"the control character U+{ord(character):04X}")
