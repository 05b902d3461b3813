"""The shared time axis of a video: decoded media, and the selection of the frame and audio of each second.

t0 is the smallest first timestamp of the default video and audio streams; step k covers [t0 + k, t0 + k + 1). Times
are exact fractions of a second, so that rounding never misses a frame that starts at the middle of a step. Files are
opened and timestamps read in `pipeline.media.decoders`.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import Any, Generic, Literal, TypeVar

import numpy as np

from pipeline.store.schema import State

DURATION_SLACK_SECONDS = 0.02
# The least share of what a modality has that must be decoded and have a place on the time axis.
COVERAGE = 0.9
JITTER_SECONDS = 0.02

Frame = TypeVar("Frame")

Padding = Literal["pad", "cycle", "released"]


@dataclass(frozen=True)
class FrameSize:
    """The square image that a network expects of each frame.

    `stretch` resizes to exactly size x size; `crop` resizes the shorter side to `shorter_side` pixels and crops the
    central size x size. `filter` is Pillow's resampling filter. `per_second`: number of frames per step, evenly spaced.
    """

    mode: Literal["stretch", "crop"]
    size: int
    shorter_side: int = 0
    filter: Literal["bilinear", "bicubic"] = "bilinear"
    per_second: int = 1

    def constants(self) -> dict[str, Any]:
        """Return the resizing parameters as JSON values; `per_second` is part of the sampling rule instead."""
        return {"mode": self.mode, "size": self.size, "shorter_side": self.shorter_side, "filter": self.filter}


@dataclass(frozen=True)
class DecodeRequest:
    """What to decode of one file: at most `seconds` steps, the frames at each of `frame_sizes`, the audio.

    Without frame sizes the visual track is `pending` (or absent), without `wants_audio` the audio track. With
    `wants_released_audio` the audio is also returned as the official features heard it. `max_pixels` limits the
    height x width of a frame. `on_frame` is called with the height x width of each decoded frame.

    Raises `ValueError` if several frames per second are requested with the padding `released`, which selects one.
    """

    seconds: int = 60
    frame_sizes: tuple[FrameSize, ...] = ()
    wants_audio: bool = True
    wants_released_audio: bool = False
    padding: Padding = "pad"
    max_pixels: int = 64_000_000
    on_frame: Callable[[int], None] = field(default=lambda pixels: None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.padding == "released" and any(size.per_second > 1 for size in self.frame_sizes):
            raise ValueError("padding released selects one frame per second, not several")


@dataclass(frozen=True)
class Track:
    """One modality of one decoded video: its state, its steps (0 unless complete), the reason.

    The modality has the steps `first` to `steps` - 1 of the time axis. `first` is not 0 if it starts late.
    """

    state: State
    steps: int = 0
    reason: str = ""
    first: int = 0


@dataclass(frozen=True)
class Media:
    """One decoded video on the shared time axis.

    `frames[size]`: uint8 [time x per_second, height, width, 3], RGB, `size.per_second` rows for each of
    `visual.steps` steps (`seconds` steps for `released`). `waveform`: float32 [sample], mono in [-1, 1],
    starting at t0, `audio.steps` seconds long at `sample_rate_hz`, padded with zeros to whole seconds.
    `released_waveform`: float32 [sample], as long, at 16 kHz, starting with the first audio of the file whatever its
    timestamp (`pipeline.media.released_audio`); only if requested. Each is empty unless its track is complete. In the
    steps before the first one of their track, frames are black and the waveform has no more than
    `DURATION_SLACK_SECONDS` of audio.
    """

    visual: Track
    audio: Track
    frames: dict[FrameSize, np.ndarray] = field(default_factory=dict)
    waveform: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    sample_rate_hz: int = 0
    released_waveform: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))


def fail_media(reason: str) -> Media:
    """Return the media of a file that cannot be decoded: both tracks failed with `reason`."""
    failed = Track(State.FAILED, reason=reason)
    return Media(visual=failed, audio=failed)


def count_steps(duration_seconds: float, seconds: int) -> int:
    """Return the number of steps of a modality that ends `duration_seconds` after t0: 1 to `seconds`."""
    return max(1, min(seconds, math.ceil(duration_seconds - DURATION_SLACK_SECONDS)))


def first_step(delay_seconds: float, steps: int) -> int:
    """Return the first step of a modality of `steps` steps that starts `delay_seconds` after t0."""
    return max(0, min(steps - 1, math.floor(delay_seconds + DURATION_SLACK_SECONDS)))


@dataclass
class _Candidate(Generic[Frame]):
    """A frame that may be selected: shown from `start` until the next one, converted at most once."""

    start: Fraction
    duration: Fraction
    convert: Callable[[], Frame]

    @cached_property
    def converted(self) -> Frame:
        return self.convert()


class FrameSelector(Generic[Frame]):
    """Select for each step k the frame shown at t0 + k + 0.5, in one pass over frames in presentation order.

    A frame is shown from its timestamp until the next frame's; the last one for its duration. If no frame is shown at
    the middle of a step, the nearest inside the step is selected, else the last before it. A lost frame is not replaced
    by one of an earlier step: its step then has no frame (None). Only one undecided frame is kept in memory.

    With n = `per_second` frames per step, the same rule applies to the n equal parts of a step: part j is sampled at
    its middle, t0 + k + (j + 0.5) / n.
    """

    def __init__(self, t0: Fraction, seconds: int, per_second: int = 1) -> None:
        self._t0 = t0
        self._seconds = seconds
        self._per_second = per_second
        self._rows: list[Frame | None] = []
        self._half = Fraction(1, 2 * per_second)
        self._middle = t0 + self._half
        self._current: _Candidate[Frame] | None = None
        self._lost: dict[Fraction, Fraction] = {}
        self._is_past = False

    @property
    def is_done(self) -> bool:
        """Whether every step is decided, so that later frames cannot change the selection."""
        return len(self._rows) >= self._seconds * self._per_second or self._is_past

    def add(self, start: Fraction, duration: Fraction, convert: Callable[[], Frame]) -> None:
        """Add the frame shown from `start`; `convert` is called only if the frame is selected.

        A frame that does not start later than the previous one is out of order and ignored.
        """
        self._lost.pop(start, None)
        if self._current is not None and start <= self._current.start:
            return
        candidate = _Candidate(start, duration, convert)
        while not self.is_done and self._middle < start:
            self._decide(candidate)
        self._current = candidate

    def add_lost(self, start: Fraction, duration: Fraction) -> None:
        """Add a frame that could not be decoded: no other frame counts as shown during its time."""
        self._lost[start] = start + duration
        self._is_past = start > self._t0 + self._seconds + 1

    def finish(self) -> list[Frame | None]:
        """Return `per_second` frames per step of the video's actual duration, None for each missing one.

        Steps before the first frame have none. Less than a second of lost frames at the end shortens the video; a
        longer lost end becomes steps without a frame. The list is empty if there was no frame.
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

    def _decide(self, following: _Candidate[Frame] | None) -> None:
        self._rows.append(self._select(self._middle, following))
        self._middle += 2 * self._half

    def _select(self, middle: Fraction, following: _Candidate[Frame] | None) -> Frame | None:
        shown = self._current
        if shown is not None and not any(shown.start < lost <= middle for lost in self._lost):
            return shown.converted
        begin, end = middle - self._half, middle + self._half
        inside = [c for c in (shown, following) if c is not None and begin <= c.start < end]
        return min(inside, key=lambda c: abs(c.start - middle)).converted if inside else None


