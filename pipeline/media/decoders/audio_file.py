"""Audio files that FFmpeg cannot read, decoded by libsndfile at their own sample rate."""

from fractions import Fraction
from importlib.metadata import version
from pathlib import Path

from pipeline.media.timeline import COVERAGE, DecodeRequest, Media, Track, WaveformAssembler
from pipeline.store.schema import State

ABSENT = Track(State.ABSENT)


def reader_version() -> str:
    """Return the version of soundfile, which includes libsndfile."""
    return f"soundfile {version('soundfile')}"


def read_audio_file(path: Path, request: DecodeRequest, problem: str) -> Media | None:
    """Return the file's audio, mono and at most `request.seconds` long; None if libsndfile cannot read it.

    The reason of the track contains `problem`, what FFmpeg reported. libsndfile is not told the name, because it
    believes suffixes, and does not read MP3: it takes other data for MP3 and returns noise; FFmpeg reads all MP3 files.
    """
    import soundfile

    try:
        with path.open("rb") as stream, soundfile.SoundFile(stream) as file:
            if file.format == "MP3":
                return None
            if not request.wants_audio:
                return Media(visual=ABSENT, audio=Track(State.PENDING))
            rate = file.samplerate
            samples = file.read(rate * request.seconds, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError:
        return None
    assembler = WaveformAssembler(Fraction(0), request.seconds, rate)
    assembler.add(Fraction(0), samples.mean(axis=1))
    waveform, steps, coverage = assembler.finish()
    if coverage < COVERAGE:
        return None
    audio = Track(State.COMPLETE, steps, f"audio read by libsndfile; FFmpeg: {problem}")
    return Media(visual=ABSENT, audio=audio, waveform=waveform, sample_rate_hz=rate)
