"""A stand-in for a GPU's video decoder: the processor's frames, in the formats of the GPU's. Not a test."""

from collections.abc import Callable, Collection

import av

from pipeline.media.decoders.dispatch import ContentDecoder
from pipeline.media.decoders.pyav.decoder import PyAVDecoder
from pipeline.media.decoders.pyav.nvdec import Nvdec

ON_GPU = {"yuv420p": "nv12", "yuvj420p": "nv12", "yuv420p10le": "p010le"}


class StandIn(Nvdec):
    """`Nvdec` on a GPU that does not decode the codecs `refused` and returns what `change` makes of each frame.

    `opened` lists the files that were opened for the GPU; `decoded` counts its frames.
    """

    def __init__(
        self, refused: Collection[str] = (), change: Callable[[av.VideoFrame], av.VideoFrame] = lambda frame: frame
    ) -> None:
        self._hwaccel, self._refused, self._change = None, refused, change
        self.opened: list[str] = []
        self.decoded = 0

    def open(self, path):
        container = super().open(path)
        self.opened.append(path.name)
        return container

    def decode(self, stream, packet):
        frames = super().decode(_StreamOnGpu(stream, self._refused, self._change), packet)
        self.decoded += len(frames)
        return frames


class _StreamOnGpu:
    def __init__(self, stream, refused, change):
        self.codec_context, self._stream, self._refused, self._change = stream.codec_context, stream, refused, change

    def decode(self, packet):
        if self.codec_context.name in self._refused:
            raise av.error.InvalidDataError(1, "Invalid data found when processing input")
        return [
            self._change(frame.reformat(format=ON_GPU[frame.format.name], threads=1))
            for frame in self._stream.decode(packet)
        ]


def make_decoder() -> ContentDecoder:
    """Return the decoder `pyav-cuda` of a machine whose GPU is the stand-in."""
    return ContentDecoder(PyAVDecoder(library=StandIn()))
