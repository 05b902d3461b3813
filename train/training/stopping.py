"""SIGTERM during a training: it ends where nothing is lost.

Clusters and schedulers send it before they end a job, usually half a minute before SIGKILL.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from pipeline.errors import Stopped


class StopSignal:
    """Raise `Stopped` when SIGTERM arrives: at once, or at the end of a block of `deferred`.

    `is_set`: whether it has arrived. Listens inside `with`, in the main thread only: Python allows no other.
    """

    def __init__(self) -> None:
        self.is_set = False
        self._is_deferred = False

    def __enter__(self) -> "StopSignal":
        self._listens = threading.current_thread() is threading.main_thread()
        if self._listens:
            self._previous = signal.signal(signal.SIGTERM, self._receive)
        return self

    def __exit__(self, *error: object) -> None:
        if self._listens:
            signal.signal(signal.SIGTERM, self._previous)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Let the block end before a signal that arrives in it is raised."""
        self._is_deferred = True
        try:
            yield
        finally:
            self._is_deferred = False
        if self.is_set:
            raise Stopped

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.is_set = True
        if not self._is_deferred:
            raise Stopped
