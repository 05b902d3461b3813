"""Pictures drawn by torchcodec, on the processor or on a GPU. Needs FFmpeg's libraries, 4 to 9, on the machine.

Which picture is which, the time axis and the sound are PyAV's: torchcodec joins blocks of sound without their
timestamps and tells nothing of a packet that cannot be decoded but an error. What it cannot do is in `EXCEPTIONS`.
Decoding on a GPU can be run but was never tried: no test of this project has a GPU with a video decoder.
"""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np

from pipeline.media.decoders.interface import DecoderLoadError, FrameError, FrameIndex

INSTALL = "pip install 'mavqa[torchcodec]'"
FFMPEG = "install FFmpeg's libraries, 4 to 9: apt-get install ffmpeg, or conda install ffmpeg"

EXCEPTIONS = {
    "damaged": "a file with a packet that it cannot decode on its way to a picture: PyAV decodes all its pictures",
    "unread damage": "a damaged packet on the way to no picture that is looked at is not noticed",
    "mirrored": "turns pictures as the file says but does not mirror them: PyAV decodes those",
    "deep or odd pictures": "more than 8 bits a colour, or an odd number of rows or columns: its FFmpeg makes RGB of "
    "those otherwise than PyAV's does, some levels on average and more at edges",
    "interlaced pictures": "its FFmpeg makes RGB of both fields at once, PyAV's of each: edges of colours differ",
    "untimed": "streams whose packets have no times of their own, such as packed MPEG-4 in AVI: PyAV decodes those",
    "transport stream": "seeks to the wrong pictures of a transport stream: PyAV decodes those",
    "gaps in the sound": "joins blocks of sound without their timestamps: the sound is PyAV's",
}


class TorchCodec:
    """Draw pictures with torchcodec on `device`, `cpu` or `cuda`.

    Raises DecoderLoadError where torchcodec, FFmpeg's libraries or the GPU are not there.
    """

    def __init__(self, device: str = "cpu") -> None:
        self._device = device
        self.name = "torchcodec" if device == "cpu" else f"torchcodec-{device}"
        self._library = _load(self.name)
        if device == "cuda":
            _check_cuda(self.name)

    def version(self) -> str:
        """Return the versions of torchcodec and of the FFmpeg libraries that it has found."""
        from torchcodec._core import get_ffmpeg_library_versions

        codecs = ".".join(map(str, get_ffmpeg_library_versions()["libavcodec"]))
        return f"{self.name} {self._library.__version__.split('+')[0]} (libavcodec {codecs})"

    def open(self, path: Path, index: FrameIndex) -> Callable[[int], np.ndarray]:
        """Return what gives picture `number` of the index, uint8 [height, width, 3], RGB, turned upright.

        Pictures asked for in the order of their numbers are decoded in one pass. Raises FrameError for a file that
        torchcodec sees otherwise than the index, or cannot decode.
        """
        with _Refusal():
            reader = self._library.decoders.VideoDecoder(
                path.absolute(),
                stream_index=index.stream_index,
                dimension_order="NHWC",
                num_ffmpeg_threads=1,
                device=self._device,
                seek_mode="exact",
            )
        if len(reader) != len(index.starts):
            raise FrameError(f"counts {len(reader)} pictures where {len(index.starts)} are shown")

        def read(number: int) -> np.ndarray:
            with _Refusal():
                frame = reader.get_frame_at(number)
            if abs(frame.pts_seconds - float(index.starts[number])) > index.tolerance_seconds:
                raise FrameError(f"gives the picture of {frame.pts_seconds:.3f} s for number {number}")
            picture: np.ndarray = frame.data.cpu().numpy()
            return picture

        return read


def on_cuda() -> TorchCodec:
    """Return the library that decodes on the first GPU."""
    return TorchCodec("cuda")


class _Refusal:
    """Turn what torchcodec raises into a FrameError with its last words, which name no place in its source."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, RuntimeError | ValueError | IndexError):
            line = next(iter(str(error).strip().splitlines()), kind.__name__ if kind else "")
            raise FrameError(f"refuses: {line.rsplit(', ', 1)[-1]}") from None


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


def _check_cuda(name: str) -> None:
    import torch

    if not torch.cuda.is_available():
        raise DecoderLoadError(name, "torch sees no CUDA device here", "install the GPU's driver, or take torchcodec")
