"""Collectors of decoded frames: selected images at every requested size, and one mono waveform.

The display rotation is applied here because FFmpeg's libraries only report it.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, partial

import av
import numpy as np

from pipeline.media.decoders.pyav.container import Stream
from pipeline.media.decoders.pyav.side_data import display_matrix
from pipeline.media.decoders.pyav.stereo import StereoCollector
from pipeline.media.image import fit, orient
from pipeline.media.timeline import (
    COVERAGE,
    DecodeRequest,
    FrameSelector,
    FrameSize,
    ReleasedSelector,
    Track,
    WaveformAssembler,
    count_steps,
    fill_lost_frames,
    first_step,
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

# Share of a stream's audio from which on its sample rate is one that the waveform may have.
RATE_SHARE = 0.1

AVFrame = av.VideoFrame | av.AudioFrame

# Neighbouring frames change places in AVI, whose packets have no presentation timestamps.
ORDER_SLACK_SECONDS = Fraction(1, 10)


@dataclass(frozen=True)
class ExternalFrame:
    """A frame that another library decodes on demand: its coded size, and a function that returns it upright."""

    width: int
    height: int
    decode: Callable[[], np.ndarray]


@dataclass(frozen=True)
class Event:
    """One decoded frame of one stream, or, with `error` instead of `frame`, one packet that could not be decoded."""

    kind: str
    start: Fraction | None
    duration: Fraction
    frame: AVFrame | ExternalFrame | None = None
    error: str = ""


@dataclass
class _Record:
    """The decoding record of one stream: counts of decoded, concealed and lost frames, and the reason of the track.

    `dropped` says what was decoded but has no place on the time axis.
    """

    kind: str
    decoded: int = 0
    concealed: int = 0
    lost: int = 0
    error: str = ""
    dropped: str = ""
    start: Fraction = Fraction(0)
    duration: Fraction = Fraction(0)

    @property
    def end(self) -> Fraction:
        return self.start + self.duration

    def add(self, event: Event) -> Fraction:
        """Count the event and return its start: its timestamp, else the end of the previous event."""
        if event.error:
            self.lost += 1
            self.error = self.error or event.error
        else:
            self.decoded += 1
        self.start = self.end if event.start is None else event.start
        self.duration = event.duration
        return self.start

    def complete(self, steps: int, first: int, note: str) -> Track:
        late = f"the {self.kind} starts at second {first}" if first else ""
        return Track(State.COMPLETE, steps, "; ".join(filter(None, [late, self._reason(note)])), first)

    def fail(self, why: str, note: str = "") -> Track:
        return Track(State.FAILED, reason="; ".join(filter(None, [why, self._reason(note)])))

    def fail_empty(self, what: str, seconds: int, note: str) -> Track:
        why = f"the first {seconds} seconds have no {what}" if self.decoded else f"no {what} could be decoded"
        return self.fail(why, note)

    def _reason(self, note: str) -> str:
        lost = concealed = ""
        if self.lost:
            count = self.lost + self.decoded
            lost = f"{self.lost} of {count} {self.kind} packets could not be decoded: {self.error}"
        if self.concealed:
            concealed = f"FFmpeg concealed errors in {self.concealed} frame{'s' if self.concealed > 1 else ''}"
        return "; ".join(filter(None, [lost, concealed, self.dropped, note]))


def _track_without_decoding(stream: Stream | None, is_requested: bool, kind: str) -> Track | None:
    """Return the track of a stream that is missing, not requested or not decodable; None if it is to be decoded."""
    if stream is None:
        return Track(State.ABSENT)
    if not is_requested:
        return Track(State.PENDING)
    if stream.codec_context is None:
        return Track(State.FAILED, reason=f"FFmpeg has no decoder for the {kind} codec")
    return None


class FrameCollector:
    """Collects the selected frames of the video stream, upright and at every requested size.

    Whether the modality is complete is always decided at one frame per second, whatever rates are requested.
    """

    def __init__(self, stream: Stream | None, request: DecodeRequest, t0: Fraction) -> None:
        self._request = request
        self._is_counted = request.padding == "released"
        self._record = _Record("video", start=t0)
        self._track = _track_without_decoding(stream, bool(request.frame_sizes), self._record.kind)
        rates = sorted({1, *(size.per_second for size in request.frame_sizes)})
        self._selectors: dict[int, FrameSelector | ReleasedSelector] = {
            rate: FrameSelector(t0, request.seconds, rate) for rate in rates
        }
        self._t0 = self._end = t0
        self._latest: Fraction | None = None
        # Frames that do not start later than the ones before: they are never shown.
        self._unplaced = 0
        if self._track is None and self._is_counted:
            frame_rate = stream.average_rate or stream.guessed_rate if stream is not None else None
            if frame_rate:
                self._selectors = {1: ReleasedSelector(frame_rate, request.seconds)}
            else:
                self._track = Track(State.FAILED, reason="the file has no frame rate, which padding released requires")

    @property
    def is_done(self) -> bool:
        """Whether later events cannot change the result."""
        return self._track is not None or all(selector.is_done for selector in self._selectors.values())

    def add(self, event: Event) -> None:
        """Add the next frame or lost packet."""
        start = self._record.add(event)
        frame = event.frame
        if not isinstance(frame, av.VideoFrame | ExternalFrame):
            for selector in self._selectors.values():
                selector.add_lost(start, event.duration)
            return
        pixels = frame.width * frame.height
        if pixels > self._request.max_pixels:
            why = f"a frame of {frame.width}x{frame.height} has more than {self._request.max_pixels} pixels"
            self._track = self._record.fail(f"{why} (to allow more: --max-pixels)")
            return
        self._request.on_frame(pixels)
        if self._is_counted:
            self._end = max(self._end, self._record.end)
        elif self._latest is not None:
            self._unplaced += start == self._latest or start < self._latest - ORDER_SLACK_SECONDS
        self._latest = start if self._latest is None else max(self._latest, start)
        # Counted even if it is not selected: later frames up to the next IDR frame depend on it without being marked.
        self._record.concealed += isinstance(frame, av.VideoFrame) and frame.is_corrupt
        image = cache(frame.decode if isinstance(frame, ExternalFrame) else partial(to_image, frame))
        for rate, selector in self._selectors.items():
            selector.add(start, event.duration, partial(self._fit, image, rate))

    def finish(self, note: str, repairs: str) -> tuple[dict[FrameSize, np.ndarray], Track]:
        """Return the frames by size and the track; the arguments report how the file ends, and repairs."""
        if self._track is not None:
            return {}, self._track
        note = repairs if self.is_done else "; ".join(filter(None, [repairs, note]))
        if self._unplaced > (1 - COVERAGE) * self._record.decoded:
            why = f"{self._unplaced} of {self._record.decoded} frames have timestamps that repeat or go back"
            return {}, self._record.fail(why, note)
        if self._unplaced:
            plural = "s" if self._unplaced > 1 else ""
            self._record.dropped = f"{self._unplaced} frame{plural} out of order dropped"
        rows = {rate: selector.finish() for rate, selector in self._selectors.items()}
        shown = [second for second, row in enumerate(rows[1]) if row is not None]
        if not shown:
            return {}, self._record.fail_empty("frame", self._request.seconds, note)
        first = shown[0]
        missing = [second for second, row in enumerate(rows[1]) if row is None and second > first]
        if missing:
            why = f"{len(missing)} of {len(rows[1])} seconds have no frame (first: second {missing[0]})"
            return {}, self._record.fail(why, note)
        steps = count_steps(float(self._end - self._t0), len(rows[1])) if self._is_counted else len(rows[1])
        frames = {size: _stack(rows[size.per_second], size, first) for size in self._request.frame_sizes}
        return frames, self._record.complete(steps, first, note)

    def _fit(self, image: Callable[[], np.ndarray], rate: int) -> dict[FrameSize, np.ndarray]:
        return {size: fit(image(), size) for size in self._request.frame_sizes if size.per_second == rate}


class AudioCollector:
    """Collects the samples of the audio stream as one mono waveform, whose sample rate may change."""

    def __init__(self, stream: Stream | None, request: DecodeRequest, t0: Fraction) -> None:
        self._record = _Record("audio", start=t0)
        self._track = _track_without_decoding(stream, request.wants_audio, self._record.kind)
        self._rate = stream.sample_rate if isinstance(stream, av.AudioStream) and self._track is None else 0
        self._t0, self._seconds = t0, request.seconds
        self._is_counted = request.padding == "released"
        self._assemblers: dict[int, WaveformAssembler] = {}
        self._lost: list[tuple[Fraction, Fraction]] = []
        self._stereo = StereoCollector(request.seconds) if request.wants_released_audio else None

    @property
    def is_done(self) -> bool:
        """Whether later events cannot change the result."""
        if self._track is not None:
            return True
        return self._is_decided and (self._stereo is None or self._stereo.is_done)

    @property
    def _is_decided(self) -> bool:
        """Whether later events cannot change the waveform on the time axis."""
        return any(assembler.is_done for assembler in self._assemblers.values())

    def add(self, event: Event) -> None:
        """Add the next block of samples or lost packet."""
        if self._stereo is not None and isinstance(event.frame, av.AudioFrame):
            self._stereo.add(event.frame)
        if self._is_decided:
            return
        start = self._record.add(event)
        if isinstance(event.frame, av.AudioFrame):
            self._rate = event.frame.sample_rate
            self._assembler().add(start, _to_mono(event.frame))
            return
        self._lost.append((start, event.duration))
        if self._rate:
            self._assembler().add_lost(start, event.duration)

    def finish(self, note: str, repairs: str) -> tuple[np.ndarray, int, Track]:
        """Return the waveform, its rate and the track; the arguments report how the file ends, and repairs."""
        empty = np.zeros(0, np.float32)
        if self._track is not None:
            return empty, 0, self._track
        note = repairs if self._is_decided else "; ".join(filter(None, [repairs, note]))
        rate, assembler = self._assemble()
        waveform, steps, coverage = assembler.finish()
        if not steps:
            return empty, 0, self._record.fail_empty("audio", self._seconds, note)
        overlap_seconds = sum(each.overlap_seconds for each in dict.fromkeys([assembler, *self._assemblers.values()]))
        if overlap_seconds:
            self._record.dropped = f"{overlap_seconds:.2f} s of overlapping audio dropped"
        if coverage < COVERAGE:
            return empty, 0, self._record.fail(f"only {coverage:.0%} of its time has audio that could be decoded", note)
        if overlap_seconds > (1 - COVERAGE) * (overlap_seconds + len(waveform) / rate):
            return empty, 0, self._record.fail("the audio has timestamps that repeat or go back", note)
        first = 0 if self._is_counted else first_step(assembler.delay_seconds, steps)
        return waveform, rate, self._record.complete(steps, first, note)

    def finish_released(self, track: Track, duration_microseconds: int | None) -> tuple[np.ndarray, Track]:
        """Return the released audio, empty unless it was requested, and `track`, the result of `finish`, for it."""
        if self._stereo is None:
            return np.zeros(0, np.float32), track
        return self._stereo.finish(track, duration_microseconds)

    def _assembler(self) -> WaveformAssembler:
        """Return the assembler of the current sample rate."""
        if self._rate not in self._assemblers:
            self._assemblers[self._rate] = WaveformAssembler(self._t0, self._seconds, self._rate)
        return self._assemblers[self._rate]

    def _assemble(self) -> tuple[int, WaveformAssembler]:
        """Return the sample rate and the audio of the whole stream, with parts at other rates resampled to that rate.

        It is the highest rate of at least a tenth of the audio: a corrupt packet may state any rate.
        """
        if len(self._assemblers) == 1:
            return next(iter(self._assemblers.items()))
        parts = [(*part, rate) for rate, assembler in self._assemblers.items() for part in assembler.parts()]
        seconds: dict[int, float] = defaultdict(float)
        for _, samples, rate in parts:
            seconds[rate] += len(samples) / rate
        common = max((rate for rate in seconds if seconds[rate] >= RATE_SHARE * sum(seconds.values())), default=0)
        whole = WaveformAssembler(self._t0, self._seconds, common)
        for start, samples, rate in sorted(parts, key=lambda part: part[0]):
            whole.add(start, samples if rate == common else _resample(samples, rate, common))
        for start, duration in self._lost:
            whole.add_lost(start, duration)
        return common, whole


def to_image(frame: av.VideoFrame) -> np.ndarray:
    """Return a frame as it is displayed, uint8 [height, width, 3], RGB."""
    image = frame.to_ndarray(format="rgb24", threads=1)
    matrix = display_matrix(frame)
    return image if matrix is None else orient(image, matrix)


def _stack(rows: Sequence[dict[FrameSize, np.ndarray] | None], size: FrameSize, first: int) -> np.ndarray:
    """Return uint8 [row, height, width, 3] of `rows`, black before second `first`, from which on each has a frame."""
    late = first * size.per_second
    stacked = np.stack([row[size] for row in fill_lost_frames(rows[late:], size.per_second) if row is not None])
    return np.pad(stacked, ((late, 0), (0, 0), (0, 0), (0, 0))) if late else stacked


def _to_mono(frame: av.AudioFrame) -> np.ndarray:
    """Return float32 [sample], the mean over the channels, full scale at 1.

    The planes are read directly: `frame.to_ndarray` reads past the last plane of 7.1 audio (PyAV 18.1).
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


def _resample(samples: np.ndarray, rate: int, new_rate: int) -> np.ndarray:
    """Return a waveform [sample], float32, at another sample rate."""
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples[None]), format="fltp", layout="mono")
    frame.sample_rate = rate
    resampler = av.AudioResampler(format="fltp", layout="mono", rate=new_rate)
    blocks = [*resampler.resample(frame), *resampler.resample(None)]
    return np.concatenate([block.to_ndarray()[0] for block in blocks])
