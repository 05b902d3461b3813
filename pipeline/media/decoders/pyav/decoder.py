"""The default decoder: PyAV, which includes its own FFmpeg.

A file is opened once and both streams are decoded in one pass; `collectors` select frames and assemble the waveform.
FFmpeg applies edit lists and removes the priming samples of audio codecs. Frames may be decoded by another library
(`external_frames`); PyAV still provides the frame index and decodes the audio.
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
    describe_error,
    first_start,
    open_file,
    start_of,
    tick,
)
from pipeline.media.decoders.pyav.extent import read_extent
from pipeline.media.decoders.pyav.external_frames import ExternalFrames
from pipeline.media.decoders.pyav.frame_num import FrameNumbers
from pipeline.media.decoders.pyav.frame_skipping import PacketWindow
from pipeline.media.decoders.pyav.nvdec import Nvdec, to_external
from pipeline.media.decoders.pyav.repairs import DiscontinuityError, Repairs, check_timestamps, find_repairs
from pipeline.media.decoders.pyav.unused_packets import drop_unused_packets
from pipeline.media.timeline import DecodeRequest, Media, fail_media
from pipeline.store.schema import State

HELD_EVENTS = 500
HELD_FRAMES = 16
# Not HEVC: there a frame of a higher temporal layer may depend on one that is marked as non-reference.
SKIPPING_CODECS = ("h264",)
# Audio streams without a container: FFmpeg counts their timestamps at the sample rate of the first frame.
FORMATS_WITHOUT_TIMESTAMPS = frozenset({"aac", "ac3", "dts", "eac3", "loas", "mlp", "mp3", "truehd"})
_fraction = lru_cache(Fraction)


class PyAVDecoder:
    """Decode with PyAV; `thread_count` threads per stream (0: chosen by FFmpeg).

    With a `library`, that library or the GPU decodes the frames. If it fails for a file, PyAV decodes all frames of
    that file and the reason of the visual track contains a note.
    """

    def __init__(self, thread_count: int = 1, library: FrameLibrary | Nvdec | None = None) -> None:
        self._thread_count, self._library = thread_count, library
        self.name = "pyav" if library is None else library.name
        av.logging.set_level(None)

    def version(self, modality: str = "visual") -> str:
        """Return the versions of PyAV and its FFmpeg, of frames after that of the library."""
        own = f"pyav {av.__version__} (ffmpeg {av.ffmpeg_version_info})"
        return own if self._library is None or modality == "audio" else f"{self._library.version()}; {own}"

    def decode(self, path: Path, request: DecodeRequest) -> Media:
        """Return the file's media; both tracks are failed if the file cannot be opened.

        Raises `MemoryError` if the file needs more memory than the process may allocate.
        """
        try:
            return self._decode(path, request, None)
        except DiscontinuityError:
            return self._decode(path, request, find_repairs(path, request.seconds))

    def _decode(self, path: Path, request: DecodeRequest, repairs: Repairs | None) -> Media:
        """Return the file's media; raise `DiscontinuityError` if `repairs` is None and repairs may be needed."""
        if self._library is None or not request.frame_sizes:
            return self._decode_with_pyav(path, request, repairs)
        try:
            if isinstance(self._library, Nvdec):
                media = self._decode_with_pyav(path, request, repairs, self._library)
                if media.visual.state is State.FAILED:
                    raise FrameError("does not decode all seconds of the file")
                return media
            if repairs:
                raise FrameError("is not used for timestamps that leap or go back")
            return self._decode_once(path, request, repairs, skips_frames=False, library=self._library)
        except FrameError as error:
            media = self._decode_with_pyav(path, request, repairs)
            return _add_note(media, f"frames decoded by pyav: {self._library.name} {error}")

    def _decode_with_pyav(
        self, path: Path, request: DecodeRequest, repairs: Repairs | None, nvdec: Nvdec | None = None
    ) -> Media:
        try:
            skips_frames = request.padding != "released" and not repairs
            return self._decode_once(path, request, repairs, skips_frames=skips_frames, nvdec=nvdec)
        except _UnsafeSkippingError:
            return self._decode_once(path, request, repairs, skips_frames=False, nvdec=nvdec)

    def _decode_once(
        self,
        path: Path,
        request: DecodeRequest,
        repairs: Repairs | None,
        *,
        skips_frames: bool,
        library: FrameLibrary | None = None,
        nvdec: Nvdec | None = None,
    ) -> Media:
        try:
            container = open_file(path) if nvdec is None else nvdec.open(path)
        except av.error.MemoryError:
            raise
        except av.FFmpegError as error:
            return fail_media(f"cannot be opened: {describe_error(error)}")
        with container:
            video = default_streams(container).get("video")
            has_frames = request.frame_sizes and video is not None and video.codec_context is not None
            external = ExternalFrames(library, path) if library is not None and has_frames else None
            decoding = _DecodingPass(
                path, container, request, self._thread_count, repairs, skips_frames, external, nvdec
            )
            return decoding.run()


