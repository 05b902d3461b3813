"""Selects the reader of a file by its content and checks the decoded media."""

from dataclasses import dataclass
from pathlib import Path

from pipeline.media.decoders.audio_file import read_audio_file, reader_version
from pipeline.media.decoders.interface import Decoder
from pipeline.media.timeline import DecodeRequest, Media, Track, fail_media
from pipeline.store.schema import State

# Rates that recorders use. Others come from corrupt headers and would need any amount of memory.
SAMPLE_RATES_HZ = (1_000, 192_000)


@dataclass(frozen=True)
class ContentDecoder:
    """Decode every file with `container`, whatever its suffix; if that finds no usable stream, libsndfile is asked."""

    container: Decoder

    @property
    def name(self) -> str:
        """The name of the container decoder, which is the one that users choose."""
        return self.container.name

    def version(self, modality: str = "visual") -> str:
        """Return the versions of what decodes `modality`: audio may come from either reader."""
        own = self.container.version(modality)
        return own if modality == "visual" else f"{own}; {reader_version()}"

    def decode(self, path: Path, request: DecodeRequest) -> Media:
        """Return the file's media; both tracks are failed if the file has neither video nor audio.

        The audio track is also failed if its sample rate is outside `SAMPLE_RATES_HZ`. Where released audio is
        requested, libsndfile is not asked: moviepy reads with FFmpeg only.
        """
        if not path.is_file():
            return fail_media("the file does not exist")
        if not path.stat().st_size:
            return fail_media("the file is empty (0 bytes)")
        media = self.container.decode(path, request)
        is_readable = media.visual.state is State.COMPLETE or media.audio.state not in (State.ABSENT, State.FAILED)
        if not is_readable and not request.wants_released_audio:
            media = read_audio_file(path, request, media.audio.reason or "no audio stream") or media
        return _check(media)


def _check(media: Media) -> Media:
    """Return `media` with unusable tracks failed: without any stream a file is corrupt, not missing a modality."""
    if media.visual.state is media.audio.state is State.ABSENT:
        return fail_media("the file contains neither video nor audio")
    lowest, highest = SAMPLE_RATES_HZ
    if media.audio.state is State.COMPLETE and not lowest <= media.sample_rate_hz <= highest:
        reason = f"audio at {media.sample_rate_hz:,} Hz: supported sample rates are {lowest:,} to {highest:,} Hz"
        return Media(media.visual, Track(State.FAILED, reason=reason), media.frames)
    return media
