"""Frames decoded by decord, a library without a release since 2021, to reproduce features that were extracted with it.

The frame index, the time axis and the audio are PyAV's: decord reports no streams, no t0 and no lost frames. It
contains an FFmpeg of 2021. `EXCEPTIONS` lists its limitations.
"""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np

from pipeline.media.decoders.interface import DecoderLoadError, FrameError, FrameIndex

INSTALL = "pip install 'mavqa[decord]' (available for x86-64 processors only)"

# Also listed in docs/decoders.md.
EXCEPTIONS = {
    "av1": "its FFmpeg has no AV1 decoder: PyAV decodes these files",
    "late start": "counts time from the start of the stream: t0 is PyAV's, decord's timestamps are only compared",
    "edit list": "counts frames between key frames that an edit list removes: PyAV decodes these files",
    "transport stream": "skips the first frames of a transport stream: PyAV decodes these files",
    "flash video": "seeks to wrong frames in FLV files: PyAV decodes these files",
    "open groups": "seeks to wrong frames in open GOPs, where a frame may depend on one before the last key frame; "
    "only VP8, VP9, JPEG and length-prefixed IDR frames of H.264 rule them out: PyAV decodes all other files with "
    "several key frames",
    "several streams": "cannot select one of several video streams: PyAV decodes these files",
    "damaged": "fails if it cannot decode a packet that leads to a sampled frame: PyAV decodes all frames of the file",
    "unread damage": "does not notice a corrupt packet that leads to no sampled frame",
    "mirrored": "applies the file's rotation but not its mirroring: PyAV decodes these files",
    "deep or odd frames": "more than 8 bits per colour, or an odd width or height: its FFmpeg converts these frames "
    "to RGB differently from PyAV's, by some levels on average and more at edges",
    "interlaced frames": "its FFmpeg converts both fields of a frame to RGB together, PyAV's each one alone: colours "
    "differ at edges",
    "untimed": "needs a unique timestamp for each packet, which packed MPEG-4 in AVI does not have: PyAV decodes these "
    "files",
}


class Decord:
    """Decode frames with decord on one CPU thread. Raises `DecoderLoadError` if decord is not installed."""

    name = "decord"

    def __init__(self) -> None:
        self._library = _load()
        self._library.logging.set_level(self._library.logging.QUIET)
        base = self._library
        self._errors = (base.DECORDError, base.DECORDLimitReachedError, AssertionError, RuntimeError, StopIteration)

    def version(self) -> str:
        """Return decord's version, which determines the FFmpeg that it contains."""
        return f"decord {self._library.__version__}"

    def open(self, path: Path, index: FrameIndex) -> Callable[[int], np.ndarray]:
        """Return a function from a frame's position in `index` to its image, uint8 [height, width, 3], RGB, upright.

        Raises `FrameError` if decord disagrees with the index or cannot decode the file. decord's own messages contain
        the time of day and are therefore not repeated.
        """
        with path.open("rb") as file:
            if file.read(3) == b"FLV":
                raise FrameError("seeks to wrong frames in FLV files")
        if not index.is_only_stream:
            raise FrameError("cannot select one of several video streams")
        try:
            reader = self._library.VideoReader(str(path.absolute()), num_threads=1)
        except self._errors:
            why = "cannot open the file: its FFmpeg does not support the codec, or the file is corrupt"
            raise FrameError(why) from None
        if len(reader) != len(index.starts):
            raise FrameError(f"counts {len(reader)} frames, but {len(index.starts)} are shown")
        spans = reader.get_frame_timestamp(np.arange(len(reader)))
        expected = np.array([float(start - index.starts[0]) for start in index.starts])
        if np.abs(spans[:, 0] - spans[0, 0] - expected).max() > index.tolerance_seconds:
            raise FrameError("reports timestamps that differ from the file's")
        if not index.has_closed_gops:
            raise FrameError("seeks to wrong frames in a file that may have open GOPs")

        def read(position: int) -> np.ndarray:
            try:
                image: np.ndarray = reader[position].asnumpy()
            except self._errors:
                raise FrameError(f"cannot decode up to frame {position}") from None
            return image

        return read


def _load() -> ModuleType:
    try:
        import decord
    except (ImportError, OSError) as error:
        raise DecoderLoadError("decord", f"decord cannot be imported ({error})", INSTALL) from None
    return decord