def _add_note(media: Media, note: str) -> Media:
    """Return the media with `note` added to the visual track's reason, if that track is complete."""
    if media.visual.state is not State.COMPLETE:
        return media
    return replace(media, visual=replace(media.visual, reason="; ".join(filter(None, [media.visual.reason, note]))))


class _UnsafeSkippingError(Exception):
    """A frame is corrupt, missing or out of order, possibly because others were skipped: decode all frames instead."""


class _DecodingPass:
    """One pass over an open file.

    With `skips_frames`, frames that do not affect the sampled ones are not decoded; `run` raises
    `_UnsafeSkippingError` if the file is not regular enough for that. With `external` frames, events of those replace
    the packets of the video stream. With `nvdec`, which opened the file, the GPU decodes those packets.
    """

    def __init__(
        self,
        path: Path,
        container: av.container.InputContainer,
        request: DecodeRequest,
        thread_count: int,
        repairs: Repairs | None,
        skips_frames: bool,
        external: ExternalFrames | None = None,
        nvdec: Nvdec | None = None,
    ) -> None:
        self._path, self._container, self._request = path, container, request
        self._repairs = repairs
        self._streams = default_streams(container)
        for stream in self._streams.values():
            if stream.codec_context is not None:
                stream.codec_context.thread_count = thread_count
        self._ticks = {kind: tick(stream) for kind, stream in self._streams.items()}
        self._done = {kind for kind, stream in self._streams.items() if stream.codec_context is None}
        video, audio = self._streams.get("video"), self._streams.get("audio")
        has_rate = isinstance(audio, av.AudioStream) and audio.codec_context is not None
        self._first_sample_rate = cast(av.AudioStream, audio).sample_rate if has_rate else 0
        can_skip = video is not None and video.codec_context is not None and video.codec_context.name in SKIPPING_CODECS
        self._skips_frames = skips_frames and can_skip
        self._has_timestamps = container.format.name not in FORMATS_WITHOUT_TIMESTAMPS
        self._has_started = False
        self._note = ""
        self._packet_counts = dict.fromkeys(self._streams, 0)
        self._window: PacketWindow | None = None
        self._latest_pts: int | None = None
        self._external_events = None if external is None else external.events()
        self._external_delay = 0 if external is None else external.delay
        self._nvdec = nvdec

    def run(self) -> Media:
        events = self._events()
        t0, held = self._find_start(events)
        if self._window is not None:
            self._window.start(t0)
        visual = FrameCollector(self._streams.get("video"), self._request, t0)
        audio = AudioCollector(self._streams.get("audio"), self._request, t0)
        collectors: dict[str, FrameCollector | AudioCollector] = {"video": visual, "audio": audio}
        self._done |= {kind for kind, collector in collectors.items() if collector.is_done}
        for event in chain(held, events):
            if event.kind not in self._done:
                collectors[event.kind].add(event)
                if collectors[event.kind].is_done:
                    self._done.add(event.kind)
            if self._done >= self._streams.keys():
                break
        frames, visual_track = visual.finish(self._note, self._describe_repairs("video"))
        waveform, sample_rate_hz, audio_track = audio.finish(self._note, self._describe_repairs("audio"))
        released, audio_track = audio.finish_released(audio_track, self._container.duration)
        return Media(visual_track, audio_track, frames, waveform, sample_rate_hz, released)

    def _find_start(self, events: Iterator[Event]) -> tuple[Fraction, list[Event]]:
        """Return t0, the smallest timestamp of the streams' first frames, and the events read to find it.

        Reading continues while a stream has no decoded frame, unless its header claims that it starts no earlier than
        the known streams. After `HELD_EVENTS` events or `HELD_FRAMES` video frames (fragments of several seconds store
        all video before all audio) the file is opened again to find the start of that stream alone.
        """
        held: list[Event] = []
        first: dict[str, Fraction] = {}
        video_frames = 0
        for event in events:
            held.append(event)
            if event.frame is not None:
                video_frames += event.kind == "video"
                if event.start is not None:
                    first.setdefault(event.kind, event.start)
            missing = [s for kind, s in self._streams.items() if kind not in first and kind not in self._done]
            known = min(first.values(), default=None)
            if known is not None and all(_claims_start_from(known, stream) for stream in missing):
                break
            if len(held) >= HELD_EVENTS or video_frames >= HELD_FRAMES:
                late = {stream.type: first_start(self._path, stream, self._repair) for stream in missing}
                first |= {kind: start for kind, start in late.items() if start is not None}
                break
        return min(first.values(), default=Fraction(0)), held

    def _repair(self, packets: Iterator[av.Packet]) -> Iterator[av.Packet]:
        return check_timestamps(packets) if self._repairs is None else self._repairs.apply(packets)

    def _describe_repairs(self, kind: str) -> str:
        """Return what was changed in the timestamps of the packets that were decoded."""
        if not self._repairs or kind not in self._streams:
            return ""
        return self._repairs.describe(self._streams[kind].index, self._packet_counts[kind])

    def _events(self) -> Iterator[Event]:
        """Yield the events of the file in its order, up to its end or the point where reading fails."""
        streams = [stream for kind, stream in self._streams.items() if kind not in self._done]
        if not streams:
            return
        try:
            for packet in self._packets(streams):
                if packet.size:
                    yield from self._decode(cast(Stream, packet.stream), packet)
            self._note = _describe_extent(self._path)
        except av.error.MemoryError:
            raise
        except av.FFmpegError as error:
            if self._window is not None:
                raise _UnsafeSkippingError from None
            self._note = f"reading stopped before the end of the file: {describe_error(error)}"
        for stream in streams:
            yield from self._decode(stream, None)
        if self._window is not None and "video" not in self._done and not self._window.has_decoded_all:
            raise _UnsafeSkippingError

    def _packets(self, streams: list[Stream]) -> Iterator[av.Packet]:
        """Yield the needed packets in the order of the file, and set which frames the video decoder may skip."""
        packets = self._repair(demux_packets(self._container, streams))
        video = self._streams.get("video")
        if not self._skips_frames or not isinstance(video, av.VideoStream):
            yield from packets
            return
        rates = {1, *(size.per_second for size in self._request.frame_sizes)}
        self._window = PacketWindow(packets, video, sorted(rates))
        numbers = FrameNumbers(video)
        for packet, may_be_sampled in drop_unused_packets(self._window, video):
            if packet.stream is video:
                if not numbers.is_continuous(packet, is_skippable=not may_be_sampled):
                    raise _UnsafeSkippingError
                video.codec_context.skip_frame = "DEFAULT" if may_be_sampled else "NONREF"
            yield packet

    def _decode(self, stream: Stream, packet: av.Packet | None) -> Iterator[Event]:
        """Yield the events of one packet, or the remaining ones of the stream if `packet` is None."""
        if stream.type in self._done:
            return
        self._packet_counts[stream.type] += packet is not None
        if stream.type == "video" and self._external_events is not None:
            self._external_delay -= 1
            events = self._external_events
            yield from events if packet is None else islice(events, int(self._external_delay <= 0))
            return
        nvdec = self._nvdec if stream.type == "video" else None
        try:
            frames = stream.decode(packet) if nvdec is None else nvdec.decode(cast(av.VideoStream, stream), packet)
        except av.error.MemoryError:
            raise
        except av.FFmpegError as error:
            if stream.type == "video" and self._window is not None and self._window.has_skipped:
                raise _UnsafeSkippingError from None
            if packet is not None:
                pts = packet.pts if packet.pts is not None else packet.dts
                start = None if pts is None else pts * self._ticks[stream.type]
                duration = (packet.duration or 0) * self._ticks[stream.type]
                yield Event(stream.type, self._timestamp(start), duration, error=describe_error(error))
            return
        for frame in frames:
            if stream.type == "video" and self._window is not None:
                self._check_order(self._window, frame.pts)
                if self._window.has_skipped and frame.is_corrupt:
                    raise _UnsafeSkippingError
            is_interpolated = isinstance(frame, av.AudioFrame) and self._is_interpolated(packet, frame)
            start = None if is_interpolated else start_of(frame, self._ticks[stream.type])
            shown = frame if nvdec is None else to_external(cast(av.VideoFrame, frame))
            yield Event(stream.type, self._timestamp(start), self._duration(frame, stream), shown)

    def _is_interpolated(self, packet: av.Packet | None, frame: av.AudioFrame) -> bool:
        """Return whether FFmpeg calculated the timestamp of a frame at another sample rate than the frame's.

        It divides the packets of MPEG-TS and MPEG-PS, whose parts have no position in the file, and counts their
        timestamps at the sample rate with which the stream begins.
        """
        return packet is not None and packet.pos is None and frame.sample_rate != self._first_sample_rate

    def _timestamp(self, start: Fraction | None) -> Fraction | None:
        """Return `start`, but None for a later event of a file without timestamps: it follows the previous event."""
        if self._has_timestamps or not self._has_started:
            self._has_started = True
            return start
        return None

    def _check_order(self, window: PacketWindow, pts: int | None) -> None:
        """Raise `_UnsafeSkippingError` if a frame has no timestamp, is out of order, or follows a missing frame."""
        if pts is None or (self._latest_pts is not None and pts <= self._latest_pts) or not window.mark_decoded(pts):
            raise _UnsafeSkippingError
        self._latest_pts = pts

    def _duration(self, frame: AVFrame, stream: Stream) -> Fraction:
        if isinstance(frame, av.AudioFrame):
            return _fraction(frame.samples, frame.sample_rate)
        if frame.duration:
            return frame.duration * self._ticks["video"]
        return 1 / (stream.guessed_rate or Fraction(25))


def _describe_extent(path: Path) -> str:
    """Return how the end that a file states differs from its own, "" if it does not or the file does not state it."""
    extent = read_extent(path)
    return "" if extent is None else extent.describe()


def _claims_start_from(moment: Fraction, stream: Stream) -> bool:
    return stream.start_time is not None and stream.start_time * tick(stream) >= moment
