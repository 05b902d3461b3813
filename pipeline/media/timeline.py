"""The shared time axis of a video: what decoded media are, and which frame and sound belong to which second.

It opens no file and knows no decoder: decoders hand timestamps in, `pipeline.media.decoders` says how. t0 is the
smallest first timestamp of the default video and audio streams; step k covers [t0 + k, t0 + k + 1). Times
are exact fractions of a second, so that a frame that starts at a step's middle is never missed by rounding.
"""

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import Any, Generic, Literal, TypeVar

import numpy as np

from pipeline.store.schema import State

DURATION_SLACK_SECONDS = 0.02
AUDIO_COVERAGE = 0.9
JITTER_SECONDS = 0.02

Picture = TypeVar("Picture")

Padding = Literal["pad", "cycle", "released"]


@dataclass(frozen=True)
class FrameSize:
    """How a frame is made square for a network.

    `stretch` resizes to exactly size x size; `crop` resizes the shorter side to `shorter_side` pixels and
    cuts the centre size x size. `filter` is Pillow's resampling filter. `per_second`: how many frames of each
    step there are, spread evenly inside it.
    """

    mode: Literal["stretch", "crop"]
    size: int
    shorter_side: int = 0
    filter: Literal["bilinear", "bicubic"] = "bilinear"
    per_second: int = 1

    def constants(self) -> dict[str, Any]:
        """Return how a frame is made square, as JSON values; which frames those are is the sampling's to say."""
        return {"mode": self.mode, "size": self.size, "shorter_side": self.shorter_side, "filter": self.filter}


@dataclass(frozen=True)
class DecodeRequest:
    """What to decode of one file: at most `seconds` steps, the frames at each of `frame_sizes`, the sound.

    Without frame sizes the visual track, without `wants_audio` the audio track is `pending` (or absent).
    `max_pixels` bounds one frame's height x width. Raises ValueError where several frames of a second are asked
    of the `released` rule, which counts single ones.
    """

    seconds: int = 60
    frame_sizes: tuple[FrameSize, ...] = ()
    wants_audio: bool = True
    padding: Padding = "pad"
    max_pixels: int = 64_000_000

    def __post_init__(self) -> None:
        if self.padding == "released" and any(size.per_second > 1 for size in self.frame_sizes):
            raise ValueError("the released rule gives one frame a second, not several")


@dataclass(frozen=True)
class Track:
    """One modality of one decoded video: its state, its steps (0 unless complete), the reason."""

    state: State
    steps: int = 0
    reason: str = ""


@dataclass(frozen=True)
class Media:
    """One decoded video on the shared time axis.

    `frames[size]`: uint8 [time x per_second, height, width, 3], RGB, `size.per_second` rows for each of
    `visual.steps` steps (`seconds` steps for `released`). `waveform`: float32 [sample], mono in [-1, 1],
    starting at t0, `audio.steps` seconds long at `sample_rate_hz`, padded with zeros to whole seconds. Both
    are empty unless their track is complete.
    """

    visual: Track
    audio: Track
    frames: dict[FrameSize, np.ndarray] = field(default_factory=dict)
    waveform: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    sample_rate_hz: int = 0


def fail_media(reason: str) -> Media:
    """Return the media of a file of which nothing can be had."""
    failed = Track(State.FAILED, reason=reason)
    return Media(visual=failed, audio=failed)


def count_steps(duration_seconds: float, seconds: int) -> int:
    """Return the steps of a modality that lasts `duration_seconds` past t0: 1 to `seconds`."""
    return max(1, min(seconds, math.ceil(duration_seconds - DURATION_SLACK_SECONDS)))


@dataclass
class _Candidate(Generic[Picture]):
    """One frame that may be chosen: shown from `start` until the next one, converted at most once."""

    start: Fraction
    duration: Fraction
    take: Callable[[], Picture]

    @cached_property
    def picture(self) -> Picture:
        return self.take()


