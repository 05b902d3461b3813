"""The default decoder: PyAV, which carries its own FFmpeg. It chooses no steps: `pipeline.timeline` does.

One open and one pass over the file serve both streams; what they give is gathered by `gathering`. Edit lists and
the priming samples of audio codecs are applied by FFmpeg.
"""

from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import cast

import av
from av.stream import Disposition

from pipeline.decode import fail_media
from pipeline.decode.pyav.gathering import AudioGatherer, AVFrame, Event, Stream, VisualGatherer
from pipeline.decode.pyav.skipping import PacketWindow
from pipeline.timeline import DecodeRequest, Media

HELD_EVENTS = 500
HELD_FRAMES = 16
# In HEVC a picture of a higher temporal layer may refer to one that counts as referred to by none.
SKIPPING_CODECS = ("h264",)
_ratio = lru_cache(Fraction)


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
            return self._pass_over(path, request, skips=request.short != "released")
        except _DoubtError:
            return self._pass_over(path, request, skips=False)

    def _pass_over(self, path: Path, request: DecodeRequest, *, skips: bool) -> Media:
        try:
            container = _open(path)
        except av.error.MemoryError:
            raise
        except av.FFmpegError as error:
            return fail_media(f"cannot be opened: {error.strerror}")
        with container:
            return _Pass(container, request, self._thread_count, skips).run()


class _DoubtError(Exception):
    """Something was lost or out of order while pictures were left out: what is right, only a whole pass can tell."""


class _Pass:
    """One pass over one open file.

    With `skips` pictures that matter to none that is looked at are not decoded; `_DoubtError` then says that the file
    is not as good as that needs.
    """

    def __init__(
        self, container: av.container.InputContainer, request: DecodeRequest, thread_count: int, skips: bool
    ) -> None:
        self._container, self._request = container, request
        self._streams = _default_streams(container)
        for stream in self._streams.values():
            if stream.codec_context is not None:
                stream.codec_context.thread_count = thread_count
        self._done = {kind for kind, stream in self._streams.items() if stream.codec_context is None}
        self._skips = skips and _can_skip(self._streams.get("video"))
        self._break = ""
        self._window: PacketWindow | None = None
        self._latest: int | None = None

    def run(self) -> Media:
        events = self._read()
        t0, held = self._find_start(events)
        if self._window is not None:
            self._window.start(t0)
        visual = VisualGatherer(self._streams.get("video"), self._request, t0)
        audio = AudioGatherer(self._streams.get("audio"), self._request, t0)
        sinks: dict[str, VisualGatherer | AudioGatherer] = {"video": visual, "audio": audio}
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

    def _read(self) -> Iterator[Event]:
        """Yield what the file holds, in its order; a file that breaks off ends there."""
        streams = [stream for kind, stream in self._streams.items() if kind not in self._done]
        if not streams:
            return
        try:
            for packet in self._packets(streams):
                if packet.size:
                    yield from self._decode(cast(Stream, packet.stream), packet)
        except av.error.MemoryError:
            raise
        except av.FFmpegError as error:
            if self._window is not None:
                raise _DoubtError from None
            self._break = f"the file breaks off: {error.strerror}"
        for stream in streams:
            yield from self._decode(stream, None)
        if self._window is not None and "video" not in self._done and not self._window.is_settled:
            raise _DoubtError

    def _packets(self, streams: list[Stream]) -> Iterator[av.Packet]:
        """Yield the packets in the file's order, the video's decoder told which pictures it may leave out."""
        packets = _demux(self._container, streams)
        video = self._streams.get("video")
        if not self._skips or not isinstance(video, av.VideoStream):
            yield from packets
            return
        rates = {1, *(size.per_second for size in self._request.frame_sizes)}
        self._window = PacketWindow(packets, video, sorted(rates))
        for packet, is_wanted in self._window:
            if packet.stream is video:
                video.codec_context.skip_frame = "DEFAULT" if is_wanted else "NONREF"
            yield packet

    def _decode(self, stream: Stream, packet: av.Packet | None) -> Iterator[Event]:
        if stream.type in self._done:
            return
        try:
            frames = stream.decode(packet)
        except av.error.MemoryError:
            raise
        except av.FFmpegError as error:
            if stream.type == "video" and self._window is not None and self._window.has_left_out:
                raise _DoubtError from None
            if packet is not None:
                pts = packet.pts if packet.pts is not None else packet.dts
                start = None if pts is None else pts * _tick(stream)
                duration = (packet.duration or 0) * _tick(stream)
                yield Event(stream.type, start, duration, error=str(error.strerror))
            return
        for frame in frames:
            if stream.type == "video" and self._window is not None:
                self._check_order(self._window, frame.pts)
            yield Event(stream.type, _start_of(frame, stream), _duration_of(frame, stream), frame)

    def _check_order(self, window: PacketWindow, pts: int | None) -> None:
        """Raise `_DoubtError` where a picture comes without a time, out of order, or in the place of an awaited one."""
        if pts is None or (self._latest is not None and pts <= self._latest) or not window.came(pts):
            raise _DoubtError
        self._latest = pts

    def _find_start(self, events: Iterator[Event]) -> tuple[Fraction, list[Event]]:
        """Return t0, the smallest timestamp of the streams' first frames, and the events read to find it.

        A stream that has not shown a frame yet is waited for only while the file says that it starts earlier
        than what is known, and not for longer than `HELD_EVENTS` events or `HELD_FRAMES` pictures.
        """
        held: list[Event] = []
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


def _demux(container: av.container.InputContainer, streams: list[Stream]) -> Iterator[av.Packet]:
    """Yield the packets of `streams`; PyAV trips over those of a stream that only shows later in the file."""
    while True:
        try:
            yield from container.demux(streams)
            return
        except IndexError:
            continue


def _can_skip(video: Stream | None) -> bool:
    return video is not None and video.codec_context is not None and video.codec_context.name in SKIPPING_CODECS


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
