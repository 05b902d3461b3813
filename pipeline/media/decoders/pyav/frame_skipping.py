"""Which pictures need no decoding: those that no other refers to and that are shown at no moment looked at.

FFmpeg leaves out a picture that no other picture refers to without touching the others; which pictures those are is
the stream's to say. Which moments are looked at is `pipeline.media.timeline`'s. This file decodes nothing. A packet
that is damaged and whose picture is left out is not noticed.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import chain, islice
from typing import cast

import av

# Compressed pictures looked at before one is decoded; no common codec reorders more than 16.
WINDOW = 32
# All packets held meanwhile, sound included.
HELD_PACKETS = 500
# Two fields of one picture may come as two packets, so one later timestamp does not make a later picture sure.
LATER_PICTURES = 2


class PacketWindow:
    """Hand on the packets of a file in their order, each when the next pictures are known.

    `rates`: the frames per second that are looked at. Nothing is left out before `start` was called and a picture
    came. Every picture handed on as wanted must come, in the order in which they are shown (`came`): a decoder that
    guesses how pictures are reordered may drop one without a word, and another one when others are left out.
    """

    def __init__(self, packets: Iterator[av.Packet], video: av.VideoStream | None, rates: Sequence[int]) -> None:
        self._packets, self._video, self._rates = packets, video, rates
        self._t0: Fraction | None = None
        self._shown: deque[int] = deque(maxlen=WINDOW)
        self._awaited: set[int] = set()
        self._has_come = self.has_left_out = False

    def start(self, t0: Fraction) -> None:
        """Be told where the time axis begins; its moments are t0 + (n + 1/2) / rate."""
        self._t0 = t0

    def came(self, pts: int) -> bool:
        """Be told of a decoded picture; return whether every wanted one that is shown before it has come."""
        self._has_come = True
        self._awaited.discard(pts)
        return not any(awaited < pts for awaited in self._awaited)

    @property
    def is_settled(self) -> bool:
        """Whether every wanted picture has come."""
        return not self._awaited

    def __iter__(self) -> Iterator[tuple[av.Packet, bool]]:
        """Yield each packet and whether its picture must be decoded, whatever refers to it."""
        held: deque[av.Packet] = deque()
        coming: deque[int] = deque()
        for packet in self._packets:
            held.append(packet)
            if self._is_shown(packet):
                coming.append(cast(int, packet.pts))
            while len(coming) > WINDOW or len(held) > HELD_PACKETS:
                yield self._hand_on(held, coming)
        while held:
            yield self._hand_on(held, coming)

    def _hand_on(self, held: deque[av.Packet], coming: deque[int]) -> tuple[av.Packet, bool]:
        packet = held.popleft()
        if not self._is_shown(packet):
            return packet, True
        start = coming.popleft()
        self._shown.append(start)
        is_wanted = not self._has_come or self._is_looked_at(start, packet.time_base, coming)
        if is_wanted:
            self._awaited.add(start)
        self.has_left_out |= not is_wanted
        return packet, is_wanted

    def _is_looked_at(self, start: int, tick: Fraction, coming: deque[int]) -> bool:
        if self._t0 is None:
            return True
        last = self._end_of_doubt(start, tick)
        later = (pts for pts in chain(coming, self._shown) if start < pts <= last)
        return len(list(islice(later, LATER_PICTURES))) < LATER_PICTURES

    def _is_shown(self, packet: av.Packet) -> bool:
        return packet.stream is self._video and packet.pts is not None and not packet.is_discard

    def _end_of_doubt(self, start: int, tick: Fraction) -> int:
        """Return the last timestamp that is not past the next moment, `start` or later; in whole numbers for speed."""
        assert self._t0 is not None
        t0, of_t0 = self._t0.as_integer_ratio()
        ticks, of_ticks = tick.as_integer_ratio()
        second = of_t0 * of_ticks
        since = start * ticks * of_t0 - t0 * of_ticks
        ends = []
        for rate in self._rates:
            number = -((second - 2 * rate * since) // (2 * second))
            ends.append((2 * rate * t0 + (2 * number + 1) * of_t0) * of_ticks // (2 * rate * of_t0 * ticks))
        return min(ends)
