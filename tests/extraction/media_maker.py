"""Writes media files in which every frame and every second of audio can be identified. Not a test.

A frame is a grid of 4 x 4 black or white blocks: the first row is a mark that no rotated or mirrored frame keeps, the
other twelve are the bits of the frame's number. Every second of audio has its own tone, and a click at a quarter of the
second. Blocks and tones survive lossy codecs.
"""

import struct
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

MARK = (1, 1, 1, 0)
TICKS = 12_800
WIDTH, HEIGHT = 192, 128
CLICK_SECONDS = 0.25


def draw(number: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """Return the image of frame `number` (0 to 4095), uint8 [height, width, 3]."""
    bits = np.array([*MARK, *((number >> bit) & 1 for bit in range(12))], np.uint8).reshape(4, 4)
    rows, columns = np.arange(height) * 4 // height, np.arange(width) * 4 // width
    return np.repeat(((bits * 200 + 28)[rows][:, columns])[:, :, None], 3, axis=2)


def read_number(image: np.ndarray) -> int:
    """Return the frame number of an image [height, width, 3]; -1 if it is not upright or not readable."""
    height, width = image.shape[:2]
    centres = image[height // 8 :: height // 4, width // 8 :: width // 4].mean(axis=2)[:4, :4]
    bits = (centres > 128).astype(int).ravel()
    if tuple(bits[:4]) != MARK or np.any(abs(centres - 128) < 30):
        return -1
    return int(sum(bit << place for place, bit in enumerate(bits[4:])))


def make_waveform(start: float, stop: float, rate: int) -> np.ndarray:
    """Return the audio from `start` to `stop` seconds, float32 [sample]; second s has a tone of 400 + 100 s Hz."""
    time = np.arange(round(start * rate), round(stop * rate)) / rate
    second = np.floor(time + 1e-9)
    samples = 0.2 * np.sin(2 * np.pi * (400 + 100 * second) * (time - second))
    samples[abs(time - second - CLICK_SECONDS) < 0.0005] = 0.9
    return samples.astype(np.float32)


def identify_audio(waveform: np.ndarray, rate: int, step: int) -> tuple[int, float]:
    """Return (the second that the tone of `step` belongs to, the offset of the click in `step` in seconds)."""
    samples = waveform[step * rate : (step + 1) * rate]
    click = float(np.argmax(abs(samples)) / rate)
    tone = samples[rate * 4 // 10 : rate * 9 // 10]
    spectrum = abs(np.fft.rfft(tone * np.hanning(len(tone))))
    frequency = np.argmax(spectrum) * rate / len(tone)
    return round((frequency - 400) / 100), click


def write_clip(
    path: Path,
    frame_starts: Sequence[Fraction | float] = (),
    audio: tuple[float, float] | None = None,
    *,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    video_codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    rotation: tuple[int, bool] = (0, False),
    audio_codec: str = "aac",
    audio_format: str = "fltp",
    rate: int = 44_100,
    layout: str = "mono",
    gop_size: int = 25,
    has_open_gops: bool = False,
) -> Path:
    """Write frame number i at `frame_starts[i]` seconds, and audio from `audio[0]` to `audio[1]` seconds.

    In H.264 every `gop_size`-th frame is a key frame; with `has_open_gops` frames shown before it may depend on it.
    """
    with av.open(str(path), "w") as container:
        video_stream: Any = (
            _add_video(container, video_codec, size, pix_fmt, rotation, gop_size, has_open_gops)
            if len(frame_starts)
            else None
        )
        audio_stream: Any = container.add_stream(audio_codec, rate=rate, layout=layout) if audio else None
        blocks = audio_blocks(audio, rate, layout, audio_format) if audio else iter(())
        block = next(blocks, None)
        for number, start in enumerate(frame_starts):
            while block is not None and block.pts <= start * rate:
                container.mux(audio_stream.encode(block))
                block = next(blocks, None)
            frame = av.VideoFrame.from_ndarray(draw(number, *size), format="rgb24").reformat(format=pix_fmt)
            frame.pts, frame.time_base = round(start * TICKS), Fraction(1, TICKS)
            container.mux(video_stream.encode(frame))
        while block is not None:
            container.mux(audio_stream.encode(block))
            block = next(blocks, None)
        for stream in filter(None, (video_stream, audio_stream)):
            container.mux(stream.encode(None))
    return path


def steady(seconds: float, frames_per_second: int = 25, start: float = 0) -> list[Fraction]:
    """Return the start times of frames at a constant frame rate."""
    count = round(seconds * frames_per_second)
    return [Fraction(start) + Fraction(number, frames_per_second) for number in range(count)]


def shown_at(frame_starts: Sequence[Fraction | float], moment: float) -> int:
    """Return the number of the frame that is shown at `moment`."""
    return max(number for number, start in enumerate(frame_starts) if start <= moment)


def cut_by_edit_list(path: Path, seconds: int) -> None:
    """Change the edit list of every track of an MP4 file so that its first `seconds` are removed."""
    data = bytearray(path.read_bytes())
    movie_timescale = _timescale(data, data.index(b"mvhd"))
    at = -1
    while (at := data.find(b"elst", at + 1)) >= 0:
        count = struct.unpack_from(">I", data, at + 8)[0]
        entry = at + 12 + 12 * (count - 1)
        duration, media_time = struct.unpack_from(">Ii", data, entry)
        media_timescale = _timescale(data, data.index(b"mdhd", at))
        struct.pack_into(
            ">Ii", data, entry, duration - seconds * movie_timescale, media_time + seconds * media_timescale
        )
    path.write_bytes(data)


def claim_duration(path: Path, seconds: int) -> None:
    """Patch the header of a Matroska file to a duration of `seconds`."""
    data = bytearray(path.read_bytes())
    struct.pack_into(">d", data, data.index(b"\x44\x89\x88") + 3, seconds * 1000.0)
    path.write_bytes(data)


def retime(
    source: Path,
    target: Path,
    change: Callable[[str, int, Fraction, Fraction], tuple[Fraction, Fraction]],
    **options: str,
) -> Path:
    """Copy the packets of `source` with the timestamps that `change` returns, in seconds.

    `change` is called with the kind of stream, the number of the packet in it, its PTS and its DTS. `options` are those
    of FFmpeg's muxer.
    """
    with av.open(str(source)) as packets, av.open(str(target), "w", options=options) as container:
        streams = {stream.index: container.add_stream_from_template(stream) for stream in packets.streams}
        counts = dict.fromkeys(streams, 0)
        for packet in packets.demux():
            if packet.size:
                unit, index = packet.time_base, packet.stream.index
                pts, dts = change(packet.stream.type, counts[index], packet.pts * unit, packet.dts * unit)
                packet.pts, packet.dts = round(pts / unit), round(dts / unit)
                counts[index] += 1
                packet.stream = streams[index]
                container.mux(packet)
    return target


def _timescale(data: bytearray, at: int) -> int:
    timescale: int = struct.unpack_from(">I", data, at + 16)[0]
    return timescale


def _add_video(
    container: Any,
    codec: str,
    size: tuple[int, int],
    pix_fmt: str,
    rotation: tuple[int, bool],
    gop_size: int,
    has_open_gops: bool,
) -> Any:
    stream = container.add_stream(codec, rate=25)
    stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
    stream.codec_context.time_base = Fraction(1, TICKS)
    stream.codec_context.thread_count = 1
    if codec == "libx264":
        stream.codec_context.options = {"preset": "ultrafast", "bf": "2", "g": str(gop_size), "crf": "16"}
        stream.codec_context.options |= {"x264-params": "open-gop=1:b-adapt=0"} if has_open_gops else {}
    if rotation != (0, False):
        stream.set_display_rotation(rotation[0], hflip=rotation[1])
    return stream


def audio_blocks(audio: tuple[float, float], rate: int, layout: str, audio_format: str) -> Any:
    """Yield frames of 1024 samples from `audio[0]` to `audio[1]` seconds, to be encoded."""
    samples = make_waveform(*audio, rate)
    channels = len(av.AudioLayout(layout).channels)
    first = round(audio[0] * rate)
    if audio_format.startswith("s16"):
        samples = (samples * 32_767).astype(np.int16)
    for offset in range(0, len(samples), 1024):
        block = np.repeat(samples[None, offset : offset + 1024], channels, axis=0)
        if not audio_format.endswith("p"):
            block = block.T.reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(block), format=audio_format, layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, first + offset, Fraction(1, rate)
        yield frame
