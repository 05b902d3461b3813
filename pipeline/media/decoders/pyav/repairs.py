"""Timestamps that leap or go back: noticed while a file is decoded, replaced when it is decoded again.

While a file is decoded, every packet is compared with the previous one of its stream (`check_timestamps`). If one is
suspicious, `find_repairs` reads the timestamps of the file without decoding it; `timestamps` examines them. Streams
without DTS are not examined.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from pipeline.media.decoders.pyav.container import default_streams, demux_packets, open_file, tick
from pipeline.media.decoders.pyav.timestamps import (
    BACK_SECONDS,
    LEAP_SECONDS,
    STRAY_SECONDS,
    PacketTimes,
    Timeline,
    examine,
)

# Media read after the requested seconds, as evidence.
MARGIN_SECONDS = 20.0


class DiscontinuityError(Exception):
    """Timestamps may leap or go back: `find_repairs` decides."""


def check_timestamps(packets: Iterator[av.Packet]) -> Iterator[av.Packet]:
    """Yield `packets`; raise `DiscontinuityError` before one whose timestamps do not follow the previous one's."""
    clocks: dict[int, _Clock] = {}
    for packet in packets:
        if packet.size and packet.time_base:
            clock = clocks.get(packet.stream_index)
            if clock is None:
                clock = clocks[packet.stream_index] = _Clock(packet.time_base)
            if not clock.accepts(packet.pts, packet.dts):
                raise DiscontinuityError
        yield packet


class _Clock:
    """The timestamps of a stream's previous packet, and the limits of the next one's, in ticks."""

    def __init__(self, time_base: Fraction) -> None:
        self._dts: int | None = None
        self._offset: int | None = None
        limits = (BACK_SECONDS, LEAP_SECONDS, STRAY_SECONDS)
        self._back, self._leap, self._departure = (int(seconds / time_base) for seconds in limits)

    def accepts(self, pts: int | None, dts: int | None) -> bool:
        """Return whether the timestamps follow the previous ones. The first packet may have only a PTS."""
        if dts is None and self._dts is None:
            self._dts = pts
        if dts is None:
            return True
        offset = self._offset if pts is None else pts - dts
        is_steady = self._dts is None or -self._back <= dts - self._dts <= self._leap
        if offset is not None and self._offset is not None:
            is_steady = is_steady and abs(offset - self._offset) <= self._departure
        self._dts, self._offset = dts, offset
        return is_steady


@dataclass(frozen=True)
class StreamRepairs:
    """The repairs of one stream: `shifts` int64 [packet], in ticks; `is_stray` bool [packet]; where parts begin.

    A stray loses its timestamps: its frame is shown after the previous one. `has_pts`: whether packets have a PTS; the
    DTS is then removed too, because a stray must not be placed by it.
    """

    shifts: np.ndarray
    is_stray: np.ndarray
    parts: tuple[int, ...]
    has_pts: bool

    def apply(self, packet: av.Packet, number: int) -> None:
        """Change the timestamps of packet `number`; those after the examined ones are moved like the last one."""
        number = min(number, len(self.shifts) - 1)
        shift = int(self.shifts[number])
        pts, dts = packet.pts, None if self.has_pts else packet.dts
        packet.pts = None if pts is None or self.is_stray[number] else pts + shift
        packet.dts = None if dts is None or self.is_stray[number] else dts + shift


@dataclass(frozen=True)
class Repairs:
    """The repairs of a file, by the index of the stream; empty if its timestamps are in order."""

    streams: dict[int, StreamRepairs]

    def __bool__(self) -> bool:
        return bool(self.streams)

    def apply(self, packets: Iterator[av.Packet]) -> Iterator[av.Packet]:
        """Yield `packets`, which are all those of their streams, with their timestamps changed."""
        counts = dict.fromkeys(self.streams, 0)
        for packet in packets:
            repairs = self.streams.get(packet.stream_index)
            if repairs is not None and packet.size:
                repairs.apply(packet, counts[packet.stream_index])
                counts[packet.stream_index] += 1
            yield packet

    def describe(self, stream_index: int, count: int) -> str:
        """Return what was changed in the first `count` packets of a stream, "" if nothing."""
        if stream_index not in self.streams:
            return ""
        repairs = self.streams[stream_index]
        replaced, bridged = int(repairs.is_stray[:count].sum()), sum(first < count for first in repairs.parts)
        changes = {"replaced": replaced, "bridged": bridged}
        counted = ", ".join(f"{number} {change}" for change, number in changes.items() if number)
        return f"timestamps leap or go back: {counted}" if counted else ""


def find_repairs(path: Path, seconds: int) -> Repairs:
    """Return the repairs of the file's timestamps, as far as they affect its first `seconds`.

    Raises `MemoryError` if the file needs more memory than the process may allocate.
    """
    with open_file(path) as container:
        ticks = {s.index: float(tick(s)) for s in default_streams(container).values() if s.time_base}
        timelines = _read_timelines(container, ticks, seconds + MARGIN_SECONDS)
    examine(list(timelines.values()))
    if not any(timeline.needs_repairs for timeline in timelines.values()):
        return Repairs({})
    return Repairs({index: _to_repairs(timeline, ticks[index]) for index, timeline in timelines.items()})


def _read_timelines(
    container: av.container.InputContainer, ticks: dict[int, float], seconds: float
) -> dict[int, Timeline]:
    """Return {index: timeline} of the streams in `ticks` {index: seconds}, read until each has `seconds` of packets."""
    packets: dict[int, list[PacketTimes]] = {index: [] for index in ticks}
    remaining = dict.fromkeys(ticks, seconds)
    streams = [stream for stream in default_streams(container).values() if stream.index in ticks]
    try:
        for position, packet in enumerate(demux_packets(container, streams)):
            if not packet.size:
                continue
            index, known = packet.stream_index, packets[packet.stream_index]
            previous = known[-1].dts if known else None
            if packet.dts is not None and previous is not None:
                remaining[index] -= min(max(0.0, (packet.dts - previous) * ticks[index]), LEAP_SECONDS)
            known.append(PacketTimes(position, packet.pts, packet.dts, packet.is_keyframe))
            if max(remaining.values()) < 0:
                break
    except av.error.MemoryError:
        raise
    except av.FFmpegError:
        pass
    are_video = {stream.index: isinstance(stream, av.VideoStream) for stream in streams}
    examined = {i: own for i, own in packets.items() if len(own) > 1 and any(p.dts is not None for p in own)}
    return {index: Timeline(are_video[index], ticks[index], own) for index, own in examined.items()}


def _to_repairs(timeline: Timeline, tick_seconds: float) -> StreamRepairs:
    shifts = np.array([round(shift / tick_seconds) for shift in timeline.shifts])
    is_stray = timeline.part_of < 0
    return StreamRepairs(shifts[timeline.part_of], is_stray, tuple(timeline.firsts[1:]), timeline.has_pts)
