"""Interfaces: a decoder of media files, and a library that decodes frames on behalf of the PyAV decoder."""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Protocol

import numpy as np

from pipeline.errors import UserError
from pipeline.media.timeline import DecodeRequest, Media


class DecoderLoadError(UserError):
    """A decoder does not load on this machine: the reason, and one line on how to install it."""

    def __init__(self, name: str, why: str, remedy: str) -> None:
        super().__init__(f"decoder {name} does not load: {why}: {remedy}")
        self.why, self.remedy = why, remedy


class FrameError(Exception):
    """A frame library cannot decode a file, or is not used for this kind of file: PyAV decodes its frames instead.

    The message is a predicate without its subject, the library's name: "cannot open the file".
    """


@dataclass(frozen=True)
class FrameIndex:
    """The frames of one video stream in presentation order.

    `starts`: presentation timestamps in seconds, edit lists applied, t0 not subtracted; `first_decodable`: index of the
    first frame that can be decoded. `is_only_stream`: whether the file has no other video stream, not even a cover
    image. `has_closed_gops`: whether it is certain that all groups of pictures are closed: no frame that follows a key
    frame in the file depends on a frame before that key frame. `tolerance_seconds`: the largest allowed difference
    between a timestamp of `starts` and the same frame's timestamp in the library.
    """

    stream_index: int
    is_only_stream: bool
    has_closed_gops: bool
    starts: tuple[Fraction, ...]
    first_decodable: int
    tolerance_seconds: float = 0.0005


class FrameLibrary(Protocol):
    """Decodes frames in place of PyAV, which provides the frame index and decodes the audio."""

    @property
    def name(self) -> str:
        """The decoder's key in the registry."""
        ...

    def version(self) -> str:
        """Return the versions that the decoded frames depend on."""
        ...

    def open(self, path: Path, index: FrameIndex) -> Callable[[int], np.ndarray]:
        """Return a function from a frame's position in `index` to its image, uint8 [height, width, 3], RGB, upright.

        `open` and the function raise `FrameError` if a frame cannot be decoded correctly.
        """
        ...


class Decoder(Protocol):
    """Decodes one media file to frames and a waveform.

    Its libraries are loaded when it is created, which does not count against the limits of a file.
    """

    @property
    def name(self) -> str:
        """The decoder's key in the registry."""
        ...

    def version(self, modality: str = "visual") -> str:
        """Return the versions that the decoded values of `modality` depend on, for the store's fingerprint."""
        ...

    def decode(self, path: Path, request: DecodeRequest) -> Media:
        """Return the file's media. A file that cannot be read raises no error: its tracks are `failed`."""
        ...
