"""Atomic writing of files, under a staging name first and renamed last; the size up to which media are read."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Larger media files are neither hashed nor decoded, unless the user asks for it.
LARGEST_FILE_BYTES = 20_000_000_000


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
