"""Audio-only files (wav, flac, ogg, mp3 ...) through librosa, at their own sample rate. It knows no pictures.

The file is handed to librosa already opened by soundfile: librosa's own fallback for what soundfile cannot
open would start whatever decoder program the machine happens to have.
"""

from fractions import Fraction
from importlib.metadata import version
from pathlib import Path

import numpy as np

from pipeline.media.timeline import AUDIO_COVERAGE, DecodeRequest, Media, Track, WaveformAssembler
from pipeline.store.schema import State

ABSENT = Track(State.ABSENT)


class AudioFileDecoder:
    """Read audio-only files with librosa and soundfile."""

    name = "librosa"

    def version(self) -> str:
        """Return the versions of librosa and soundfile."""
        return f"librosa {version('librosa')} (soundfile {version('soundfile')})"

    def prepare(self, path: Path) -> None:
        """Import librosa, which takes seconds."""
        import librosa.core.audio  # noqa: F401

    def has_video(self, path: Path) -> bool:
        """Return False: files with pictures are not for this decoder."""
        return False

    def decode(self, path: Path, request: DecodeRequest) -> Media:
        """Return the file's sound, mono and at most `request.seconds` long; the picture is absent."""
        if not request.wants_audio:
            return Media(visual=ABSENT, audio=Track(State.PENDING))
        import librosa
        import soundfile

        try:
            with soundfile.SoundFile(path) as sound:
                channels, rate = librosa.load(sound, sr=None, mono=False, duration=request.seconds)
        except soundfile.LibsndfileError as error:
            kind = path.suffix.lower().removeprefix(".")
            reason = f"cannot be read as {kind} sound: damaged, or no {kind} at all (error {error.code})"
            return Media(visual=ABSENT, audio=Track(State.FAILED, reason=reason))
        # Not by librosa's to_mono, which refuses a file for one sample that is no number.
        return _place(np.atleast_2d(channels).mean(axis=0), int(rate), request.seconds)


def _place(samples: np.ndarray, rate: int, seconds: int) -> Media:
    assembler = WaveformAssembler(Fraction(0), seconds, rate)
    assembler.feed(Fraction(0), samples)
    waveform, steps, coverage = assembler.finish()
    if coverage < AUDIO_COVERAGE:
        reason = f"only {coverage:.0%} of the samples are numbers" if steps else "the file holds no sound"
        return Media(visual=ABSENT, audio=Track(State.FAILED, reason=reason))
    return Media(visual=ABSENT, audio=Track(State.COMPLETE, steps), waveform=waveform, sample_rate_hz=rate)
