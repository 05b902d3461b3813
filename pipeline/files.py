"""Atomic writing of files, under a staging name first and renamed last; names and sizes of files that are accepted."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import UserError

# Larger media files are neither hashed nor decoded, unless the user asks for it.
LARGEST_FILE_BYTES = 20_000_000_000
# File systems allow 255 bytes; names get suffixes such as `-seed0` or `.jsonl.partial`.
LONGEST_NAME_BYTES = 200
_ODD_CHARACTERS = re.compile(r"[/\\\x00-\x1f\x7f-\x9f\ud800-\udfff]")


@contextmanager
def staged(path: Path) -> Iterator[Path]:
    """Yield the path to write to; it is renamed to `path` unless the block raises. Missing folders are created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(path.name + ".partial")
    yield staging
    staging.replace(path)


def replace_text(path: Path, text: str) -> None:
    """Write `text` to `path` in UTF-8, replacing the previous content."""
    with staged(path) as staging:
        staging.write_text(text, encoding="utf-8")


def check_file_name(kind: str, name: str, fix: str) -> str:
    """Return `name`, which becomes a file or folder, or a part of its name: one that cannot lead out of its folder.

    Raises `UserError` if it is longer than `LONGEST_NAME_BYTES` or not a plain name (`check_plain_name`).
    """
    check_plain_name(kind, name, fix)
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
