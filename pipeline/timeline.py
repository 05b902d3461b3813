"""The shared time axis of a video: what decoded media are, and which frame and sound belong to which second.

It opens no file and knows no decoder: decoders hand timestamps in, `pipeline.decode` says how.
t0 is the smallest first timestamp of the default video and audio streams; step k covers [t0 + k, t0 + k + 1).
"""

import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from pipeline.store.schema import State

DURATION_SLACK_SECONDS = 0.02
AUDIO_COVERAGE = 0.9

Short = Literal["pad", "cycle", "released"]


@dataclass(frozen=True)
class FrameSize:
    """How a frame is made square for a network.

    `stretch` resizes to exactly size x size; `crop` resizes the shorter side to `shorter_side` pixels and cuts the
    centre size x size. `filter` is Pillow's resampling filter.
    """

    mode: Literal["stretch", "crop"]
    size: int
    shorter_side: int = 0
    filter: Literal["bilinear", "bicubic"] = "bilinear"


@dataclass(frozen=True)
class DecodeRequest:
    """What to decode of one file: `seconds` steps at the most, the frames at each of `frame_sizes`, and the sound.

    `max_pixels` bounds one frame's height x width.
    """

    seconds: int = 60
    frame_sizes: tuple[FrameSize, ...] = ()
    wants_audio: bool = True
    short: Short = "pad"
    max_pixels: int = 64_000_000


@dataclass(frozen=True)
class Track:
    """One modality of one decoded video: its state, its steps on the time axis (0 unless complete), the reason."""

    state: State
    steps: int = 0
    reason: str = ""


@dataclass(frozen=True)
class Media:
    """One decoded video on the shared time axis.

    `frames[size]`: uint8 [time, height, width, 3], RGB, `visual.steps` rows (`seconds` rows for `released`).
    `waveform`: float32 [sample], mono in [-1, 1], starting at t0, `audio.steps` seconds long at `sample_rate_hz`,
    padded with zeros to whole seconds. Both are empty unless their track is complete.
    """

    visual: Track
    audio: Track
    frames: dict[FrameSize, np.ndarray] = field(default_factory=dict)
    waveform: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    sample_rate_hz: int = 0


def count_steps(duration_seconds: float, seconds: int) -> int:
    """Return the steps of a modality that lasts `duration_seconds` past t0: at least 1, `seconds` at the most."""
    return max(1, min(seconds, math.ceil(duration_seconds - DURATION_SLACK_SECONDS)))
