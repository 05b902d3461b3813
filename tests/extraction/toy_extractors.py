"""Extractors without networks, of frames and of loudness, so that tests can run and kill dozens of extractions."""

from typing import Any, ClassVar

import numpy as np

from pipeline.extractors.weights import WeightsSource
from pipeline.media.timeline import FrameSize, Media

TABLE = {"toy-image": "toy_extractors:ToyImage", "toy-audio": "toy_extractors:ToyAudio"}
OPTIONAL = {"toy-clip": "toy_extractors:ToyClip"}


class ToyImage:
    """The frame itself: float16 [time, channel 3, height 224, width 224], large enough for one shard per video."""

    name = "toy-image"
    modality = "visual"
    dims = ("channel", "height", "width")
    shape = (3, 224, 224)
    dtype = "float16"
    frame_size = FrameSize("stretch", 224)

    def constants(self) -> dict[str, Any]:
        return {"version": 1}

    def load(self, weights: WeightsSource, device: str) -> str:
        return ""

    def extract(self, media: Media) -> np.ndarray:
        return media.frames[self.frame_size].transpose(0, 3, 1, 2).astype(np.float16)


class ToyAudio:
    """The loudness of each second and its log: float32 [time, channel 2], small enough for one chunk per partition."""

    audio_choices: ClassVar[tuple[str, ...]] = ("resampled", "released")
    name = "toy-audio"
    modality = "audio"
    dims = ("channel",)
    shape = (2,)
    dtype = "float32"
    frame_size = None

    def __init__(self, audio: str = "resampled") -> None:
        self.audio = audio

    def constants(self) -> dict[str, Any]:
        return {"version": 1} | ({"audio": self.audio} if self.audio == "released" else {})

    def load(self, weights: WeightsSource, device: str) -> str:
        return ""

    def extract(self, media: Media) -> np.ndarray:
        waveform = media.released_waveform if self.audio == "released" else media.waveform
        seconds = waveform.reshape(media.audio.steps, -1)
        loudness = np.sqrt((seconds**2).mean(axis=1))
        return np.stack([loudness, np.log(loudness + 1e-3)], axis=1).astype(np.float32)


class ToyClip:
    """The brightness of each of four frames per second, times the normalisation: float32 [time, frame 4]."""

    normalisations: ClassVar[dict[str, int]] = {"published": 1, "trained": 2}
    name = "toy-clip"
    modality = "visual"
    dims = ("frame",)
    shape = (4,)
    dtype = "float32"
    frame_size = FrameSize("stretch", 32, per_second=4)

    def __init__(self, normalisation: int = 1) -> None:
        self.scale = normalisation

    def constants(self) -> dict[str, Any]:
        return {"version": 1, "normalisation": self.scale}

    def load(self, weights: WeightsSource, device: str) -> str:
        return ""

    def extract(self, media: Media) -> np.ndarray:
        frames = media.frames[self.frame_size].astype(np.float32)
        return self.scale * frames.mean(axis=(1, 2, 3)).reshape(-1, 4)
