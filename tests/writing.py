"""A store that a test writes by itself."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.store.writer import StoreWriter


@contextmanager
def writing(path: str | Path, seconds: int, break_lock: bool = False) -> Iterator[StoreWriter]:
    """Yield the writer of the store at `path`, which is created if it is missing."""
    with StoreWriter(path, "test", break_lock) as writer:
        writer.create(seconds)
        yield writer