def fill_lost_frames(rows: Sequence[Frame | None], per_second: int) -> list[Frame | None]:
    """Return `rows`, `per_second` frames per step, with each None replaced by the nearest frame of its own step.

    Of two equally near frames the earlier one is used. A step for which `FrameSelector` finds a frame at one per second
    also has frames here, so the missing steps of a modality do not depend on the number of frames per second.
    """
    filled: list[Frame | None] = []
    for first in range(0, len(rows), per_second):
        step = rows[first : first + per_second]
        available = [index for index, frame in enumerate(step) if frame is not None]
        for index in range(len(step)):
            nearest = min(available, key=lambda other: abs(other - index), default=index)
            filled.append(step[nearest])
    return filled


class ReleasedSelector(Generic[Frame]):
    """Select frames as the official script does: by counting; a short video cycles through its last second.

    Step k takes the 1-based frame p = round((k + 0.5) fps); past the last of N frames it takes
    start + 1 + ((p - start - 1) mod last), with last = int(N mod fps), or int(fps) if that is 0, and
    start = N - last.
    Source: MUSIC-AVQA, extract_frames_adaptive.py.
    Differs from the released code: N is the number of decoded frames, not the container's frame count plus one.
    """

    def __init__(self, frames_per_second: Fraction, seconds: int) -> None:
        self._fps = frames_per_second
        positions = [round((Fraction(2 * step + 1, 2)) * frames_per_second) for step in range(seconds)]
        self._positions = [max(1, position) for position in positions]
        self._selected: dict[int, Frame] = {}
        self._tail: deque[Frame] = deque(maxlen=max(1, int(frames_per_second)))
        self._count = 0

    @property
    def is_done(self) -> bool:
        """Whether the frame of the last step was added."""
        return self._count >= self._positions[-1]

    def add(self, start: Fraction, duration: Fraction, convert: Callable[[], Frame]) -> None:
        """Count the next frame, whatever its timestamp. Every frame is converted: any may belong to the last second."""
        self._count += 1
        frame = convert()
        self._tail.append(frame)
        if self._count in self._positions:
            self._selected[self._count] = frame

    def add_lost(self, start: Fraction, duration: Fraction) -> None:
        """Ignore a frame that could not be decoded: the official script does not count it either."""

    def finish(self) -> list[Frame | None]:
        """Return one frame per requested second, or [] if there was no frame."""
        if self._count == 0:
            return []
        last = int(self._count % self._fps) or max(1, int(self._fps))
        start = max(0, self._count - last)
        return [self._at(position, start, last) for position in self._positions]

    def _at(self, position: int, start: int, last: int) -> Frame:
        if position <= self._count:
            return self._selected[position]
        wrapped = start + 1 + (position - start - 1) % min(last, self._count)
        return self._tail[wrapped - 1 - self._count]


