"""Writing of one clip as an MP4 file: H.264 video and AAC audio, either of which may be missing."""

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from pipeline.files import staged

AAC_FRAME_SAMPLES = 1024
ENCODER_OPTIONS = {"preset": "ultrafast", "crf": "20", "tune": "zerolatency"}


def write_clip(
    path: Path,
    frames: Iterable[np.ndarray] | None,
    frames_per_second: int,
    waveform: np.ndarray | None,
    sample_rate_hz: int,
) -> None:
    """Write `frames` (uint8 [height, width, 3], RGB) and `waveform` (float32 [sample], mono) to `path`.

    The waveform is cut to a multiple of 1,024 samples, the size of an AAC frame, so that no decoder pads it past the
    end of the video. Both tracks start at 0: the encoder's priming is declared in the file and skipped by decoders.
    """
    options = {"fflags": "+bitexact"}
    with staged(path) as staging, av.open(str(staging), "w", format="mp4", options=options) as container:
        if frames is not None:
            video = container.add_stream("libx264", rate=frames_per_second, options=ENCODER_OPTIONS)
            video.pix_fmt = "yuv420p"
            video.codec_context.thread_count = 1
        if waveform is not None:
            audio = container.add_stream("aac", rate=sample_rate_hz, layout="mono")
            audio.bit_rate = 96_000
        if frames is not None:
            _encode_frames(container, video, frames)
        if waveform is not None:
            _encode_audio(container, audio, waveform)


def _encode_frames(
    container: av.container.OutputContainer, stream: av.VideoStream, frames: Iterable[np.ndarray]
) -> None:
    for index, frame in enumerate(frames):
        if index == 0:
            stream.height, stream.width = frame.shape[:2]
        container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
    container.mux(stream.encode(None))


def _encode_audio(container: av.container.OutputContainer, stream: av.AudioStream, waveform: np.ndarray) -> None:
    for begin in range(0, len(waveform) - AAC_FRAME_SAMPLES + 1, AAC_FRAME_SAMPLES):
        samples = waveform[None, begin : begin + AAC_FRAME_SAMPLES]
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = stream.rate, begin, Fraction(1, stream.rate)
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))