class FrameSelector(Generic[Picture]):
    """Choose for each step k the frame shown at t0 + k + 0.5, in one pass over frames in presentation order.

    A frame is shown from its timestamp until the next one's, the last one for its duration. If none is
    shown at a step's middle, the nearest inside the step is chosen, else the last before it. A frame that
    was lost is not replaced by one from an earlier step: that step stays without a frame (None). Only one
    undecided frame is kept.

    With n = `per_second` frames of each step, the same holds of its n equal parts: part j is looked at in its
    middle, t0 + k + (j + 0.5) / n.
    """

    def __init__(self, t0: Fraction, seconds: int, per_second: int = 1) -> None:
        self._t0 = t0
        self._seconds = seconds
        self._per_second = per_second
        self._rows: list[Picture | None] = []
        self._half = Fraction(1, 2 * per_second)
        self._middle = t0 + self._half
        self._current: _Candidate[Picture] | None = None
        self._lost: dict[Fraction, Fraction] = {}
        self._is_past = False

    @property
    def is_done(self) -> bool:
        """True once every step is decided: what follows cannot change the choice."""
        return len(self._rows) >= self._seconds * self._per_second or self._is_past

    def feed(self, start: Fraction, duration: Fraction, take: Callable[[], Picture]) -> None:
        """Offer the frame shown from `start`; `take` converts it and is called only if the frame is chosen.

        A frame that starts no later than the one before it cannot be shown in order and is passed over.
        """
        self._lost.pop(start, None)
        if self._current is not None and start <= self._current.start:
            return
        candidate = _Candidate(start, duration, take)
        while not self.is_done and self._middle < start:
            self._decide(candidate)
        self._current = candidate

    def lose(self, start: Fraction, duration: Fraction) -> None:
        """Report a frame that could not be decoded: no other counts as shown while it should have been."""
        self._lost[start] = start + duration
        self._is_past = start > self._t0 + self._seconds + 1

    def finish(self) -> list[Picture | None]:
        """Return `per_second` pictures per step of the video's real duration, None where there is none.

        Lost frames at the end shorten the video by less than a second; a longer lost end is steps without a
        frame. Without any frame the list is empty.
        """
        if self._current is None:
            return []
        end = self._current.start + self._current.duration
        lost_end = max(self._lost.values(), default=end)
        if lost_end - end >= 1:
            end = lost_end
        steps = count_steps(float(end - self._t0), self._seconds)
        while len(self._rows) < steps * self._per_second:
            self._decide(None)
        return self._rows

    def _decide(self, following: _Candidate[Picture] | None) -> None:
        self._rows.append(self._choose(self._middle, following))
        self._middle += 2 * self._half

    def _choose(self, middle: Fraction, following: _Candidate[Picture] | None) -> Picture | None:
        shown = self._current
        if shown is not None and not any(shown.start < lost <= middle for lost in self._lost):
            return shown.picture
        begin, end = middle - self._half, middle + self._half
        inside = [c for c in (shown, following) if c is not None and begin <= c.start < end]
        return min(inside, key=lambda c: abs(c.start - middle)).picture if inside else None


def bridge_losses(rows: Sequence[Picture | None], per_second: int) -> list[Picture | None]:
    """Return `rows`, `per_second` pictures per step, with each None replaced by the nearest of its own step.

    A step that `FrameSelector` gives a picture of its middle always has one here too, so what a modality lacks
    does not depend on how many frames of a second were asked for. Of two equally near the earlier one is taken.
    """
    bridged: list[Picture | None] = []
    for first in range(0, len(rows), per_second):
        step = rows[first : first + per_second]
        there = [place for place, picture in enumerate(step) if picture is not None]
        for place in range(len(step)):
            nearest = min(there, key=lambda other: abs(other - place), default=place)
            bridged.append(step[nearest])
    return bridged


