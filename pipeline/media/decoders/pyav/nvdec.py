"""Frames decoded by the video decoder of an NVIDIA GPU (NVDEC), through PyAV's FFmpeg; needs the GPU's driver only.

The standards of the codecs in `FORMS` define every decoded sample, so the GPU's frames are the processor's. They arrive
in main memory with interleaved chroma (NV12, P010). Separating it changes no sample, and PyAV then converts the frame
to RGB as its own; a direct conversion from NV12 scales the chroma differently, by up to 116 levels. Which files the GPU
decodes depends on their content only: a store has the same values whatever was busy when it was extracted.

Packets, timestamps, the skipped frames, audio, colours, orientation and size stay the work of `PyAVDecoder`.
Not run on a GPU so far: tests use a stand-in. `Nvdec.probe` measures on each machine what is claimed here.
"""

import tempfile
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
from av.codec.hwaccel import HWAccel

from pipeline.machine import DRIVER, VIDEO_DRIVER, VIDEO_DRIVER_REMEDY, loads
from pipeline.media.decoders.interface import DecoderLoadError, FrameError
from pipeline.media.decoders.pyav.collectors import ExternalFrame, to_image
from pipeline.media.decoders.pyav.container import default_streams, describe_error, open_file

# {(codec, pixel format): (encoder of the probe's clip, its options)}; yuvj420p, the full range, counts as yuv420p.
FORMS: dict[tuple[str, str], tuple[str, dict[str, str]]] = {
    ("h264", "yuv420p"): ("libx264", {}),
    ("hevc", "yuv420p"): ("libx265", {"x265-params": "log-level=none"}),
    ("hevc", "yuv420p10le"): ("libx265", {"x265-params": "log-level=none"}),
    ("vp9", "yuv420p"): ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8"}),
}
PLANAR = {"nv12": "yuv420p", "p010le": "yuv420p10le"}
# NVDEC decodes HEVC from 144x144 pixels.
PROBE_WIDTH, PROBE_HEIGHT, PROBE_FRAMES = 192, 160, 12

# Also listed in docs/decoders.md.
EXCEPTIONS = {
    "other codecs": "is used for H.264, HEVC and VP9 with 4:2:0 chroma and 8 bits per colour, and HEVC with 10 bits: "
    "PyAV decodes all other files, AV1 and 10-bit H.264 among them",
    "refused": "fails for what the GPU does not decode, such as frames below 48x16 (HEVC 144x144, VP9 128x128) pixels: "
    "PyAV decodes these files",
    "cropped": "does not crop frames at the left or at the top: PyAV decodes files that require it",
    "damaged": "fails if a packet cannot be decoded or a frame is incomplete: PyAV decodes all frames of the file",
    "unreported damage": "conceals damage inside a frame without reporting it: the frame differs from PyAV's, and the "
    "reason does not count it",
}


