"""What PyAV's decoded frames become: pictures at every size asked for, one mono waveform. It opens and reads no file.

The display rotation is applied here: FFmpeg's libraries only report it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, partial
from typing import cast

import av
import numpy as np

from pipeline.media.decoders.pyav.container import Stream
from pipeline.media.image import fit, orient
from pipeline.media.timeline import (
    AUDIO_COVERAGE,
    DecodeRequest,
    FrameSelector,
    FrameSize,
    ReleasedSelector,
    Track,
    WaveformAssembler,
    bridge_losses,
    count_steps,
)
from pipeline.store.schema import State

SAMPLE_TYPES: dict[str, type[np.generic]] = {
    "u8": np.uint8,
    "s16": np.int16,
    "s32": np.int32,
    "s64": np.int64,
    "flt": np.float32,
    "dbl": np.float64,
}

AVFrame = av.VideoFrame | av.AudioFrame


@dataclass(frozen=True)
class Drawn:
    """A picture that a library draws when it is asked for: its stored size, and how to get it upright."""

    width: int
    height: int
    take: Callable[[], np.ndarray]


@dataclass(frozen=True)
class Event:
    """One frame of one stream, or, with `error` instead of `frame`, one packet that could not be decoded."""

    kind: str
    start: Fraction | None
    duration: Fraction
    frame: AVFrame | Drawn | None = None
    error: str = ""


@dataclass
class _Ledger:
    """What became of one stream: how much was decoded, how much of that guessed, how much lost; the words."""

    noun: str
    decoded: int = 0
    guessed: int = 0
    lost: int = 0
    error: str = ""
    start: Fraction = Fraction(0)
    duration: Fraction = Fraction(0)

    @property
    def end(self) -> Fraction:
        return self.start + self.duration

    def enter(self, event: Event) -> Fraction:
        """Count the event and return its start: its own timestamp, else the end of the one before it."""
        if event.error:
            self.lost += 1
            self.error = self.error or event.error
        else:
            self.decoded += 1
        self.start = self.end if event.start is None else event.start
        self.duration = event.duration
        return self.start

    def complete(self, steps: int, note: str) -> Track:
        return Track(State.COMPLETE, steps, self._join(note))

    def fail(self, why: str, note: str = "") -> Track:
        return Track(State.FAILED, reason="; ".join(filter(None, [why, self._join(note)])))

    def _join(self, note: str) -> str:
        of = self.lost + self.decoded
        losses = f"{self.lost} of {of} packets of the {self.noun} cannot be decoded: {self.error}" if self.lost else ""
        guesses = f"the decoder guessed parts of {self.guessed} damaged {self.noun}s" if self.guessed else ""
        return "; ".join(filter(None, [losses, guesses, note]))


def _settle_unread(stream: Stream | None, is_wanted: bool, noun: str) -> Track | None:
    """Return the track of a stream that need not or cannot be decoded, None for one to decode."""
    if stream is None:
        return Track(State.ABSENT)
    if not is_wanted:
        return Track(State.PENDING)
    if stream.codec_context is None:
        return Track(State.FAILED, reason=f"FFmpeg has no decoder for the codec of the {noun}")
    return None


class FrameCollector:
    """Gathers the chosen pictures of the video stream, upright and at every requested size.

    Whether the modality is there is decided by one frame a second, whatever else is asked for.
    """

    def __init__(self, stream: Stream | None, request: DecodeRequest, t0: Fraction) -> None:
        self._request = request
        self._is_counted = request.padding == "released"
        self._ledger = _Ledger("picture", start=t0)
        self._settled = _settle_unread(stream, bool(request.frame_sizes), self._ledger.noun)
        rates = sorted({1, *(size.per_second for size in request.frame_sizes)})
        self._selectors: dict[int, FrameSelector | ReleasedSelector] = {
            rate: FrameSelector(t0, request.seconds, rate) for rate in rates
        }
        self._t0 = self._end = t0
        if self._settled is None and self._is_counted:
            frame_rate = stream.average_rate or stream.guessed_rate if stream is not None else None
            if frame_rate:
                self._selectors = {1: ReleasedSelector(frame_rate, request.seconds)}
            else:
                self._settled = Track(
                    State.FAILED, reason="the file gives no frame rate to count by (padding=released)"
                )

    @property
    def is_done(self) -> bool:
        """True once what follows cannot change the outcome."""
        return self._settled is not None or all(selector.is_done for selector in self._selectors.values())

    def feed(self, event: Event) -> None:
        """Take the next frame, or the next loss."""
        start = self._ledger.enter(event)
        frame = event.frame
        if not isinstance(frame, av.VideoFrame | Drawn):
            for selector in self._selectors.values():
                selector.lose(start, event.duration)
            return
        if frame.width * frame.height > self._request.max_pixels:
            size = f"{frame.width}x{frame.height}"
            self._settled = self._ledger.fail(f"a picture of {size} has more than {self._request.max_pixels} pixels")
            return
        if self._is_counted:
            self._end = max(self._end, self._ledger.end)
        # Looked at or not: those after it, up to the next that starts afresh, are made of it and bear no mark.
        self._ledger.guessed += isinstance(frame, av.VideoFrame) and frame.is_corrupt
        picture = cache(frame.take if isinstance(frame, Drawn) else partial(_upright, frame))
        for rate, selector in self._selectors.items():
            selector.feed(start, event.duration, partial(self._fit, picture, rate))

    def finish(self, note: str) -> tuple[dict[FrameSize, np.ndarray], Track]:
        """Return the pictures by size and the track; `note` is what befell the file."""
        if self._settled is not None:
            return {}, self._settled
        note = "" if self.is_done else note
        rows = {rate: selector.finish() for rate, selector in self._selectors.items()}
        lacking = [second for second, row in enumerate(rows[1]) if row is None]
        if len(lacking) == len(rows[1]):
            return {}, self._ledger.fail("no picture could be decoded", note)
        if lacking:
            why = f"{len(lacking)} of {len(rows[1])} seconds, from {lacking[0]} on, have no picture"
            return {}, self._ledger.fail(why, note)
        steps = count_steps(float(self._end - self._t0), len(rows[1])) if self._is_counted else len(rows[1])
        frames = {size: _stack(rows[size.per_second], size) for size in self._request.frame_sizes}
        return frames, self._ledger.complete(steps, note)

    def _fit(self, picture: Callable[[], np.ndarray], rate: int) -> dict[FrameSize, np.ndarray]:
        return {size: fit(picture(), size) for size in self._request.frame_sizes if size.per_second == rate}


class AudioCollector:
    """Gathers the sound of the audio stream as one mono waveform at the stream's own rate."""

    def __init__(self, stream: Stream | None, request: DecodeRequest, t0: Fraction) -> None:
        self._ledger = _Ledger("sound", start=t0)
        self._settled = _settle_unread(stream, request.wants_audio, self._ledger.noun)
        self._rate = stream.sample_rate if isinstance(stream, av.AudioStream) and self._settled is None else 0
        self._t0, self._seconds = t0, request.seconds
        self._assembler: WaveformAssembler | None = None

    @property
    def is_done(self) -> bool:
        """True once what follows cannot change the outcome."""
        return self._settled is not None or (self._assembler is not None and self._assembler.is_done)

    def feed(self, event: Event) -> None:
        """Take the next block of samples, or the next loss."""
        start = self._ledger.enter(event)
        frame = event.frame
        if self._assembler is None:
            self._rate = frame.sample_rate if isinstance(frame, av.AudioFrame) else self._rate
            self._assembler = WaveformAssembler(self._t0, self._seconds, self._rate)
        if isinstance(frame, av.AudioFrame) and frame.sample_rate == self._rate:
            self._assembler.feed(start, _to_mono(frame))
        else:
            self._assembler.lose(start, event.duration)

    def finish(self, note: str) -> tuple[np.ndarray, int, Track]:
        """Return the waveform, its rate and the track; `note` is what befell the file."""
        nothing = np.zeros(0, np.float32)
        if self._settled is not None:
            return nothing, 0, self._settled
        note = "" if self.is_done else note
        waveform, steps, coverage = self._assembler.finish() if self._assembler else (nothing, 0, 0.0)
        if not steps:
            return nothing, 0, self._ledger.fail("no sound could be decoded", note)
        if coverage < AUDIO_COVERAGE:
            return nothing, 0, self._ledger.fail(f"only {coverage:.0%} of the sound could be decoded", note)
        return waveform, self._rate, self._ledger.complete(steps, note)


