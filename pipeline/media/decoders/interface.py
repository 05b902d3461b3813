"""What a decoder is, and a library that draws pictures for PyAV's."""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Protocol

import numpy as np

from pipeline.errors import UserError
from pipeline.media.timeline import DecodeRequest, Media


class DecoderLoadError(UserError):
    """A decoder that does not load on this machine: why not, and the one line that gets it."""

    def __init__(self, name: str, why: str, remedy: str) -> None:
        super().__init__(f"decoder {name} does not load: {why}: {remedy}")
        self.why, self.remedy = why, remedy


class FrameError(Exception):
    """Pictures that a library is not given, or does not give as the file holds them; the words follow its name."""


@dataclass(frozen=True)
class FrameIndex:
    """The pictures of one video stream in the order in which they are shown.

    `starts`: their presentation times in seconds, edit lists applied, t0 not; `first` is the number of the first that
    can be decoded. `is_only`: whether the file has no other video stream, a cover included. `is_closed`: whether it is
    sure that no picture needs one from before a key frame that stands before it.
    """

    stream_index: int
    is_only: bool
    is_closed: bool
    starts: tuple[Fraction, ...]
    first: int
    tolerance_seconds: float = 0.0005


class FrameLibrary(Protocol):
    """What draws pictures in the place of PyAV, which tells it which there are and decodes the sound."""

    @property
    def name(self) -> str:
        """The decoder's key in the table."""
        ...

    def version(self) -> str:
        """Return the versions that the decoded pictures depend on."""
        ...

    def open(self, path: Path, index: FrameIndex) -> Callable[[int], np.ndarray]:
        """Return what gives a picture by its number in `index`, uint8 [height, width, 3], RGB, turned upright.

        It, and what it returns, raise FrameError where a picture cannot be had.
        """
        ...


class Decoder(Protocol):
    """What turns one media file into frames and waveform."""

    @property
    def name(self) -> str:
        """The decoder's key in the table."""
        ...

    def version(self) -> str:
        """Return the versions that the decoded numbers depend on, for the store's fingerprint."""
        ...

    def prepare(self, path: Path) -> None:
        """Load the libraries that this file needs: what that costs is not the file's fault."""
        ...

    def has_video(self, path: Path) -> bool:
        """Say whether the file has a video stream (the cover picture of an album is none)."""
        ...

    def decode(self, path: Path, request: DecodeRequest) -> Media:
        """Return the file's media. A file that cannot be read is not an error: its tracks are `failed`."""
        ...
