"""Clips whose released audio is known (tests/golden/released_audio.json). Not a test.

The audio is stored without compression, so that every FFmpeg decodes the same samples: a chirp over all frequencies,
another in each channel, of which the first quarter of a second is louder than moviepy allows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import media_maker
import numpy as np

FRAME_RATE = 5


@dataclass(frozen=True)
class ReleasedClip:
    """A clip: seconds of video and audio, the audio's rate, layout and codec, and what is done to the file."""

    video_seconds: float
    audio_seconds: float
    rate: int = 44_100
    layout: str = "stereo"
    codec: str = "pcm_s16le"
    suffix: str = "mov"
    change: Callable[[Path], object] = lambda path: None

    def write(self, folder: Path, name: str) -> Path:
        """Write the clip `name` into `folder`; return its path."""
        path = folder / f"{name}.{self.suffix}"
        with av.open(str(path), "w") as container:
            video: Any = container.add_stream("libx264", rate=FRAME_RATE)
            video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
            video.codec_context.options = {"preset": "ultrafast"}
            audio: Any = container.add_stream(self.codec, rate=self.rate, layout=self.layout)
            for number in range(round(self.video_seconds * FRAME_RATE)):
                frame = av.VideoFrame.from_ndarray(media_maker.draw(number, 64, 48), format="rgb24")
                frame.pts, frame.time_base = number, Fraction(1, FRAME_RATE)
                container.mux(video.encode(frame))
            container.mux(video.encode(None))
            for block in self._blocks():
                container.mux(audio.encode(block))
            container.mux(audio.encode(None))
        self.change(path)
        return path

    def _blocks(self) -> Any:
        samples = make_chirps(round(self.audio_seconds * self.rate), len(av.AudioLayout(self.layout).channels))
        is_float = self.codec == "pcm_f32le"
        samples = samples.astype(np.float32) / 32_768 if is_float else samples
        for offset in range(0, len(samples), 1024):
            block = np.ascontiguousarray(samples[offset : offset + 1024].reshape(1, -1))
            frame = av.AudioFrame.from_ndarray(block, format="flt" if is_float else "s16", layout=self.layout)
            frame.sample_rate, frame.pts, frame.time_base = self.rate, offset, Fraction(1, self.rate)
            yield frame


def make_chirps(count: int, channels: int) -> np.ndarray:
    """Return int16 [sample, channel], integer arithmetic only."""
    number = np.arange(count, dtype=np.int64)[:, None]
    chirps = (number * number * 3 // (7 + np.arange(channels))) % 65_536 - 32_768
    chirps[number[:, 0] >= count // 20] //= 3
    return chirps.astype(np.int16)


CLIPS = {
    "stereo-44100": ReleasedClip(8, 8),
    "stereo-48000": ReleasedClip(7, 7, rate=48_000),
    "mono-44100": ReleasedClip(3, 3, layout="mono", codec="pcm_f32le"),
    "mono-22050": ReleasedClip(3, 3, rate=22_050, layout="mono"),
    "surround-48000": ReleasedClip(3, 3, rate=48_000, layout="5.1", codec="pcm_f32le"),
    "longer-than-video": ReleasedClip(2, 4.3),
    "shorter-than-video": ReleasedClip(6, 4.7),
    "half-as-long-as-video": ReleasedClip(4, 1.4),
    "longer-than-stated": ReleasedClip(5, 5, suffix="mkv", change=lambda path: media_maker.claim_duration(path, 3)),
}
