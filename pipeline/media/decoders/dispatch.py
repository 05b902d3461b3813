"""Which decoder gets a file, by its suffix, and what of its media can be used."""

from dataclasses import dataclass
from pathlib import Path

from pipeline.media.decoders.interface import Decoder
from pipeline.media.timeline import DecodeRequest, Media, Track, fail_media
from pipeline.store.schema import State

# What recorders use. Other rates are those of broken headers, which ask for any amount of memory.
SAMPLE_RATES_HZ = (1_000, 192_000)
AUDIO_SUFFIXES = frozenset({".aif", ".aiff", ".au", ".flac", ".mp3", ".oga", ".ogg", ".opus", ".w64", ".wav"})


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

    def has_video(self, path: Path) -> bool:
        """Say whether the file has a video stream."""
        return self.container.has_video(path)

    def decode(self, path: Path, request: DecodeRequest) -> Media:
        """Return the file's media, decoded by the one of the two that suits the file."""
        unreadable = _find_unreadable(path)
        if unreadable:
            return fail_media(unreadable)
        is_audio = _has_audio_suffix(path) and not self.container.has_video(path)
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


def _has_audio_suffix(path: Path) -> bool:
    return path.suffix.lower() in AUDIO_SUFFIXES


def _find_unreadable(path: Path) -> str:
    """Return why there is nothing to decode, or an empty text."""
    if not path.is_file():
        return "there is no such file"
    return "" if path.stat().st_size else "the file is empty (0 bytes)"
