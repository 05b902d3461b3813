"""The default decoder: PyAV, which carries its own FFmpeg. It chooses no steps: `pipeline.timeline` does.

One open and one pass over the file serve both streams. Edit lists and the priming samples of audio codecs are
applied by FFmpeg, the display rotation here (FFmpeg's libraries only report it).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import cast

import av
import numpy as np
from av.stream import Disposition

from pipeline.decode import fail_media
from pipeline.picture import fit, orient
from pipeline.store.schema import State
from pipeline.timeline import (
    AUDIO_COVERAGE,
    DecodeRequest,
    FrameSelector,
    FrameSize,
    Media,
    ReleasedSelector,
    Track,
    WaveformAssembler,
    count_steps,
)

HELD_EVENTS = 500
HELD_FRAMES = 16
NOUNS = {"video": "picture", "audio": "sound"}
SAMPLE_TYPES: dict[str, type[np.generic]] = {
    "u8": np.uint8,
    "s16": np.int16,
    "s32": np.int32,
    "s64": np.int64,
    "flt": np.float32,
    "dbl": np.float64,
}

AVFrame = av.VideoFrame | av.AudioFrame
Stream = av.VideoStream | av.AudioStream

_ratio = lru_cache(Fraction)


@dataclass(frozen=True)
class _Event:
    """One frame of one stream, or, with `error` instead of `frame`, one packet that could not be decoded."""

    kind: str
    start: Fraction | None
    duration: Fraction
    frame: AVFrame | None = None
    error: str = ""


class PyAVDecoder:
    """Decode with PyAV; `thread_count` threads per stream (0: as FFmpeg thinks best)."""

    name = "pyav"

    def __init__(self, thread_count: int = 1) -> None:
        self._thread_count = thread_count
        av.logging.set_level(None)

    def version(self) -> str:
        """Return PyAV's version and that of the FFmpeg it carries."""
        return f"pyav {av.__version__} (ffmpeg {av.ffmpeg_version_info})"

    def prepare(self, path: Path) -> None:
        """Load nothing: importing this file has loaded PyAV."""

    def has_pictures(self, path: Path) -> bool:
        """Say whether the file has a video stream; False for what cannot be opened."""
        try:
            with _open(path) as container:
                return "video" in _default_streams(container)
        except av.FFmpegError:
            return False

    def decode(self, path: Path, request: DecodeRequest) -> Media:
        """Return the file's media; a file that cannot be opened has two failed tracks.

        Raises MemoryError when the process may not have the memory that the file needs.
        """
        try:
            container = _open(path)
        except av.error.MemoryError:
            raise
        except av.FFmpegError as error:
            return fail_media(f"cannot be opened: {error.strerror}")
        with container:
            return _Pass(container, request, self._thread_count).run()