class Nvdec:
    """The video decoder of the first visible GPU. Raises `DecoderLoadError` if its driver does not load."""

    name = "pyav-cuda"

    def __init__(self) -> None:
        self._hwaccel, self._context = _open_gpu(self.name)

    def version(self) -> str:
        """Return whether this GPU's frames equal PyAV's, as measured by `probe`.

        Raises `DecoderLoadError` if the GPU decodes none of the clips.
        """
        found = self.probe()
        measured = [difference for difference in found.values() if isinstance(difference, int)]
        if not measured:
            form, why = next(iter(found.items()))
            raise DecoderLoadError(self.name, f"the GPU decodes no video ({form}: {why})", "pass --decoder pyav")
        largest = max(measured)
        equality = f"differ from pyav's by up to {largest} of 255 levels" if largest else "equal pyav's"
        return f"{self.name}: frames {equality}"

    def open(self, path: Path) -> av.container.InputContainer:
        """Open a file whose video stream, if there is one, the GPU decodes.

        Raises `FrameError` if the GPU is not used for its codec and pixel format, or cannot be opened.
        """
        container = open_file(path)
        video = default_streams(container).get("video")
        if video is None or video.codec_context is None:
            return container
        context = cast(av.VideoCodecContext, video.codec_context)
        codec, pixels = context.codec.canonical_name, context.pix_fmt or "an unknown format"
        container.close()
        if (codec, pixels.replace("yuvj", "yuv")) not in FORMS:
            raise FrameError(f"is not used for {codec} in {pixels}")
        try:
            return open_file(path, self._hwaccel)
        except av.FFmpegError as error:
            raise FrameError(f"cannot use the GPU: {describe_error(error)}") from None

    def decode(self, stream: av.VideoStream, packet: av.Packet | None) -> list[av.VideoFrame]:
        """Return the frames of a packet, in main memory; raise `FrameError` if PyAV might decode others."""
        try:
            frames = stream.decode(packet)
        except av.FFmpegError as error:
            raise FrameError(f"failed: {describe_error(error)}") from None
        size = stream.codec_context.width, stream.codec_context.height
        for frame in frames:
            if frame.format.name not in PLANAR:
                raise FrameError(f"returned a frame in {frame.format.name}")
            if (frame.width, frame.height) != size:
                raise FrameError("returned a frame that is not cropped as the stream requires")
            if frame.is_corrupt:
                raise FrameError("returned an incomplete frame")
        return frames

    def probe(self) -> dict[str, int | str]:
        """Decode a short generated clip of each of `FORMS`, on the GPU and with PyAV.

        Returns {codec and pixel format: the largest difference between the images, in levels of 0 to 255, or the reason
        why the GPU does not decode it}.
        """
        found: dict[str, int | str] = {}
        for codec, pixels in FORMS:
            try:
                found[f"{codec} {pixels}"] = self._measure_difference(codec, pixels)
            except FrameError as error:
                found[f"{codec} {pixels}"] = str(error)
        return found

    def _measure_difference(self, codec: str, pixels: str) -> int:
        with tempfile.NamedTemporaryFile(suffix=".mkv") as file:
            path = Path(file.name)
            _write_clip(path, codec, pixels)
            with open_file(path) as container:
                expected = [to_image(frame) for frame in container.decode(video=0)]
            with self.open(path) as container:
                video = container.streams.video[0]
                video.codec_context.thread_count = 1
                frames = [frame for packet in container.demux(video) for frame in self.decode(video, packet)]
                images = [to_external(frame).decode() for frame in frames]
        if len(images) != len(expected):
            raise FrameError(f"returned {len(images)} of {len(expected)} frames")
        return max(int(np.abs(one.astype(int) - two).max()) for one, two in zip(images, expected, strict=True))


def to_external(frame: av.VideoFrame) -> ExternalFrame:
    """Return a frame of `Nvdec.decode` that is converted to an image only if it is selected."""
    return ExternalFrame(frame.width, frame.height, partial(_to_image, frame))


def _to_image(frame: av.VideoFrame) -> np.ndarray:
    return to_image(frame.reformat(format=PLANAR[frame.format.name], threads=1))


def _open_gpu(name: str) -> tuple[HWAccel, Any]:
    """Return the settings for opening files, and an object that keeps the GPU open between files.

    Files share the primary context of this process, because creating one takes longer than decoding a clip. Where torch
    uses the GPU already, FFmpeg refuses the primary context, and each file gets its own.
    """
    for library, remedy in ((DRIVER, "install NVIDIA's driver"), (VIDEO_DRIVER, VIDEO_DRIVER_REMEDY)):
        if not loads(library):
            raise DecoderLoadError(name, f"the driver's {library} does not load", f"{remedy}; or pass --decoder pyav")
    why = ""
    choices: tuple[dict[str, object], ...] = ({"primary_ctx": "1"}, {})
    for options in choices:
        hwaccel = HWAccel("cuda", allow_software_fallback=False, options=options)
        try:
            return hwaccel, av.CodecContext.create("h264", "r", hwaccel=hwaccel)
        except av.FFmpegError as error:
            why = describe_error(error)
    raise DecoderLoadError(name, f"the GPU cannot be opened ({why})", "make a GPU visible, or pass --decoder pyav")


def _write_clip(path: Path, codec: str, pixels: str) -> None:
    """Write frames of a random pattern that moves, so that they depend on each other."""
    encoder, options = FORMS[codec, pixels]
    blocks = np.random.default_rng(0).integers(0, 256, (PROBE_HEIGHT // 8, PROBE_WIDTH // 8, 3)).astype(np.uint8)
    scene = blocks.repeat(8, 0).repeat(8, 1)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(encoder, rate=Fraction(10))
        stream.width, stream.height, stream.pix_fmt = PROBE_WIDTH, PROBE_HEIGHT, pixels
        stream.codec_context.options, stream.codec_context.thread_count = options, 1
        for number in range(PROBE_FRAMES):
            image = np.ascontiguousarray(np.roll(scene, 3 * number, axis=1))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=pixels)))
        container.mux(stream.encode(None))
