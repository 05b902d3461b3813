"""Atomic writing of files: under a staging name first, renamed last."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
