"""Which pictures need no decoding: those that no other refers to and that are shown at no moment looked at.

FFmpeg leaves out a picture that no other picture refers to without touching the others; which pictures those are is
the stream's to say. Which moments are looked at is `pipeline.timeline`'s. This file decodes nothing.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import cast

import av

# Compressed pictures looked at before one is decoded; no common codec reorders more than 16.
WINDOW = 32
# Two fields of one picture may come as two packets, so one later timestamp does not make a later picture sure.
LATER_PICTURES = 2


class PacketWindow:
    """Hand on the packets of a file in their order, each when the next pictures are known.

    `rates`: the frames per second that are looked at. Nothing is left out before `start` was called.
    """

    def __init__(self, packets: Iterator[av.Packet], video: av.VideoStream | None, rates: Sequence[int]) -> None:
        self._packets, self._video, self._rates = packets, video, rates
        self._t0: Fraction | None = None
        self._shown: deque[int] = deque(maxlen=WINDOW)

    def start(self, t0: Fraction) -> None:
        """Be told where the time axis begins; its moments are t0 + (n + 1/2) / rate."""
        self._t0 = t0

    def __iter__(self) -> Iterator[tuple[av.Packet, bool]]:
        """Yield each packet and whether its picture must be decoded, whatever refers to it."""
        held: deque[av.Packet] = deque()
        coming: deque[int] = deque()
        for packet in self._packets:
            held.append(packet)
            if self._is_shown(packet):
                coming.append(cast(int, packet.pts))
            while len(coming) > WINDOW:
                yield self._hand_on(held, coming)
        while held:
            yield self._hand_on(held, coming)

    def _hand_on(self, held: deque[av.Packet], coming: deque[int]) -> tuple[av.Packet, bool]:
        packet = held.popleft()
        if not self._is_shown(packet):
            return packet, True
        start = coming.popleft()
        self._shown.append(start)
        if self._t0 is None:
            return packet, True
        last = self._next_moment(start * packet.time_base) // packet.time_base
        later = sum(start < pts <= last for pts in (*self._shown, *coming))
        return packet, later < LATER_PICTURES

    def _is_shown(self, packet: av.Packet) -> bool:
        return packet.stream is self._video and packet.pts is not None and not packet.is_discard

    def _next_moment(self, start: Fraction) -> Fraction:
        assert self._t0 is not None
        since = start - self._t0
        return self._t0 + min((-((1 - 2 * rate * since) // 2) + Fraction(1, 2)) / rate for rate in self._rates)