def _upright(frame: av.VideoFrame) -> np.ndarray:
    """Return the picture of a frame as it is shown, uint8 [height, width, 3], RGB."""
    picture = frame.to_ndarray(format="rgb24", threads=1)
    matrix = display_matrix(frame)
    return picture if matrix is None else orient(picture, matrix)


def display_matrix(frame: av.VideoFrame) -> list[int] | None:
    """Return the 3 x 3 matrix that says how the picture is turned for display, row by row; None for not at all."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    return None if matrix is None else np.frombuffer(cast(bytes, matrix), np.int32).tolist()


def _stack(rows: Sequence[dict[FrameSize, np.ndarray] | None], size: FrameSize) -> np.ndarray:
    """Return uint8 [row, height, width, 3] of rows that have a picture in every second."""
    return np.stack([row[size] for row in bridge_losses(rows, size.per_second) if row is not None])


def _to_mono(frame: av.AudioFrame) -> np.ndarray:
    """Return float32 [sample], the mean over the channels, full scale at 1.

    The planes are read here: `frame.to_ndarray` reads past the last plane of 7.1 sound (PyAV 18.1).
    """
    channels, planes, name = frame.layout.nb_channels, frame.planes, frame.format.name
    dtype = SAMPLE_TYPES[name.removesuffix("p")]
    if name.endswith("p"):
        mono = np.zeros(frame.samples)
        for plane in planes[:channels]:
            mono += np.frombuffer(memoryview(plane), dtype, frame.samples)
    else:
        samples = np.frombuffer(memoryview(planes[0]), dtype, frame.samples * channels)
        mono = samples.reshape(-1, channels).sum(axis=1, dtype=np.float64)
    mono /= channels
    if dtype is np.uint8:
        mono = (mono - 128) / 128
    elif issubclass(dtype, np.integer):
        mono = mono / -float(np.iinfo(dtype).min)
    return mono.astype(np.float32)