class WaveformAssembler:
    """Place decoded audio on the time axis by its timestamps: gaps become zeros, overlapping samples are dropped.

    Timestamps are often rounded to a millisecond: a block that starts within 20 ms of the end of the previous one is
    placed directly after it.
    """

    def __init__(self, t0: Fraction, seconds: int, sample_rate_hz: int) -> None:
        self._t0 = t0
        self._seconds = seconds
        self._rate = sample_rate_hz
        self._limit = seconds * sample_rate_hz
        self._blocks: list[tuple[int, np.ndarray]] = []
        self._end: int | None = None
        self._reached = 0
        self._overlap = 0

    @property
    def is_done(self) -> bool:
        """Whether audio, decoded or lost, has reached the end of the last requested second."""
        return self._reached >= self._limit

    def add(self, start: Fraction, samples: np.ndarray) -> None:
        """Place the block `samples` [sample], float32, whose first sample is at `start`."""
        first = self._sample_index(start)
        if self._end is not None and abs(first - self._end) <= JITTER_SECONDS * self._rate:
            first = self._end
        self._reached = max(self._reached, first + len(samples))
        free = max(0, self._end or 0)
        self._overlap += max(0, min(free, first + len(samples)) - max(0, first))
        block = samples[max(0, free - first) :]
        first = max(first, free)
        self._end = first + len(block)
        block = block[: max(0, self._limit - first)]
        if len(block):
            self._blocks.append((first, block))

    def add_lost(self, start: Fraction, duration: Fraction) -> None:
        """Add audio that could not be decoded: it counts as missing unless other samples are placed there."""
        self._reached = max(self._reached, self._sample_index(start + duration))

    @property
    def delay_seconds(self) -> float:
        """The time from t0 to the first placed sample, 0 without any."""
        return self._blocks[0][0] / self._rate if self._blocks else 0.0

    @property
    def overlap_seconds(self) -> float:
        """The duration of the samples that were dropped because others had been placed at their time."""
        return self._overlap / self._rate

    def finish(self) -> tuple[np.ndarray, int, float]:
        """Return (waveform, steps, coverage).

        `waveform` float32 [sample] in [-1, 1] is `steps` whole seconds long, zero where no sample was placed;
        `coverage` is the share of finite decoded samples among those from the first placed one to the last, decoded or
        lost, within the requested seconds. Without any sample: empty, 0 steps, coverage 0.
        """
        if not self._blocks:
            return np.zeros(0, np.float32), 0, 0.0
        last, block = self._blocks[-1]
        steps = count_steps((last + len(block)) / self._rate, self._seconds)
        waveform = np.full(max(steps * self._rate, last + len(block)), np.nan, np.float32)
        for index, block in self._blocks:
            waveform[index : index + len(block)] = block
        covered = np.isfinite(waveform).sum()
        waveform[~np.isfinite(waveform)] = 0
        first = self._blocks[0][0]
        coverage = float(covered / (min(self._limit, self._reached) - first))
        return np.clip(waveform[: steps * self._rate], -1, 1), steps, coverage

    def parts(self) -> Iterator[tuple[Fraction, np.ndarray]]:
        """Yield (start in seconds, samples) of each run of placed samples without a gap."""
        run: list[np.ndarray] = []
        begin = end = 0
        for first, block in self._blocks:
            if run and first != end:
                yield self._t0 + Fraction(begin, self._rate), np.concatenate(run)
                run = []
            begin = begin if run else first
            end = first + len(block)
            run.append(block)
        if run:
            yield self._t0 + Fraction(begin, self._rate), np.concatenate(run)

    def _sample_index(self, moment: Fraction) -> int:
        """Return the index of the sample nearest to `moment`, the even one of two; integer arithmetic for speed."""
        numerator, denominator = moment.as_integer_ratio()
        t0_numerator, t0_denominator = self._t0.as_integer_ratio()
        divisor = denominator * t0_denominator
        whole, rest = divmod((numerator * t0_denominator - t0_numerator * denominator) * self._rate, divisor)
        return whole + (2 * rest + whole % 2 > divisor)