class _Pass:
    """One pass over one open file."""

    def __init__(self, container: av.container.InputContainer, request: DecodeRequest, thread_count: int) -> None:
        self._container = container
        self._request = request
        self._streams = _default_streams(container)
        for stream in self._streams.values():
            if stream.codec_context is not None:
                stream.codec_context.thread_count = thread_count
        self._done = {kind for kind, stream in self._streams.items() if stream.codec_context is None}
        self._break = ""

    def run(self) -> Media:
        events = self._read()
        t0, held = self._find_start(events)
        visual = _Visual(self._streams.get("video"), self._request, t0)
        audio = _Audio(self._streams.get("audio"), self._request, t0)
        sinks: dict[str, _Visual | _Audio] = {"video": visual, "audio": audio}
        self._done |= {kind for kind, sink in sinks.items() if sink.is_done}
        for event in chain(held, events):
            if event.kind not in self._done:
                sinks[event.kind].feed(event)
                if sinks[event.kind].is_done:
                    self._done.add(event.kind)
            if self._done >= self._streams.keys():
                break
        frames, visual_track = visual.finish(self._break)
        waveform, sample_rate_hz, audio_track = audio.finish(self._break)
        return Media(visual_track, audio_track, frames, waveform, sample_rate_hz)

    def _read(self) -> Iterator[_Event]:
        """Yield what the file holds, in its order; a file that breaks off ends there."""
        streams = [stream for kind, stream in self._streams.items() if kind not in self._done]
        if not streams:
            return
        try:
            for packet in self._container.demux(streams):
                if packet.size:
                    yield from self._decode(cast(Stream, packet.stream), packet)
        except av.error.MemoryError:
            raise
        except av.FFmpegError as error:
            self._break = f"the file breaks off: {error.strerror}"
        for stream in streams:
            yield from self._decode(stream, None)

    def _decode(self, stream: Stream, packet: av.Packet | None) -> Iterator[_Event]:
        if stream.type in self._done:
            return
        try:
            frames = stream.decode(packet)
        except av.error.MemoryError:
            raise
        except av.FFmpegError as error:
            if packet is not None:
                pts = packet.pts if packet.pts is not None else packet.dts
                start = None if pts is None else pts * _tick(stream)
                duration = (packet.duration or 0) * _tick(stream)
                yield _Event(stream.type, start, duration, error=str(error.strerror))
            return
        for frame in frames:
            yield _Event(stream.type, _start_of(frame, stream), _duration_of(frame, stream), frame)

    def _find_start(self, events: Iterator[_Event]) -> tuple[Fraction, list[_Event]]:
        """Return t0, the smallest timestamp of the streams' first frames, and the events read to find it.

        A stream that has not shown a frame yet is waited for only while the file says that it starts earlier
        than what is known, and not for longer than `HELD_EVENTS` events or `HELD_FRAMES` pictures.
        """
        held: list[_Event] = []
        first: dict[str, Fraction] = {}
        pictures = 0
        for event in events:
            held.append(event)
            if event.frame is not None:
                pictures += event.kind == "video"
                if event.start is not None:
                    first.setdefault(event.kind, event.start)
            missing = [s for kind, s in self._streams.items() if kind not in first and kind not in self._done]
            known = min(first.values(), default=None)
            if known is not None and all(_claims_later(stream, known) for stream in missing):
                break
            if len(held) >= HELD_EVENTS or pictures >= HELD_FRAMES:
                break
        return min(first.values(), default=Fraction(0)), held


@dataclass
class _Ledger:
    """What became of one stream: how much was decoded, how much was lost, and the words for it."""

    noun: str
    decoded: int = 0
    lost: int = 0
    error: str = ""
    end: Fraction = Fraction(0)

    def enter(self, event: _Event) -> Fraction:
        """Count the event and return its start: its own timestamp, else the end of the one before it."""
        if event.error:
            self.lost += 1
            self.error = self.error or event.error
        else:
            self.decoded += 1
        start = self.end if event.start is None else event.start
        self.end = start + event.duration
        return start

    def complete(self, steps: int, note: str) -> Track:
        return Track(State.COMPLETE, steps, self._join(note))

    def fail(self, why: str, note: str = "") -> Track:
        return Track(State.FAILED, reason="; ".join(filter(None, [why, self._join(note)])))

    def _join(self, note: str) -> str:
        of = self.lost + self.decoded
        losses = f"{self.lost} of {of} packets of the {self.noun} cannot be decoded: {self.error}" if self.lost else ""
        return "; ".join(filter(None, [losses, note]))


def _settle_unread(stream: Stream | None, is_wanted: bool, noun: str) -> Track | None:
    """Return the track of a stream that need not or cannot be decoded, None for one to decode."""
    if stream is None:
        return Track(State.ABSENT)
    if not is_wanted:
        return Track(State.PENDING)
    if stream.codec_context is None:
        return Track(State.FAILED, reason=f"FFmpeg has no decoder for the codec of the {noun}")
    return None


