"""Selects the decoder of a file by its suffix and checks the decoded media."""

from dataclasses import dataclass
from pathlib import Path

from pipeline.media.decoders.interface import Decoder
from pipeline.media.timeline import DecodeRequest, Media, Track, fail_media
from pipeline.store.schema import State

# Rates that recorders use. Others come from corrupt headers and would need any amount of memory.
SAMPLE_RATES_HZ = (1_000, 192_000)
AUDIO_SUFFIXES = frozenset({".aif", ".aiff", ".au", ".flac", ".mp3", ".oga", ".ogg", ".opus", ".w64", ".wav"})


@dataclass(frozen=True)
class DecoderBySuffix:
    """Decode audio-only files, recognised by their suffix, with `audio` and all others with `container`."""

    container: Decoder
    audio: Decoder

    @property
    def name(self) -> str:
        """The name of the container decoder, which is the one that users choose."""
        return self.container.name

    def version(self) -> str:
        """Return the versions of both decoders."""
        return f"{self.container.version()}; {self.audio.version()}"

    def prepare(self, path: Path) -> None:
        """Load the libraries of the decoder for the file's suffix."""
        (self.audio if _has_audio_suffix(path) else self.container).prepare(path)

    def has_video(self, path: Path) -> bool:
        """Return whether the file has a video stream."""
        return self.container.has_video(path)

    def decode(self, path: Path, request: DecodeRequest) -> Media:
        """Return the file's media; both tracks are failed if the file has neither video nor audio.

        The audio track is also failed if its sample rate is outside `SAMPLE_RATES_HZ`.
        """
        if not path.is_file():
            return fail_media("the file does not exist")
        if not path.stat().st_size:
            return fail_media("the file is empty (0 bytes)")
        is_audio = _has_audio_suffix(path) and not self.container.has_video(path)
        return _check((self.audio if is_audio else self.container).decode(path, request))


def _check(media: Media) -> Media:
    """Return `media` with unusable tracks failed: without any stream a file is corrupt, not missing a modality."""
    if media.visual.state is media.audio.state is State.ABSENT:
        return fail_media("the file contains neither video nor audio")
    lowest, highest = SAMPLE_RATES_HZ
    if media.audio.state is State.COMPLETE and not lowest <= media.sample_rate_hz <= highest:
        reason = f"audio at {media.sample_rate_hz:,} Hz: supported sample rates are {lowest:,} to {highest:,} Hz"
        return Media(media.visual, Track(State.FAILED, reason=reason), media.frames)
    return media


def _has_audio_suffix(path: Path) -> bool:
    return path.suffix.lower() in AUDIO_SUFFIXES
