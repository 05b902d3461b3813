"""Media files to frames and waveform on the shared time axis: the decoders' protocol and their table.

One file here is one decoder, or one library that draws pictures for PyAV's. Nothing heavy is loaded before
`open_decoder` is called.
"""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np

from pipeline.errors import UserError
from pipeline.media.timeline import DecodeRequest, Media, Track
from pipeline.store.schema import State

PYAV = "pipeline.media.decoders.pyav:PyAVDecoder"
# Names of decoders; all but the first are libraries that draw pictures.
DECODERS = {
    "pyav": PYAV,
    "torchcodec": "pipeline.media.decoders.torchcodec:TorchCodec",
    "torchcodec-cuda": "pipeline.media.decoders.torchcodec:on_cuda",
    "decord": "pipeline.media.decoders.decord:Decord",
}

# What recorders use. Other rates are those of broken headers, which ask for any amount of memory.
SAMPLE_RATES_HZ = (1_000, 192_000)
AUDIO_DECODER = "pipeline.media.decoders.audio_file:AudioFileDecoder"
AUDIO_SUFFIXES = frozenset({".aif", ".aiff", ".au", ".flac", ".mp3", ".oga", ".ogg", ".opus", ".w64", ".wav"})


class DecoderLoadError(UserError):
    """A decoder that does not load on this machine: why not, and the one line that gets it."""

    def __init__(self, name: str, why: str, remedy: str) -> None:
        super().__init__(f"decoder {name} does not load: {why}: {remedy}")
        self.why, self.remedy = why, remedy


class PictureError(Exception):
    """Pictures that a library is not given, or does not give as the file holds them; the words follow its name."""


@dataclass(frozen=True)
class PictureIndex:
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


class PictureLibrary(Protocol):
    """What draws pictures in the place of PyAV, which tells it which there are and decodes the sound."""

    @property
    def name(self) -> str:
        """The decoder's key in the table."""
        ...

    def version(self) -> str:
        """Return the versions that the decoded pictures depend on."""
        ...

    def open(self, path: Path, index: PictureIndex) -> Callable[[int], np.ndarray]:
        """Return what gives a picture by its number in `index`, uint8 [height, width, 3], RGB, turned upright.

        It, and what it returns, raise PictureError where a picture cannot be had.
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

    def has_pictures(self, path: Path) -> bool:
        """Say whether the file has a video stream (the cover picture of an album is none)."""
        ...

    def decode(self, path: Path, request: DecodeRequest) -> Media:
        """Return the file's media. A file that cannot be read is not an error: its tracks are `failed`."""
        ...


@dataclass(frozen=True)
class DecoderBySuffix:
    """Send audio-only files to `audio`, by their suffix, and everything that has pictures to `container`."""

    container: Decoder
    audio: Decoder

    @property
    def name(self) -> str:
        """The name of the decoder of containers: the one that users choose."""
        return self.container.name

    def version(self) -> str:
        """Return the versions of both decoders."""
        return f"{self.container.version()}; {self.audio.version()}"

    def prepare(self, path: Path) -> None:
        """Load what the file's suffix asks for."""
        (self.audio if _has_audio_suffix(path) else self.container).prepare(path)

    def has_pictures(self, path: Path) -> bool:
        """Say whether the file has a video stream."""
        return self.container.has_pictures(path)

    def decode(self, path: Path, request: DecodeRequest) -> Media:
        """Return the file's media, decoded by the one of the two that suits the file."""
        unreadable = _find_unreadable(path)
        if unreadable:
            return fail_media(unreadable)
        is_audio = _has_audio_suffix(path) and not self.container.has_pictures(path)
        return _judge((self.audio if is_audio else self.container).decode(path, request))


def _judge(media: Media) -> Media:
    """Return what can be used of the media: a file that holds nothing is broken, not one without a modality."""
    if media.visual.state is media.audio.state is State.ABSENT:
        return fail_media("the file holds neither pictures nor sound")
    lowest, highest = SAMPLE_RATES_HZ
    if media.audio.state is State.COMPLETE and not lowest <= media.sample_rate_hz <= highest:
        reason = f"sound at {media.sample_rate_hz:,} Hz: rates from {lowest:,} to {highest:,} Hz are heard"
        return Media(media.visual, Track(State.FAILED, reason=reason), media.frames)
    return media


def fail_media(reason: str) -> Media:
    """Return the media of a file of which nothing can be had."""
    failed = Track(State.FAILED, reason=reason)
    return Media(visual=failed, audio=failed)


def open_decoder(name: str) -> Decoder:
    """Return the decoder `name` of the table, or of an own "module:Class"; the latter gets every file.

    Raises UserError for a name that is neither, DecoderLoadError for one that does not load here.
    """
    if ":" in name:
        return cast(Decoder, _load(name))
    if name not in DECODERS:
        raise UserError(f"unknown decoder {name!r}: choose one of {', '.join(sorted(DECODERS))}")
    library = {} if DECODERS[name] == PYAV else {"library": _load(DECODERS[name])}
    return DecoderBySuffix(container=_load(PYAV, **library), audio=_load(AUDIO_DECODER))


def choose_decoder() -> tuple[str, str]:
    """Return the decoder of a new store where none is asked for, and why it is that one, in words.

    PyAV always loads. `benchmarks/decoders.py` found the same pictures and fewer seconds than with torchcodec on clips
    of datasets; decord must be asked for by its name.
    """
    return "pyav", "the best that loads: the fastest on clips of datasets, and the same on every machine"


def _has_audio_suffix(path: Path) -> bool:
    return path.suffix.lower() in AUDIO_SUFFIXES


def _find_unreadable(path: Path) -> str:
    """Return why there is nothing to decode, or an empty text."""
    if not path.is_file():
        return "there is no such file"
    return "" if path.stat().st_size else "the file is empty (0 bytes)"


def _load(entry: str, **options: Any) -> Any:
    module, _, name = entry.partition(":")
    return getattr(import_module(module), name)(**options)
