"""A decoder that crashes, hangs or uses too much memory, for tests of decoder processes. Not a test.

The file's name selects what it does. Each attempt appends a line with the process id to `<file>.attempts`.
"""

import os
import signal
import sys
import time

import numpy as np

from pipeline.media.timeline import Media, Track
from pipeline.store.schema import State


class FailingDecoder:
    name = "failing"

    def version(self, modality="visual"):
        return "0"

    def decode(self, path, request):
        attempts = path.parent / f"{path.name}.attempts"
        with attempts.open("a") as file:
            file.write(f"{os.getpid()}\n")
        self._request = request
        getattr(self, path.stem.replace("-", "_"))(len(attempts.read_text().splitlines()))
        done = Track(State.COMPLETE, 1)
        frames = {size: np.full((1, size.size, size.size, 3), 7, np.uint8) for size in request.frame_sizes}
        return Media(done, done, frames, np.ones(8000, np.float32), 8000)

    def fine(self, attempt):
        sys.stdout.write("noise on stdout\n")
        sys.stdout.flush()
        os.write(1, b"noise of a C library on stdout\n")
        os.write(2, b"noise on stderr\n")

    def ended(self, attempt):
        os.write(2, b"bye\n")
        os._exit(3)

    def killed(self, attempt):
        os.kill(os.getpid(), signal.SIGKILL)

    def crashed(self, attempt):
        os.kill(os.getpid(), signal.SIGSEGV)

    def killed_once(self, attempt):
        if attempt == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    def killed_differently(self, attempt):
        os.kill(os.getpid(), signal.SIGKILL if attempt == 1 else signal.SIGSEGV)

    def hanging(self, attempt):
        time.sleep(600)

    def stopped(self, attempt):
        os.kill(os.getpid(), signal.SIGSTOP)

    def spinning(self, attempt):
        while True:
            pass

    def busy(self, attempt):
        self._burn(0.3)
        start = os.times().system
        while os.times().system - start < 0.3:
            os.urandom(1_000_000)

    def slow(self, attempt):
        for _ in range(3):
            self._burn(0.8)
            self._request.on_frame(10_000_000)

    def endless(self, attempt):
        while True:
            self._burn(0.01)
            self._request.on_frame(10_000_000)

    def waiting(self, attempt):
        for _ in range(3):
            time.sleep(0.8)
            self._request.on_frame(10_000_000)

    def large(self, attempt):
        np.ones(100_000_000, np.uint8)

    def bloating(self, attempt):
        blocks = []
        while True:
            blocks.append(np.ones(4_000_000, np.float64))

    def visual_killed(self, attempt):
        if self._request.frame_sizes:
            self.killed(attempt)

    def audio_buggy(self, attempt):
        if self._request.wants_audio:
            self.buggy(attempt)

    def buggy(self, attempt):
        raise ZeroDivisionError("a bug")

    def _burn(self, seconds):
        """Use `seconds` of CPU time."""
        start = time.process_time()
        while time.process_time() - start < seconds:
            pass


class SlowToLoad(FailingDecoder):
    def __init__(self):
        self._burn(2)
