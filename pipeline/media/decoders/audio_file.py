"""Audio-only files (wav, flac, ogg, mp3 ...), decoded by librosa at their own sample rate.

The file is opened by soundfile before it is passed to librosa: librosa's own fallback for files that soundfile cannot
open would start any decoder program that is installed on the machine.
"""

from fractions import Fraction
from importlib.metadata import version
from pathlib import Path

import numpy as np

from pipeline.media.timeline import AUDIO_COVERAGE, DecodeRequest, Media, Track, WaveformAssembler
from pipeline.store.schema import State

ABSENT = Track(State.ABSENT)


class AudioFileDecoder:
    """Decode audio-only files with librosa and soundfile."""

    name = "librosa"

    def version(self) -> str:
        """Return the versions of librosa and soundfile."""
        return f"librosa {version('librosa')} (soundfile {version('soundfile')})"

    def prepare(self, path: Path) -> None:
        """Import librosa, which takes seconds."""
        import librosa.core.audio  # noqa: F401

    def has_video(self, path: Path) -> bool:
        """Return False: this decoder is used only for files without video."""
        return False

    def decode(self, path: Path, request: DecodeRequest) -> Media:
        """Return the file's audio, mono and at most `request.seconds` long; the visual track is absent."""
        if not request.wants_audio:
            return Media(visual=ABSENT, audio=Track(State.PENDING))
        import librosa
        import soundfile

        try:
            with soundfile.SoundFile(path) as file:
                channels, rate = librosa.load(file, sr=None, mono=False, duration=request.seconds)
        except soundfile.LibsndfileError as error:
            kind = path.suffix.lower().removeprefix(".")
            reason = f"cannot be read as {kind} audio: corrupt, or not a {kind} file (libsndfile error {error.code})"
            return Media(visual=ABSENT, audio=Track(State.FAILED, reason=reason))
        # The mean over channels, not librosa.to_mono: that raises an error if a single sample is not finite.
        return _place(np.atleast_2d(channels).mean(axis=0), int(rate), request.seconds)


def _place(samples: np.ndarray, rate: int, seconds: int) -> Media:
    assembler = WaveformAssembler(Fraction(0), seconds, rate)
    assembler.add(Fraction(0), samples)
    waveform, steps, coverage = assembler.finish()
    if coverage < AUDIO_COVERAGE:
        reason = f"only {coverage:.0%} of the samples are finite" if steps else "the file contains no audio"
        return Media(visual=ABSENT, audio=Track(State.FAILED, reason=reason))
    return Media(visual=ABSENT, audio=Track(State.COMPLETE, steps), waveform=waveform, sample_rate_hz=rate)
