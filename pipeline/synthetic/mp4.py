"""Write one clip as an MP4 file: H.264 pictures and AAC sound, either of which may be left out.

It knows no scene: pictures and waveform come in. It is written beside its name and renamed last.
"""

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
    pictures: Iterable[np.ndarray] | None,
    frames_per_second: int,
    waveform: np.ndarray | None,
    sample_rate_hz: int,
) -> None:
    """Write `pictures` (uint8 [height, width, 3], RGB) and `waveform` (float32 [sample], mono) to `path`.

    The sound is cut to whole AAC frames of 1,024 samples, so that no decoder pads it past the pictures' end. Both
    tracks start at 0: the encoder's priming is declared in the file and skipped by decoders.
    """
    options = {"fflags": "+bitexact"}
    with staged(path) as staging, av.open(str(staging), "w", format="mp4", options=options) as container:
        video = None if pictures is None else _add_picture_stream(container, frames_per_second)
        audio = None if waveform is None else _add_sound_stream(container, sample_rate_hz)
        if video is not None and pictures is not None:
            _encode_pictures(container, video, pictures)
        if audio is not None and waveform is not None:
            _encode_sound(container, audio, waveform)


def _add_picture_stream(container: av.container.OutputContainer, frames_per_second: int) -> av.VideoStream:
    stream = container.add_stream("libx264", rate=frames_per_second, options=ENCODER_OPTIONS)
    stream.pix_fmt = "yuv420p"
    stream.codec_context.thread_count = 1
    return stream


def _add_sound_stream(container: av.container.OutputContainer, sample_rate_hz: int) -> av.AudioStream:
    stream = container.add_stream("aac", rate=sample_rate_hz, layout="mono")
    stream.bit_rate = 96_000
    return stream


def _encode_pictures(
    container: av.container.OutputContainer, stream: av.VideoStream, pictures: Iterable[np.ndarray]
) -> None:
    for index, picture in enumerate(pictures):
        if index == 0:
            stream.height, stream.width = picture.shape[:2]
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
    container.mux(stream.encode(None))


def _encode_sound(container: av.container.OutputContainer, stream: av.AudioStream, waveform: np.ndarray) -> None:
    for begin in range(0, len(waveform) - AAC_FRAME_SAMPLES + 1, AAC_FRAME_SAMPLES):
        samples = waveform[None, begin : begin + AAC_FRAME_SAMPLES]
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = stream.rate, begin, Fraction(1, stream.rate)
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))
