"""Frames decoded by another library: the frame index that PyAV provides, and the events of one pass over the file.

PyAV decodes only the first frame, which determines the display rotation and where the stream actually starts.
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
from pipeline.media.decoders.pyav.collectors import Event, ExternalFrame
from pipeline.media.decoders.pyav.container import default_streams, demux_packets, describe_error, open_file, tick
from pipeline.media.decoders.pyav.nal_units import resets_decoder
from pipeline.media.decoders.pyav.side_data import display_matrix
from pipeline.media.image import is_mirrored, is_transposed

# Their frames may have an orientation of their own (EXIF), which only PyAV's FFmpeg applies.
CODECS_WITH_EXIF = frozenset({"mjpeg", "png", "webp"})
# FFmpeg opens every address that these contain; only PyAV is restricted to local files.
PLAYLISTS = frozenset({"concat", "dash", "hls", "imf", "sdp"})


class ExternalFrames:
    """The frames of a file's default video stream as events, in presentation order.

    `delay`: the number of packets that PyAV needs to decode the first frame. It is kept because t0 depends on the order
    in which video and audio frames become available.

    Raises `FrameError` if packet timestamps do not identify the frames of the file, or if the library fails.
    """

    def __init__(self, library: FrameLibrary, path: Path) -> None:
        with open_file(path) as container:
            self._index, self._durations, first, self.delay = _index_frames(container)
            codec = container.streams[self._index.stream_index].codec_context.name
        matrix = display_matrix(first)
        if matrix is not None and codec in CODECS_WITH_EXIF:
            raise FrameError("does not apply the orientation that frames of this file may have")
        if matrix is not None and is_mirrored(matrix):
            raise FrameError("applies the rotation but not the mirroring that this file requires")
        self._size = first.width, first.height
        is_rotated = matrix is not None and is_transposed(matrix)
        self._shape = (first.width, first.height, 3) if is_rotated else (first.height, first.width, 3)
        self._read: Callable[[int], np.ndarray] = library.open(path, self._index)

    def events(self) -> Iterator[Event]:
        """Yield an event for each frame, which is decoded only if it is selected."""
        for position in range(self._index.first_decodable, len(self._index.starts)):
            frame = ExternalFrame(*self._size, partial(self._decode, position))
            yield Event("video", self._index.starts[position], self._durations[position], frame)

    def _decode(self, position: int) -> np.ndarray:
        image = self._read(position)
        if image.shape != self._shape:
            raise FrameError(f"returned frame {position} with shape {image.shape}, expected {self._shape}")
        return image


def _index_frames(
    container: av.container.InputContainer,
) -> tuple[FrameIndex, list[Fraction], av.VideoFrame, int]:
    """Return the index of the default video stream, the durations of its frames, its first frame and PyAV's delay."""
    if PLAYLISTS & set(container.format.name.split(",")):
        raise FrameError("is not used for playlists")
    if container.format.flags & cast(int, Flags.ts_discont.value):
        raise FrameError("is not used for transport streams: libraries seek to wrong frames in them")
    stream = cast(av.VideoStream, default_streams(container)["video"])
    packets, first, delay, has_closed_gops = _read_packets(container, stream)
    if first is None or first.pts is None:
        raise FrameError("is not used for a stream whose first frame cannot be decoded or has no timestamp")
    durations: dict[int, int] = {}
    for start, duration in packets:
        if start is None or start in durations:
            raise FrameError("is not used for a stream whose packets have no unique timestamps")
        durations[start] = duration
    if first.pts not in durations:
        raise FrameError("is not used for a stream whose packets and frames have different timestamps")
    starts = sorted(durations)
    default_duration = 1 / (stream.guessed_rate or Fraction(25))
    index = FrameIndex(
        stream_index=stream.index,
        is_only_stream=len(container.streams.video) == 1,
        has_closed_gops=has_closed_gops,
        starts=tuple(start * tick(stream) for start in starts),
        first_decodable=starts.index(first.pts),
    )
    return index, [durations[start] * tick(stream) or default_duration for start in starts], first, delay


def _read_packets(
    container: av.container.InputContainer, stream: av.VideoStream
) -> tuple[list[tuple[int | None, int]], av.VideoFrame | None, int, bool]:
    """Return (pts, duration) of the shown packets, the first frame, its delay in packets, `has_closed_gops`."""
    packets: list[tuple[int | None, int]] = []
    first: av.VideoFrame | None = None
    delay, has_closed_gops = 0, True
    try:
        for packet in demux_packets(container, [stream]):
            has_closed_gops &= not (packets and packet.is_keyframe) or resets_decoder(packet, stream)
            if first is None:
                first = next(iter(stream.decode(packet)), None)
                delay += 1
            if packet.size and not packet.is_discard:
                packets.append((packet.pts, packet.duration or 0))
    except av.error.MemoryError:
        raise
    except av.FFmpegError as error:
        raise FrameError(f"is not used for corrupt streams: {describe_error(error)}") from None
    return packets, first, delay, has_closed_gops
