"""A media file as PyAV opens it: its default streams, their packets and their clocks. It decodes first frames only."""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
from av.stream import Disposition

Stream = av.VideoStream | av.AudioStream


def open_file(path: Path) -> av.container.InputContainer:
    """Open a local file and nothing else: a playlist must not make FFmpeg fetch what it names."""
    return av.open(f"file:{path}", metadata_errors="ignore", options={"protocol_whitelist": "file"})


def default_streams(container: av.container.InputContainer) -> dict[str, Stream]:
    """Return the default stream of each kind: the first marked as default, else the first; never a cover."""
    chosen: dict[str, Stream] = {}
    for stream in container.streams:
        if not isinstance(stream, Stream) or stream.disposition & Disposition.attached_pic:
            continue
        known = chosen.get(stream.type)
        if known is None or stream.disposition & ~known.disposition & Disposition.default:
            chosen[stream.type] = stream
    return chosen


def demux_packets(container: av.container.InputContainer, streams: list[Stream]) -> Iterator[av.Packet]:
    """Yield the packets of `streams`; PyAV trips over those of a stream that only shows later in the file."""
    while True:
        try:
            yield from container.demux(streams)
            return
        except IndexError:
            continue


def tick(stream: Stream) -> Fraction:
    """Return the seconds of one unit of the stream's timestamps."""
    return stream.time_base or Fraction(0)


def start_of(frame: av.VideoFrame | av.AudioFrame, tick: Fraction) -> Fraction | None:
    """Return the presentation time of a frame, in seconds; None where it has none."""
    stamp = frame.pts if frame.pts is not None else frame.dts
    return None if stamp is None else stamp * tick


def first_start(path: Path, stream: Stream) -> Fraction | None:
    """Return when the first frame of a stream begins, by a pass of its own that ends there; None for no such frame.

    Raises MemoryError when the process may not have the memory that the file needs.
    """
    with open_file(path) as container:
        own = cast(Stream, container.streams[stream.index])
        own.codec_context.thread_count = 1
        try:
            for packet in demux_packets(container, [own]):
                for frame in _decode_what_can_be(own, packet):
                    start = start_of(frame, tick(own))
                    if start is not None:
                        return start
        except av.error.MemoryError:
            raise
        except av.FFmpegError:
            return None
    return None


def _decode_what_can_be(stream: Stream, packet: av.Packet) -> Sequence[av.VideoFrame | av.AudioFrame]:
    try:
        return stream.decode(packet)
    except av.error.MemoryError:
        raise
    except av.FFmpegError:
        return []