class ReleasedSelector(Generic[Picture]):
    """Choose frames as the official script does: by counting, a short video cycling through its last second.

    Step k takes the 1-based frame p = round((k + 0.5) fps); past the last of N frames it takes
    start + 1 + ((p - start - 1) mod last), with last = int(N mod fps), or int(fps) if that is 0, and
    start = N - last.
    Source: MUSIC-AVQA, extract_frames_adaptive.py.
    Differs from the released code: N is the count of decoded frames, not one more than the container's claim.
    """

    def __init__(self, frames_per_second: Fraction, seconds: int) -> None:
        self._fps = frames_per_second
        positions = [round((Fraction(2 * step + 1, 2)) * frames_per_second) for step in range(seconds)]
        self._positions = [max(1, position) for position in positions]
        self._chosen: dict[int, Picture] = {}
        self._tail: deque[Picture] = deque(maxlen=max(1, int(frames_per_second)))
        self._count = 0

    @property
    def is_done(self) -> bool:
        """True once the last step's frame has been seen."""
        return self._count >= self._positions[-1]

    def feed(self, start: Fraction, duration: Fraction, take: Callable[[], Picture]) -> None:
        """Count the next frame, whatever its time. Each is converted: any may be of the last second."""
        self._count += 1
        picture = take()
        self._tail.append(picture)
        if self._count in self._positions:
            self._chosen[self._count] = picture

    def lose(self, start: Fraction, duration: Fraction) -> None:
        """Pass over a frame that could not be decoded: the official script does not count it either."""

    def finish(self) -> list[Picture | None]:
        """Return one picture per requested second, or [] without frames."""
        if self._count == 0:
            return []
        last = int(self._count % self._fps) or max(1, int(self._fps))
        start = max(0, self._count - last)
        return [self._at(position, start, last) for position in self._positions]

    def _at(self, position: int, start: int, last: int) -> Picture:
        if position <= self._count:
            return self._chosen[position]
        wrapped = start + 1 + (position - start - 1) % min(last, self._count)
        return self._tail[wrapped - 1 - self._count]


class WaveformAssembler:
    """Place decoded sound on the time axis by its timestamps: gaps are zeros, what overlaps is dropped.

    Timestamps are often rounded to a millisecond: a block that starts within 20 ms of the end of the one
    before it continues it.
    """

    def __init__(self, t0: Fraction, seconds: int, sample_rate_hz: int) -> None:
        self._t0 = t0
        self._seconds = seconds
        self._rate = sample_rate_hz
        self._limit = seconds * sample_rate_hz
        self._blocks: list[tuple[int, np.ndarray]] = []
        self._end: int | None = None
        self._span = (self._limit, 0)

    @property
    def is_done(self) -> bool:
        """True once sound at or past the last requested second has been seen."""
        return self._span[1] >= self._limit

    def feed(self, start: Fraction, samples: np.ndarray) -> None:
        """Place the block `samples` [sample], float32, whose first sample sounds at `start`."""
        at = self._index(start)
        if self._end is not None and abs(at - self._end) <= JITTER_SECONDS * self._rate:
            at = self._end
        self._extend_span(at, at + len(samples))
        floor = max(0, self._end or 0)
        block = samples[max(0, floor - at) :]
        at = max(at, floor)
        self._end = at + len(block)
        block = block[: max(0, self._limit - at)]
        if len(block):
            self._blocks.append((at, block))

    def lose(self, start: Fraction, duration: Fraction) -> None:
        """Report sound that could not be decoded: it counts as missing where nothing else is placed."""
        self._extend_span(self._index(start), self._index(start + duration))

    def finish(self) -> tuple[np.ndarray, int, float]:
        """Return (waveform, steps, coverage).

        `waveform` float32 [sample] in [-1, 1] is `steps` whole seconds long, with zeros where nothing was
        placed; `coverage` is the share of the samples, from the first to the last within the requested
        seconds, that were decoded to a finite number. Without any sample: empty, 0 steps, 0.
        """
        if not self._blocks:
            return np.zeros(0, np.float32), 0, 0.0
        last, block = self._blocks[-1]
        steps = count_steps((last + len(block)) / self._rate, self._seconds)
        waveform = np.full(self._limit, np.nan, np.float32)
        for at, block in self._blocks:
            waveform[at : at + len(block)] = block
        covered = np.isfinite(waveform).sum()
        waveform[~np.isfinite(waveform)] = 0
        first, end = max(0, self._span[0]), min(self._limit, self._span[1])
        return np.clip(waveform[: steps * self._rate], -1, 1), steps, float(covered / (end - first))

    def _index(self, moment: Fraction) -> int:
        """Return the sample at `moment`, the nearest, of two the even one; in whole numbers for speed."""
        since, of_since = moment.as_integer_ratio()
        t0, of_t0 = self._t0.as_integer_ratio()
        whole, rest = divmod((since * of_t0 - t0 * of_since) * self._rate, of_since * of_t0)
        return whole + (2 * rest + whole % 2 > of_since * of_t0)

    def _extend_span(self, start: int, end: int) -> None:
        self._span = (min(self._span[0], start), max(self._span[1], end))
