"""The length that the header of a WAV file states, compared with the bytes of the file.

FFmpeg reads no more than the header states. Recorders that were stopped and programs that write to a pipe leave a
length that is too small; a truncated file has less than its header states.
"""

import os
import struct
from pathlib import Path

# Lengths from here on, and 0, are placeholders of programs that could not know the length: FFmpeg reads to the end.
PLACEHOLDER_BYTES = 0x7FFF_0000
HEADER_BYTES = 8


def read_wav_length(path: Path) -> tuple[int, int] | None:
    """Return the bytes of audio that a WAV file's header states and those that the file contains.

    What follows the stated bytes is audio unless it is a further chunk. None: the file is not WAV or states no length.
    """
    with path.open("rb") as file:
        riff = file.read(12)
        if riff[:4] != b"RIFF" or riff[8:] != b"WAVE":
            return None
        while len(header := file.read(HEADER_BYTES)) == HEADER_BYTES:
            name, stated = struct.unpack("<4sI", header)
            if name == b"data":
                break
            file.seek(stated + stated % 2, os.SEEK_CUR)
        else:
            return None
        if not 0 < stated < PLACEHOLDER_BYTES:
            return None
        available = os.fstat(file.fileno()).st_size - file.tell()
        file.seek(stated, os.SEEK_CUR)
        following = file.read(HEADER_BYTES + 1)
    return stated, stated if _begins_with_chunk(following, available - stated) else available


def _begins_with_chunk(following: bytes, available: int) -> bool:
    """Return whether at most a padding byte stands between the audio and a chunk, or the end of the file."""
    if 0 <= available <= HEADER_BYTES:
        return True
    for header in (following[:HEADER_BYTES], following[1:]):
        name, size = header[:4].decode("latin-1"), int.from_bytes(header[4:], "little")
        if len(header) == HEADER_BYTES and name.isascii() and name.isprintable() and size <= available:
            return True
    return False
