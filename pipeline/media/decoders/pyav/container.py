"""Media files opened with PyAV: default streams, packets, time bases, and the start of a stream's first frame."""

from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
from av.codec.hwaccel import HWAccel
from av.stream import Disposition

from pipeline.media.decoders.pyav.extent import read_extent

Stream = av.VideoStream | av.AudioStream


def open_file(path: Path, hwaccel: HWAccel | None = None) -> av.container.InputContainer:
    """Open a local file; FFmpeg must not fetch anything else, such as the entries of a playlist.

    `hwaccel`: decode the video streams on this device.
    """
    container = _open(path, hwaccel)
    extent = read_extent(path) if container.format.name == "wav" else None
    if extent is not None and extent.has_more_audio:
        container.close()
        return _open(path, hwaccel, ignore_length="1")
    return container


def _open(path: Path, hwaccel: HWAccel | None, **options: str) -> av.container.InputContainer:
    allowed = {"protocol_whitelist": "file", **options}
    return av.open(f"file:{path}", metadata_errors="ignore", options=allowed, hwaccel=hwaccel)


def describe_error(error: av.FFmpegError) -> str:
    """Return FFmpeg's description of an error; for one that only a codec knows by its number, that the data is bad."""
    description = str(error.strerror)
    return "the decoder rejects the data" if description.startswith("Error number") else description


def default_streams(container: av.container.InputContainer) -> dict[str, Stream]:
    """Return {kind: default stream}: the first one marked as default, else the first; never cover art."""
    chosen: dict[str, Stream] = {}
    for stream in container.streams:
        if not isinstance(stream, Stream) or stream.disposition & Disposition.attached_pic:
            continue
        known = chosen.get(stream.type)
        if known is None or stream.disposition & ~known.disposition & Disposition.default:
            chosen[stream.type] = stream
    return chosen


def demux_packets(container: av.container.InputContainer, streams: list[Stream]) -> Iterator[av.Packet]:
    """Yield the packets of `streams`, past the IndexError of PyAV for a stream that only appears later in the file."""
    while True:
        try:
            yield from container.demux(streams)
            return
        except IndexError:
            continue


def tick(stream: Stream) -> Fraction:
    """Return the duration in seconds of one unit of the stream's timestamps."""
    return stream.time_base or Fraction(0)


def start_of(frame: av.VideoFrame | av.AudioFrame, tick: Fraction) -> Fraction | None:
    """Return the presentation timestamp of a frame in seconds, None if it has none."""
    timestamp = frame.pts if frame.pts is not None else frame.dts
    return None if timestamp is None else timestamp * tick


def first_start(
    path: Path, stream: Stream, repair: Callable[[Iterator[av.Packet]], Iterator[av.Packet]]
) -> Fraction | None:
    """Return the timestamp of a stream's first frame, None if there is none; the file is read up to that frame.

    `repair` yields the packets with their timestamps repaired.
    Raises `MemoryError` if the file needs more memory than the process may allocate.
    """
    with open_file(path) as container:
        own = cast(Stream, container.streams[stream.index])
        own.codec_context.thread_count = 1
        try:
            for packet in repair(demux_packets(container, [own])):
                for frame in _decode_or_skip(own, packet):
                    start = start_of(frame, tick(own))
                    if start is not None:
                        return start
        except av.error.MemoryError:
            raise
        except av.FFmpegError:
            return None
    return None


def _decode_or_skip(stream: Stream, packet: av.Packet) -> Sequence[av.VideoFrame | av.AudioFrame]:
    try:
        return stream.decode(packet)
    except av.error.MemoryError:
        raise
    except av.FFmpegError:
        return []
