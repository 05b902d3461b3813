"""Frames of other videos as negatives of the audio-visual match loss.

Source: AVST's released loader. Differs from the released code: a video may have no frames, or only in some steps.
"""

from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class NegativePool:
    """The videos that provide negatives.

    `videos` int64 [video], ascending; `counts` int64 [video]: their steps with frames; `positions` int64 [video, time]:
    all steps, those with frames first.
    """

    videos: np.ndarray
    counts: np.ndarray
    positions: np.ndarray

    @classmethod
    def of(cls, videos: np.ndarray, available: np.ndarray) -> "NegativePool":
        """Return the pool of those of `videos` (ascending) that have frames; `available` bool [video, time]: where."""
        has_frames = available.any(1)
        videos, available = videos[has_frames], available[has_frames]
        return cls(videos, available.sum(1), (~available).argsort(1, kind="stable"))

    def sample(
        self, videos: np.ndarray, steps: int, generator: torch.Generator
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Return (videos, positions), each int64 [row * time]: a frame of another video per step of `videos` [row].

        They are sampled independently; None if there is no other video.
        """
        count = len(self.videos)
        if count < 2:
            return None
        own = np.searchsorted(self.videos, videos)
        has_own = self.videos[np.minimum(own, count - 1)] == videos
        for_video, for_step = torch.rand((2, len(videos), steps), generator=generator, dtype=torch.float64).numpy()
        other = (for_video * (count - has_own)[:, None]).astype(np.int64)
        other += has_own[:, None] & (other >= own[:, None])
        rank = (for_step * self.counts[other]).astype(np.int64)
        return self.videos[other].ravel(), self.positions[other, rank].ravel()
