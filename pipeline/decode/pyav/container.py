"""A media file as PyAV opens it: its default streams, their packets and their clocks. It decodes nothing."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

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
