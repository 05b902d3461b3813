"""The default decoder: PyAV, which carries its own FFmpeg. It chooses no steps: `pipeline.media.timeline` does.

One open and one pass over the file serve both streams; what they give is gathered by `gathering`. Edit lists and
the priming samples of audio codecs are applied by FFmpeg. Pictures may be drawn by another library (`drawing`):
PyAV then still tells it which there are, and decodes the sound.
"""

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import cast

import av

from pipeline.media.decoders.interface import FrameError, FrameLibrary
from pipeline.media.decoders.pyav.collectors import AudioCollector, AVFrame, Event, FrameCollector
from pipeline.media.decoders.pyav.container import (
    Stream,
    default_streams,
    demux_packets,
    first_start,
    open_file,
    start_of,
    tick,
)
from pipeline.media.decoders.pyav.external_frames import Drawing
from pipeline.media.decoders.pyav.frame_num import FrameNumbers
from pipeline.media.decoders.pyav.frame_skipping import PacketWindow
from pipeline.media.decoders.pyav.unused_packets import drop_unused_packets
from pipeline.media.timeline import DecodeRequest, Media, fail_media
from pipeline.store.schema import State

HELD_EVENTS = 500
HELD_FRAMES = 16
# In HEVC a picture of a higher temporal layer may refer to one that counts as referred to by none.
SKIPPING_CODECS = ("h264",)
_ratio = lru_cache(Fraction)


class PyAVDecoder:
    """Decode with PyAV; `thread_count` threads per stream (0: as FFmpeg thinks best).

    With a `library` that one draws the pictures. Those of a file that it refuses are PyAV's, all of them: the reason
    of the visual track says so.
    """

    def __init__(self, thread_count: int = 1, library: FrameLibrary | None = None) -> None:
        self._thread_count, self._library = thread_count, library
        self.name = "pyav" if library is None else library.name
        av.logging.set_level(None)

    def version(self) -> str:
        """Return PyAV's version and that of the FFmpeg it carries, after the library's."""
        own = f"pyav {av.__version__} (ffmpeg {av.ffmpeg_version_info})"
        return own if self._library is None else f"{self._library.version()}; {own}"

    def prepare(self, path: Path) -> None:
        """Load nothing: importing this file has loaded PyAV."""

    def has_video(self, path: Path) -> bool:
        """Say whether the file has a video stream; False for what cannot be opened."""
        try:
            with open_file(path) as container:
                return "video" in default_streams(container)
        except av.FFmpegError:
            return False

    def decode(self, path: Path, request: DecodeRequest) -> Media:
        """Return the file's media; a file that cannot be opened has two failed tracks.

        Raises MemoryError when the process may not have the memory that the file needs.
        """
        if self._library is None:
            return self._decode_alone(path, request)
        try:
            return self._pass_over(path, request, skips=False, library=self._library)
        except FrameError as refusal:
            media = self._decode_alone(path, request)
            return _note(media, f"pictures decoded by pyav: {self._library.name} {refusal}")

    def _decode_alone(self, path: Path, request: DecodeRequest) -> Media:
        try:
            return self._pass_over(path, request, skips=request.padding != "released")
        except _DoubtError:
            return self._pass_over(path, request, skips=False)

    def _pass_over(
        self, path: Path, request: DecodeRequest, *, skips: bool, library: FrameLibrary | None = None
    ) -> Media:
        try:
            container = open_file(path)
        except av.error.MemoryError:
            raise
        except av.FFmpegError as error:
            return fail_media(f"cannot be opened: {error.strerror}")
        with container:
            is_drawn = request.frame_sizes and _can_decode(default_streams(container).get("video"))
            drawing = Drawing(library, path) if library is not None and is_drawn else None
            return _Pass(path, container, request, self._thread_count, skips, drawing).run()


class _DoubtError(Exception):
    """Something was lost or out of order while pictures were left out: what is right, only a whole pass can tell."""


