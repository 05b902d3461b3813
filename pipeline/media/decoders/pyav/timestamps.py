"""Timestamps of a file, examined for strays and for parts whose clock differs.

Packets are stored in decoding order, so their decoding timestamps (DTS) increase steadily, and their presentation
timestamps (PTS) do so except where frames are reordered. What does not fit is decided with the packets around it and
the other stream as evidence:

- A few packets whose presentation timestamps (PTS) are outside the range of those around them, by more than any codec
  reorders frames, while the others continue, are strays. They lose their timestamps: a frame is shown after the one
  before it.
- Any number of packets whose DTS leave those of the stream and return to them are strays as well, unless those of the
  other stream do so at the same time.
- Timestamps that go back and stay there begin a new part, as where two recordings were joined. Its first frame follows
  the last one of the part before. If both streams leap by about the same time, both are moved by the same time, so that
  they stay synchronous.
- Timestamps that leap ahead begin a new part only if nothing vouches for the time between. A gap in one stream is
  genuine (a slide, a still screen, silence) if the other stream has packets meanwhile. If both have none for more than
  `LEAP_SECONDS`, it is a new part. A frame, however, may be shown for long after the audio has ended, or without audio:
  then only a gap of more than `STILL_SECONDS` begins a new part. Where frames usually last longer than half a second,
  both limits are the time of `NEIGHBOURS` frames.

The stated duration of a file is no evidence: it is computed from the same timestamps. FFmpeg itself corrects overflows
of the 33-bit clock of MPEG-TS.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

# FFmpeg's program uses the same two limits (`dts_delta_threshold`, and 0.1 s for timestamps that go back).
LEAP_SECONDS = 10.0
BACK_SECONDS = 0.1
STILL_SECONDS = 60.0
# Smaller departures are left as they are: a frame that is then out of order is dropped and counted.
STRAY_SECONDS = 0.5
# Packets before and after one that are its neighbours: no common codec reorders more than 16 frames.
NEIGHBOURS = 17
# Frame durations from which on the DTS of an excursion leap.
SHORTEST_LEAP = 5
MOST_TURNS = 100


class PacketTimes(NamedTuple):
    """The timestamps of a packet in ticks, its place among the packets of all streams, whether it is a key frame."""

    position: int
    pts: int | None
    dts: int | None
    is_key: bool


class Timeline:
    """The timestamps of one stream in seconds: `dts` and `times`, the PTS or, without one, the DTS; all [packet].

    - `usual`: the median duration of a packet. `positions`: the packets' places among those of all streams.
    - `part_of` int [packet]: the part that a packet belongs to, -1 for a stray; `firsts`, `shifts`: the first packet of
      each part, and by how many seconds the part is moved.
    - `has_pts`: whether packets have a PTS.
    """

    def __init__(self, is_video: bool, tick_seconds: float, packets: Sequence[PacketTimes]) -> None:
        self._is_video = is_video
        self.positions = [packet.position for packet in packets]
        self._is_key = [packet.is_key for packet in packets]
        self.has_pts = any(packet.pts is not None for packet in packets)
        pts = tick_seconds * np.array([np.nan if packet.pts is None else packet.pts for packet in packets])
        dts = tick_seconds * np.array([np.nan if packet.dts is None else packet.dts for packet in packets])
        last_known = np.maximum.accumulate(np.where(np.isnan(dts), -1, np.arange(len(dts))))
        self.dts = dts[np.where(last_known < 0, np.isfinite(dts).argmax(), last_known)]
        self.times = np.where(np.isnan(pts), self.dts, pts)
        steps = np.diff(self.dts)
        self.usual = float(np.median(steps[steps > 0])) if (steps > 0).any() else 0.0
        self._leap = max(LEAP_SECONDS, NEIGHBOURS * self.usual)
        self._still = max(STILL_SECONDS, NEIGHBOURS * self.usual)
        self.part_of = np.where(self._find_strays(), -1, 0)
        self.firsts, self.shifts = [0], [0.0]

    @property
    def needs_repairs(self) -> bool:
        """Whether there are strays or several parts."""
        return len(self.firsts) > 1 or bool((self.part_of < 0).any())

    def steady(self, around: slice) -> np.ndarray:
        """Return the times of the packets at the positions `around` that are no strays."""
        start, stop = np.searchsorted(self.positions, [around.start, np.inf if around.stop is None else around.stop])
        return self.times[start:stop][self.part_of[start:stop] >= 0]

    def _find_strays(self) -> np.ndarray:
        """Return bool [packet]: its time is not among those of the packets around it, which continue one another."""
        tolerance = max(STRAY_SECONDS, NEIGHBOURS * self.usual)
        windows = sliding_window_view(np.pad(self.times, NEIGHBOURS, mode="edge"), NEIGHBOURS)
        before, after = windows[: len(self.times)], windows[NEIGHBOURS + 1 :]
        is_late = self.times > np.quantile(after, 0.75, axis=1) + tolerance
        is_early = self.times < np.quantile(before, 0.25, axis=1) - tolerance
        is_steady = np.median(before, axis=1) <= np.median(after, axis=1)
        # The last packets have too few after them: one of them may as well be the last frame, shown after a long still.
        is_last = np.arange(len(self.times)) >= len(self.times) - NEIGHBOURS // 4
        is_stray = is_steady & (is_early | (is_late & ~is_last))
        is_stray |= is_last & (self.times - self.dts > self._still)
        # The first packet is padded with itself, so what precedes it is not steady.
        is_stray[0] = is_late[0] and self.times[0] > self.times[1] + tolerance
        return is_stray & (is_stray.mean() < 0.5)

    def find_excursions(self) -> list[range]:
        """Return the packets whose DTS leap ahead and then go back to where the stream was, or the other way round."""
        leaps = 1 + np.flatnonzero(np.diff(self.dts) > SHORTEST_LEAP * self.usual)
        excursions = []
        for turn in self._turns().tolist():
            amount = float(self.dts[turn - 1] - self.dts[turn])
            large = leaps[self.dts[leaps] - self.dts[leaps - 1] > amount / 2]
            ahead = [range(first, turn) for first in large[large < turn][::-1].tolist()]
            behind = [range(turn, stop) for stop in large[large > turn].tolist()]
            for candidates in (ahead, behind):
                excursions += [one for one in candidates if self._continues_after(one, amount / 2)][:1]
        return excursions

    def _continues_after(self, excursion: range, tolerance: float) -> bool:
        """Return whether the stream continues after the excursion, with or without the time of its packets."""
        gap = float(self.dts[excursion.stop] - self.dts[excursion.start - 1])
        usual_gaps = (self.usual, self.usual * (len(excursion) + 1))
        return any(abs(gap - usual) <= min(tolerance, STRAY_SECONDS) for usual in usual_gaps)

    def drop(self, excursions: Sequence[range]) -> None:
        """Make the packets of the excursions strays, unless most packets would be."""
        is_stray = self.part_of < 0
        for excursion in excursions:
            is_stray[excursion.start : excursion.stop] = True
        if is_stray.mean() < 0.5:
            self.part_of[is_stray] = -1

    def goes_back_with(self, other: "Timeline | None") -> np.ndarray:
        """Return bool [packet]: the DTS go back there by the time by which those of `other` go back nearby."""
        result = np.zeros(len(self.dts), dtype=bool)
        if other is None:
            return result
        for turn in self._turns():
            for of_other in other._turns():
                amounts = (float(line.dts[at] - line.dts[at - 1]) for line, at in ((self, turn), (other, of_other)))
                is_near = abs(self.positions[turn] - other.positions[of_other]) <= 4 * NEIGHBOURS
                result[turn] |= is_near and abs(next(amounts) - next(amounts)) <= BACK_SECONDS
        return result

    def _turns(self) -> np.ndarray:
        """Return the packets whose DTS are before those of the previous ones, which a whole stream has none of.

        Return none either if they are so many that the stream has no order to return to.
        """
        turns = 1 + np.flatnonzero(np.diff(self.dts) < -BACK_SECONDS)
        return turns[: 0 if len(turns) > MOST_TURNS else None]

    def find_parts(self, start_of_other: float | None, goes_back_together: np.ndarray) -> None:
        """Divide the stream into parts where its timestamps leap or go back and stay there.

        `goes_back_together` bool [packet]: where those of the other stream go back by the same time.
        """
        packets = np.flatnonzero(self.part_of >= 0)
        dts, times = self.dts[packets], self.times[packets]
        before = sliding_window_view(np.pad(times, (NEIGHBOURS, 0), mode="edge"), NEIGHBOURS)[1:-1]
        # Libavformat guesses the DTS of Matroska files: they may go back where frames are only reordered.
        is_certain = (times[1:] < before.min(axis=1)) | goes_back_together[packets[1:]]
        goes_back = (np.diff(dts) < -BACK_SECONDS) & is_certain
        leaps = times[1:] > before.max(axis=1) + self._leap
        self.firsts = [0, *packets[1:][goes_back | leaps].tolist()]
        self.part_of[packets] = np.searchsorted(self.firsts, packets, side="right") - 1
        for number, first in enumerate(self.firsts[1:], start=1):
            reordered = slice(first, first + NEIGHBOURS)
            is_before_leap = self.times[reordered] < self.times[first] - self._leap / 2
            self.part_of[reordered] -= is_before_leap & (self.part_of[reordered] == number)
        if start_of_other is not None and self._starts_with_strays(start_of_other):
            start = self.firsts[1]
            self._join(1)
            self.part_of[:start], self.firsts[0] = -1, start

    def join_genuine_gaps(self, others: Sequence["Timeline"]) -> None:
        """Join the parts that only a genuine gap separates."""
        for number in range(len(self.firsts) - 1, 0, -1):
            end, start = self._times(number - 1).max() + self.usual, self._times(number).min()
            # What other parts contain, whose clock differs, is no evidence.
            first, stop = self.positions[self.firsts[number - 1]], [*self.firsts[1:], None][number]
            around = slice(first, None if stop is None else self.positions[stop])
            steady = np.concatenate([[], *(other.steady(around) for other in others)])
            meanwhile = np.sort([end, *steady[(steady >= end) & (steady <= start)], start])
            longest_gap = np.diff(meanwhile).max(initial=0)
            continues = bool((steady >= start).any())
            limit = self._still if self._is_video and not continues else self._leap
            if end <= start and longest_gap <= limit:
                self._join(number)

    def needed_shift(self, number: int) -> float:
        """Return the shift with which part `number` follows the previous part, as that is placed.

        A part that starts with a key frame follows the last frame shown. Another one continues the coded stream, so its
        packets follow the previous ones.
        """
        first, shift = self.firsts[number], self.shifts[number - 1]
        is_decoded_at = self.dts[first] if abs(self.times[first] - self.dts[first]) < self._leap / 2 else None
        if self._is_key[first] or is_decoded_at is None:
            return shift + float(self._times(number - 1).max() + self.usual - self._times(number).min())
        previous = np.flatnonzero(self.part_of[:first] == number - 1)[-1]
        return shift + float(self.dts[previous] + self.usual - is_decoded_at)

    def _starts_with_strays(self, start_of_other: float) -> bool:
        """Return whether the first part is a few packets, and the other stream starts where the second part starts."""
        if len(self.firsts) < 2 or self.firsts[1] * self.usual > STRAY_SECONDS:
            return False
        first, second = (abs(self.times[first] - start_of_other) for first in self.firsts[:2])
        return bool(second < first)

    def _times(self, number: int) -> np.ndarray:
        return self.times[self.part_of == number]

    def _join(self, number: int) -> None:
        """Make part `number` the continuation of the previous one."""
        self.part_of[self.part_of >= number] -= 1
        del self.firsts[number]


def examine(timelines: Sequence[Timeline]) -> None:
    """Find the strays and the parts of the streams of a file, and place the parts after one another."""
    found = [timeline.find_excursions() for timeline in timelines]
    for timeline, own, others in zip(timelines, found, found[::-1], strict=True):
        other = _other(timeline, timelines)
        is_alone = [other is None or not any(_overlap(timeline, one, other, each) for each in others) for one in own]
        timeline.drop([excursion for excursion, alone in zip(own, is_alone, strict=True) if alone])
    for timeline in timelines:
        other = _other(timeline, timelines)
        timeline.find_parts(None if other is None else other.times[0], timeline.goes_back_with(other))
    for timeline in timelines:
        timeline.join_genuine_gaps([other for other in timelines if other is not timeline])
    _shift_parts(timelines)


def _other(timeline: Timeline, timelines: Sequence[Timeline]) -> Timeline | None:
    return next((other for other in timelines if other is not timeline), None)


def _overlap(timeline: Timeline, excursion: range, other: Timeline, of_other: range) -> bool:
    """Return whether two excursions have the same place in the file, up to the interleaving of the streams."""
    first, last = timeline.positions[excursion[0]], timeline.positions[excursion[-1]]
    start, end = other.positions[of_other[0]], other.positions[of_other[-1]]
    return start - 2 * NEIGHBOURS <= last and first - 2 * NEIGHBOURS <= end


def _shift_parts(timelines: Sequence[Timeline]) -> None:
    """Place the parts of all streams after one another; both streams by the same time where they leap together."""

    def next_position(timeline: Timeline) -> int:
        return timeline.positions[timeline.firsts[len(timeline.shifts)]]

    while pending := [timeline for timeline in timelines if len(timeline.shifts) < len(timeline.firsts)]:
        first = min(pending, key=next_position)
        needed = [timeline.needed_shift(len(timeline.shifts)) for timeline in pending]
        own = needed[pending.index(first)]
        together = [abs(shift - own) <= LEAP_SECONDS for shift in needed]
        common = max(shift for shift, is_near in zip(needed, together, strict=True) if is_near)
        for timeline, is_near in zip(pending, together, strict=True):
            if is_near:
                timeline.shifts.append(common)
