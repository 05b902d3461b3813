"""Media files to frames and waveform on the shared time axis: the decoders' protocol and their table.

One file here is one decoder. Nothing heavy is loaded before `open_decoder` is called.
"""

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Protocol

from pipeline.failure import UserError
from pipeline.store.schema import State
from pipeline.timeline import DecodeRequest, Media, Track

DECODERS = {"pyav": "pipeline.decode.pyav:PyAVDecoder"}

AUDIO_DECODER = "pipeline.decode.audio_file:AudioFileDecoder"
AUDIO_SUFFIXES = frozenset({".aif", ".aiff", ".au", ".flac", ".mp3", ".oga", ".ogg", ".opus", ".w64", ".wav"})


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
        return (self.audio if is_audio else self.container).decode(path, request)


def fail_media(reason: str) -> Media:
    """Return the media of a file of which nothing can be had."""
    failed = Track(State.FAILED, reason=reason)
    return Media(visual=failed, audio=failed)


def open_decoder(name: str) -> Decoder:
    """Return the decoder `name` of the table, or of an own "module:Class"; the latter gets every file.

    Raises UserError for a name that is neither.
    """
    if ":" in name:
        return _load(name)
    if name not in DECODERS:
        raise UserError(f"unknown decoder {name!r}: choose one of {', '.join(sorted(DECODERS))}")
    return DecoderBySuffix(container=_load(DECODERS[name]), audio=_load(AUDIO_DECODER))


def _has_audio_suffix(path: Path) -> bool:
    return path.suffix.lower() in AUDIO_SUFFIXES


def _find_unreadable(path: Path) -> str:
    """Return why there is nothing to decode, or an empty text."""
    if not path.is_file():
        return "there is no such file"
    return "" if path.stat().st_size else "the file is empty (0 bytes)"


def _load(entry: str) -> Decoder:
    module, _, name = entry.partition(":")
    decoder: Decoder = getattr(import_module(module), name)()
    return decoder
