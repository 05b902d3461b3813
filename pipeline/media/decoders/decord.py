"""Pictures drawn by decord, a library without a release since 2021: for those who must repeat what was made with it.

Which picture is which, the time axis and the sound are PyAV's: decord tells no streams, no t0 and no losses, and
carries an FFmpeg of 2021. What it cannot do is in `EXCEPTIONS`.
"""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np

from pipeline.media.decoders.interface import DecoderLoadError, FrameError, FrameIndex

INSTALL = "pip install 'mavqa[decord]' (there is one for x86-64 processors only)"

EXCEPTIONS = {
    "av1": "its FFmpeg has no decoder for AV1: PyAV decodes those",
    "late start": "counts time from the stream's own start: t0 is PyAV's, its times are only compared",
    "edit list": "counts pictures that an edit list cuts off, between key frames: PyAV decodes those files",
    "transport stream": "skips the first pictures of a transport stream: PyAV decodes those",
    "flash video": "seeks to wrong pictures of FLV: PyAV decodes those",
    "open groups": "finds wrong pictures where a picture may need one from before a key frame, which only counted IDR "
    "pictures of H.264, VP8, VP9 and JPEG rule out: PyAV decodes all other files with several key frames",
    "several streams": "cannot be told which of several video streams to take: PyAV decodes those files",
    "damaged": "a file with a packet that it cannot decode on its way to a picture: PyAV decodes all its pictures",
    "unread damage": "a damaged packet on the way to no picture that is looked at is not noticed",
    "mirrored": "turns pictures as the file says but does not mirror them: PyAV decodes those",
    "deep or odd pictures": "more than 8 bits a colour, or an odd number of rows or columns: its FFmpeg makes RGB of "
    "those otherwise than PyAV's does, some levels on average and more at edges",
    "interlaced pictures": "its FFmpeg makes RGB of both fields at once, PyAV's of each: edges of colours differ",
    "untimed": "streams whose packets have no times of their own, such as packed MPEG-4 in AVI: PyAV decodes those",
}


class Decord:
    """Draw pictures with decord, on one thread of the processor. Raises DecoderLoadError where it is not there."""

    name = "decord"

    def __init__(self) -> None:
        self._library = _load()
        self._library.logging.set_level(self._library.logging.QUIET)
        base = self._library
        self._errors = (base.DECORDError, base.DECORDLimitReachedError, AssertionError, RuntimeError, StopIteration)

    def version(self) -> str:
        """Return decord's version, which tells the FFmpeg that it carries."""
        return f"decord {self._library.__version__}"

    def open(self, path: Path, index: FrameIndex) -> Callable[[int], np.ndarray]:
        """Return what gives picture `number` of the index, uint8 [height, width, 3], RGB, turned upright.

        Raises FrameError for a file that decord sees otherwise than the index, or cannot decode. Its own messages
        hold the time of day and are not repeated.
        """
        with path.open("rb") as file:
            if file.read(3) == b"FLV":
                raise FrameError("seeks to wrong pictures of FLV")
        if not index.is_only:
            raise FrameError("cannot be told which of several video streams to take")
        try:
            reader = self._library.VideoReader(str(path.absolute()), num_threads=1)
        except self._errors:
            why = "cannot open the file: its FFmpeg does not know the codec, or the file is damaged"
            raise FrameError(why) from None
        if len(reader) != len(index.starts):
            raise FrameError(f"counts {len(reader)} pictures where {len(index.starts)} are shown")
        spans = reader.get_frame_timestamp(np.arange(len(reader)))
        own = np.array([float(start - index.starts[0]) for start in index.starts])
        if np.abs(spans[:, 0] - spans[0, 0] - own).max() > index.tolerance_seconds:
            raise FrameError("counts other times than the file says")
        if not index.is_closed:
            raise FrameError("seeks to wrong pictures where one may need another from before a key frame")

        def read(number: int) -> np.ndarray:
            try:
                picture: np.ndarray = reader[number].asnumpy()
            except self._errors:
                raise FrameError(f"cannot decode the way to picture {number}") from None
            return picture

        return read


def _load() -> ModuleType:
    try:
        import decord
    except (ImportError, OSError) as error:
        raise DecoderLoadError("decord", f"decord cannot be imported ({error})", INSTALL) from None
    return decord
