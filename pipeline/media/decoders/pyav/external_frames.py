"""Pictures that another library draws: what PyAV tells it of the file, and the events of one pass over the file.

PyAV decodes the first picture only: that one says how the pictures are turned and where the stream really begins.
"""

from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import cast

import av
import numpy as np
from av.format import Flags

from pipeline.media.decoders.interface import FrameError, FrameIndex, FrameLibrary
from pipeline.media.decoders.pyav.collectors import Drawn, Event, display_matrix
from pipeline.media.decoders.pyav.container import default_streams, demux_packets, open_file, tick
from pipeline.media.decoders.pyav.nal_units import resets_decoder
from pipeline.media.image import is_mirrored, is_transposed

# FFmpeg would open whatever these name, and only PyAV is told to stay with local files.
PLAYLISTS = frozenset({"concat", "dash", "hls", "imf", "sdp"})


class Drawing:
    """The pictures of a file's default video stream as events, in the order in which they are shown.

    `delay`: how many of the stream's packets PyAV takes to decode the first picture; the order in which pictures and
    sound become known decides t0.

    Raises FrameError where the file's pictures cannot be told by the times of its packets, or the library refuses.
    """

    def __init__(self, library: FrameLibrary, path: Path) -> None:
        with open_file(path) as container:
            self._index, self._durations, first, self.delay = _index_pictures(container)
        matrix = display_matrix(first)
        if matrix is not None and is_mirrored(matrix):
            raise FrameError("turns pictures, but does not mirror them as this file asks")
        self._size = first.width, first.height
        is_turned = matrix is not None and is_transposed(matrix)
        self._shape = (first.width, first.height, 3) if is_turned else (first.height, first.width, 3)
        self._read: Callable[[int], np.ndarray] = library.open(path, self._index)

    def events(self) -> Iterator[Event]:
        """Yield what there is to see; a picture is drawn when it is chosen."""
        for number in range(self._index.first, len(self._index.starts)):
            drawn = Drawn(*self._size, partial(self._draw, number))
            yield Event("video", self._index.starts[number], self._durations[number], drawn)

    def _draw(self, number: int) -> np.ndarray:
        picture = self._read(number)
        if picture.shape != self._shape:
            raise FrameError(f"gives picture {number} the shape {picture.shape}, not {self._shape}")
        return picture


def _index_pictures(
    container: av.container.InputContainer,
) -> tuple[FrameIndex, list[Fraction], av.VideoFrame, int]:
    """Return the index of the default video stream, the pictures' durations, PyAV's first picture and its delay."""
    if PLAYLISTS & set(container.format.name.split(",")):
        raise FrameError("is given no playlists")
    if container.format.flags & cast(int, Flags.ts_discont.value):
        raise FrameError("is given no transport streams: libraries seek to the wrong pictures of them")
    stream = cast(av.VideoStream, default_streams(container)["video"])
    packets, first, delay, is_closed = _read_packets(container, stream)
    if first is None or first.pts is None:
        raise FrameError("is given no stream whose first picture cannot be decoded or has no time")
    spans: dict[int, int] = {}
    for start, duration in packets:
        if start is None or start in spans:
            raise FrameError("is given no stream whose packets have no times of their own")
        spans[start] = duration
    if first.pts not in spans:
        raise FrameError("is given no stream whose packets and pictures have different times")
    starts = sorted(spans)
    usual = 1 / (stream.guessed_rate or Fraction(25))
    index = FrameIndex(
        stream_index=stream.index,
        is_only=len(container.streams.video) == 1,
        is_closed=is_closed,
        starts=tuple(start * tick(stream) for start in starts),
        first=starts.index(first.pts),
    )
    return index, [spans[start] * tick(stream) or usual for start in starts], first, delay


def _read_packets(
    container: av.container.InputContainer, stream: av.VideoStream
) -> tuple[list[tuple[int | None, int]], av.VideoFrame | None, int, bool]:
    """Return (time, duration) of the packets that are shown, the first picture, the packets it took, `is_closed`."""
    packets: list[tuple[int | None, int]] = []
    first: av.VideoFrame | None = None
    delay, is_closed = 0, True
    try:
        for packet in demux_packets(container, [stream]):
            is_closed &= not (packets and packet.is_keyframe) or resets_decoder(packet, stream)
            if first is None:
                first = next(iter(stream.decode(packet)), None)
                delay += 1
            if packet.size and not packet.is_discard:
                packets.append((packet.pts, packet.duration or 0))
    except av.error.MemoryError:
        raise
    except av.FFmpegError as error:
        raise FrameError(f"is given no damaged stream: {error.strerror}") from None
    return packets, first, delay, is_closed