class _Pass:
    """One pass over one open file.

    With `skips` pictures that matter to none that is looked at are not decoded; `_DoubtError` then says that the file
    is not as good as that needs. With a `drawing` its pictures take the places of the video's packets.
    """

    def __init__(
        self,
        path: Path,
        container: av.container.InputContainer,
        request: DecodeRequest,
        thread_count: int,
        skips: bool,
        drawing: Drawing | None = None,
    ) -> None:
        self._path, self._container, self._request = path, container, request
        self._streams = default_streams(container)
        for stream in self._streams.values():
            if stream.codec_context is not None:
                stream.codec_context.thread_count = thread_count
        self._ticks = {kind: tick(stream) for kind, stream in self._streams.items()}
        self._done = {kind for kind, stream in self._streams.items() if stream.codec_context is None}
        self._skips = skips and _can_skip(self._streams.get("video"))
        self._break = ""
        self._window: PacketWindow | None = None
        self._latest: int | None = None
        self._drawn = None if drawing is None else drawing.events()
        self._delay = 0 if drawing is None else drawing.delay

    def run(self) -> Media:
        events = self._read()
        t0, held = self._find_start(events)
        if self._window is not None:
            self._window.start(t0)
        visual = FrameCollector(self._streams.get("video"), self._request, t0)
        audio = AudioCollector(self._streams.get("audio"), self._request, t0)
        sinks: dict[str, FrameCollector | AudioCollector] = {"video": visual, "audio": audio}
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
        packets = demux_packets(self._container, streams)
        video = self._streams.get("video")
        if not self._skips or not isinstance(video, av.VideoStream):
            yield from packets
            return
        rates = {1, *(size.per_second for size in self._request.frame_sizes)}
        self._window = PacketWindow(packets, video, sorted(rates))
        numbers = FrameNumbers(video)
        for packet, is_wanted in drop_unused_packets(self._window, video):
            if packet.stream is video:
                if not numbers.run_on(packet, is_left_out=not is_wanted):
                    raise _DoubtError
                video.codec_context.skip_frame = "DEFAULT" if is_wanted else "NONREF"
            yield packet

    def _decode(self, stream: Stream, packet: av.Packet | None) -> Iterator[Event]:
        if stream.type in self._done:
            return
        if stream.type == "video" and self._drawn is not None:
            self._delay -= 1
            yield from self._drawn if packet is None else islice(self._drawn, int(self._delay <= 0))
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
                start = None if pts is None else pts * self._ticks[stream.type]
                duration = (packet.duration or 0) * self._ticks[stream.type]
                yield Event(stream.type, start, duration, error=str(error.strerror))
            return
        for frame in frames:
            if stream.type == "video" and self._window is not None:
                self._check_order(self._window, frame.pts)
                if self._window.has_left_out and frame.is_corrupt:
                    raise _DoubtError
            start = start_of(frame, self._ticks[stream.type])
            yield Event(stream.type, start, self._duration_of(frame, stream), frame)

    def _duration_of(self, frame: AVFrame, stream: Stream) -> Fraction:
        if isinstance(frame, av.AudioFrame):
            return _ratio(frame.samples, frame.sample_rate)
        if frame.duration:
            return frame.duration * self._ticks["video"]
        return 1 / (stream.guessed_rate or Fraction(25))

    def _check_order(self, window: PacketWindow, pts: int | None) -> None:
        """Raise `_DoubtError` where a picture comes without a time, out of order, or in the place of an awaited one."""
        if pts is None or (self._latest is not None and pts <= self._latest) or not window.came(pts):
            raise _DoubtError
        self._latest = pts

    def _find_start(self, events: Iterator[Event]) -> tuple[Fraction, list[Event]]:
        """Return t0, the smallest timestamp of the streams' first frames, and the events read to find it.

        A stream that has not shown a frame yet is waited for only while the file says that it starts earlier
        than what is known. After `HELD_EVENTS` events or `HELD_FRAMES` pictures (fragments of some seconds hold all
        pictures before all sound) the file is opened once more, to look for that stream alone.
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
                late = {stream.type: first_start(self._path, stream) for stream in missing}
                first |= {kind: start for kind, start in late.items() if start is not None}
                break
        return min(first.values(), default=Fraction(0)), held


def _note(media: Media, note: str) -> Media:
    """Return the media with a note in the visual track's reason, where there is a decoded picture or a failure."""
    if media.visual.state not in (State.COMPLETE, State.FAILED):
        return media
    return replace(media, visual=replace(media.visual, reason="; ".join(filter(None, [media.visual.reason, note]))))


def _can_decode(video: Stream | None) -> bool:
    return video is not None and video.codec_context is not None


def _can_skip(video: Stream | None) -> bool:
    return video is not None and video.codec_context is not None and video.codec_context.name in SKIPPING_CODECS


def _claims_later(stream: Stream, moment: Fraction) -> bool:
    return stream.start_time is not None and stream.start_time * tick(stream) >= moment
