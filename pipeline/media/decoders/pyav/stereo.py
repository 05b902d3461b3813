"""Collects the audio that the `ffmpeg` program converts to 16-bit stereo at 44.1 kHz (`-ar 44100 -ac 2`).

FFmpeg's resampler does the conversion, with its defaults: each channel of mono audio has 0.7071 of its level.
"""

import av
import numpy as np

from pipeline.media.decoders.pyav.container import describe_error
from pipeline.media.released_audio import BUFFER_SAMPLES, DECODED_HZ, RELEASED_HZ, release_audio
from pipeline.media.timeline import Track
from pipeline.store.schema import State


class StereoCollector:
    """Collects decoded audio in the order of the file, without regard to timestamps, for the released audio."""

    def __init__(self, seconds: int) -> None:
        self._limit = seconds * DECODED_HZ + BUFFER_SAMPLES
        self._blocks: list[np.ndarray] = []
        self._count = 0
        self._setup: tuple[str, str, int] | None = None
        self._resampler: av.AudioResampler | None = None
        self._error = ""

    @property
    def is_done(self) -> bool:
        """Whether later frames cannot change the result."""
        return bool(self._error) or self._count >= self._limit

    def add(self, frame: av.AudioFrame) -> None:
        """Add the next frame; its format, layout and rate may differ from those of the previous one."""
        if self.is_done:
            return
        setup = frame.format.name, frame.layout.name, frame.sample_rate
        if setup != self._setup:
            self._convert(None)
            self._setup = setup
            self._resampler = av.AudioResampler(format="s16", layout="stereo", rate=DECODED_HZ)
        self._convert(frame)

    def finish(self, track: Track, duration_microseconds: int | None) -> tuple[np.ndarray, Track]:
        """Return the released audio of `track.steps` seconds, and the track with what there is to say about it.

        float32 [sample] at 16 kHz, zeros after the end of the file; empty unless the track is complete. `track`: that
        of the audio on the time axis. `duration_microseconds`: the file's; if it states none, that of its audio.
        """
        empty = np.zeros(0, np.float32)
        if track.state is not State.COMPLETE:
            return empty, track
        self._convert(None)
        if self._error or not self._count:
            why = f"FFmpeg cannot convert the audio to stereo at 44.1 kHz: {self._error or 'no audio'}"
            return empty, Track(State.FAILED, reason=why)
        decoded = np.concatenate(self._blocks)
        duration = duration_microseconds or len(decoded) * 1_000_000 // DECODED_HZ
        waveform = release_audio(decoded, duration, track.steps)
        if len(waveform) < (track.steps - 1) * RELEASED_HZ:
            why = (
                f"the released audio ends after {len(waveform) / RELEASED_HZ:g} s, the duration that the file states, "
                f"but the file has {track.steps} s"
            )
            return empty, Track(State.FAILED, reason="; ".join(filter(None, [why, track.reason])))
        return np.pad(waveform, (0, track.steps * RELEASED_HZ - len(waveform))), track

    def _convert(self, frame: av.AudioFrame | None) -> None:
        """Append a frame, or, with None, the samples that the resampler still holds."""
        if self._resampler is None or self._error:
            return
        try:
            converted = self._resampler.resample(frame)
        except av.error.MemoryError:
            raise
        except av.FFmpegError as error:
            self._error = describe_error(error)
            return
        for block in converted:
            self._blocks.append(block.to_ndarray().reshape(-1, 2))
            self._count += block.samples