class _Visual:
    """Gathers the chosen pictures of the video stream, upright and at every requested size."""

    def __init__(self, stream: Stream | None, request: DecodeRequest, t0: Fraction) -> None:
        self._request = request
        self._ledger = _Ledger("picture", end=t0)
        self._settled = _settle_unread(stream, bool(request.frame_sizes), self._ledger.noun)
        self._selector: FrameSelector | ReleasedSelector = FrameSelector(t0, request.seconds)
        self._t0 = self._end = t0
        if self._settled is None and request.short == "released":
            rate = stream.average_rate or stream.guessed_rate if stream is not None else None
            if rate:
                self._selector = ReleasedSelector(rate, request.seconds)
            else:
                self._settled = Track(State.FAILED, reason="the file gives no frame rate to count by (short=released)")

    @property
    def is_done(self) -> bool:
        return self._settled is not None or self._selector.is_done

    def feed(self, event: _Event) -> None:
        start = self._ledger.enter(event)
        frame = event.frame
        if not isinstance(frame, av.VideoFrame):
            self._selector.lose(start, event.duration)
            return
        if frame.width * frame.height > self._request.max_pixels:
            size = f"{frame.width}x{frame.height}"
            self._settled = self._ledger.fail(f"a picture of {size} has more than {self._request.max_pixels} pixels")
            return
        self._end = max(self._end, self._ledger.end)
        self._selector.feed(start, event.duration, lambda: self._convert(frame))

    def finish(self, note: str) -> tuple[dict[FrameSize, np.ndarray], Track]:
        if self._settled is not None:
            return {}, self._settled
        note = "" if self._selector.is_done else note
        rows = self._selector.finish()
        chosen = [row for row in rows if row is not None]
        if not chosen:
            return {}, self._ledger.fail("no picture could be decoded", note)
        if len(chosen) < len(rows):
            count = f"{len(rows) - len(chosen)} of {len(rows)}"
            why = f"{count} seconds, from {rows.index(None)} on, have no picture"
            return {}, self._ledger.fail(why, note)
        is_counted = self._request.short == "released"
        steps = count_steps(float(self._end - self._t0), len(rows)) if is_counted else len(rows)
        sizes = self._request.frame_sizes
        return {size: np.stack([row[size] for row in chosen]) for size in sizes}, self._ledger.complete(steps, note)

    def _convert(self, frame: av.VideoFrame) -> dict[FrameSize, np.ndarray]:
        picture = frame.to_ndarray(format="rgb24", threads=1)
        matrix = frame.side_data.get("DISPLAYMATRIX")
        if matrix is not None:
            picture = orient(picture, np.frombuffer(cast(bytes, matrix), np.int32).tolist())
        return {size: fit(picture, size) for size in self._request.frame_sizes}


class _Audio:
    """Gathers the sound of the audio stream as one mono waveform at the stream's own rate."""

    def __init__(self, stream: Stream | None, request: DecodeRequest, t0: Fraction) -> None:
        self._ledger = _Ledger("sound", end=t0)
        self._settled = _settle_unread(stream, request.wants_audio, self._ledger.noun)
        self._rate = stream.sample_rate if isinstance(stream, av.AudioStream) and self._settled is None else 0
        self._t0, self._seconds = t0, request.seconds
        self._assembler: WaveformAssembler | None = None

    @property
    def is_done(self) -> bool:
        return self._settled is not None or (self._assembler is not None and self._assembler.is_done)

    def feed(self, event: _Event) -> None:
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


def _open(path: Path) -> av.container.InputContainer:
    """Open a local file and nothing else: a playlist must not make FFmpeg fetch what it names."""
    return av.open(f"file:{path}", metadata_errors="ignore", options={"protocol_whitelist": "file"})


def _default_streams(container: av.container.InputContainer) -> dict[str, Stream]:
    """Return the default stream of each kind: the first marked as default, else the first; never a cover."""
    chosen: dict[str, Stream] = {}
    for stream in container.streams:
        if not isinstance(stream, Stream) or stream.disposition & Disposition.attached_pic:
            continue
        known = chosen.get(stream.type)
        if known is None or stream.disposition & ~known.disposition & Disposition.default:
            chosen[stream.type] = stream
    return chosen


def _tick(stream: Stream) -> Fraction:
    """Return the seconds of one unit of the stream's timestamps."""
    return stream.time_base or Fraction(0)


def _claims_later(stream: Stream, moment: Fraction) -> bool:
    return stream.start_time is not None and stream.start_time * _tick(stream) >= moment


def _start_of(frame: AVFrame, stream: Stream) -> Fraction | None:
    stamp = frame.pts if frame.pts is not None else frame.dts
    return None if stamp is None else stamp * _tick(stream)


def _duration_of(frame: AVFrame, stream: Stream) -> Fraction:
    if isinstance(frame, av.AudioFrame):
        return _ratio(frame.samples, frame.sample_rate)
    if frame.duration:
        return frame.duration * _tick(stream)
    return 1 / (stream.guessed_rate or Fraction(25))


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
