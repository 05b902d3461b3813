"""Frames decoded by torchcodec. Needs the libraries of FFmpeg 4 to 9.

The frame index, the time axis and the audio are PyAV's: torchcodec joins audio blocks without regard to their
timestamps, and reports a packet that cannot be decoded only as an error. `EXCEPTIONS` lists its limitations.
"""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np

from pipeline.media.decoders.interface import DecoderLoadError, FrameError, FrameIndex

INSTALL = "pip install 'mavqa[torchcodec]'"
FFMPEG = "install FFmpeg's libraries, 4 to 9: apt-get install ffmpeg, or conda install ffmpeg"

# Also listed in docs/decoders.md.
EXCEPTIONS = {
    "damaged": "fails if it cannot decode a packet that leads to a sampled frame: PyAV decodes all frames of the file",
    "unread damage": "does not notice a corrupt packet that leads to no sampled frame",
    "mirrored": "applies the file's rotation but not its mirroring: PyAV decodes these files",
    "deep or odd frames": "more than 8 bits per colour, or an odd width or height: its FFmpeg converts these frames "
    "to RGB differently from PyAV's, by some levels on average and more at edges",
    "interlaced frames": "its FFmpeg converts both fields of a frame to RGB together, PyAV's each one alone: colours "
    "differ at edges",
    "untimed": "needs a unique timestamp for each packet, which packed MPEG-4 in AVI does not have: PyAV decodes these "
    "files",
    "transport stream": "seeks to wrong frames in transport streams: PyAV decodes these files",
    "gaps in the audio": "joins audio blocks without regard to their timestamps: PyAV decodes the audio",
}


class TorchCodec:
    """Decode frames with torchcodec. Raises `DecoderLoadError` if torchcodec or FFmpeg's libraries are missing."""

    name = "torchcodec"

    def __init__(self) -> None:
        self._library = _load(self.name)

    def version(self) -> str:
        """Return the versions of torchcodec and of the FFmpeg libraries that it uses."""
        from torchcodec._core import get_ffmpeg_library_versions

        codecs = ".".join(map(str, get_ffmpeg_library_versions()["libavcodec"]))
        return f"{self.name} {self._library.__version__.split('+')[0]} (libavcodec {codecs})"

    def open(self, path: Path, index: FrameIndex) -> Callable[[int], np.ndarray]:
        """Return a function from a frame's position in `index` to its image, uint8 [height, width, 3], RGB, upright.

        Frames requested in increasing order are decoded in one pass. Raises `FrameError` if torchcodec disagrees with
        the index or cannot decode the file.
        """
        with _FrameErrors():
            reader = self._library.decoders.VideoDecoder(
                path.absolute(),
                stream_index=index.stream_index,
                dimension_order="NHWC",
                num_ffmpeg_threads=1,
                device="cpu",
                seek_mode="exact",
            )
        if len(reader) != len(index.starts):
            raise FrameError(f"counts {len(reader)} frames, but {len(index.starts)} are shown")

        def read(position: int) -> np.ndarray:
            with _FrameErrors():
                frame = reader.get_frame_at(position)
            if abs(frame.pts_seconds - float(index.starts[position])) > index.tolerance_seconds:
                raise FrameError(f"returned the frame at {frame.pts_seconds:.3f} s for frame {position}")
            image: np.ndarray = frame.data.numpy()
            return image

        return read


class _FrameErrors:
    """Convert torchcodec's exceptions to `FrameError`, with the message but without the location in its source."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, RuntimeError | ValueError | IndexError):
            line = next(iter(str(error).strip().splitlines()), kind.__name__ if kind else "")
            raise FrameError(f"failed: {line.rsplit(', ', 1)[-1]}") from None


def _load(name: str) -> ModuleType:
    try:
        import torchcodec
    except ImportError as error:
        raise DecoderLoadError(name, f"torchcodec is not installed ({error})", INSTALL) from None
    except (OSError, RuntimeError) as error:
        import torch

        why = f"torchcodec does not fit torch {torch.__version__} ({str(error).splitlines()[0]})"
        raise DecoderLoadError(name, why, f"{INSTALL} --upgrade") from None
    if torchcodec.ffmpeg_major_version is None:
        raise DecoderLoadError(name, "torchcodec finds no libraries of FFmpeg that it can load", FFMPEG)
    return torchcodec
