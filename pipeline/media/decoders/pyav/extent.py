"""Where the content of a file ends according to its chunks, compared with the size of the file.

FFmpeg reads no further than the chunks of a file state. Recorders that were stopped and programs that write to a pipe
leave a size that is too small, a truncated file has less than its last chunk states, and in files joined by `cat` the
second one is ignored. WAV, RF64, W64, AIFF, CAF and MP4 are examined. Truncation at the end of a chunk is not noticed.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

SIGNATURE_BYTES = 12
# Sizes from here on that exceed the file are placeholders of programs that could not know the size, as is 0.
PLACEHOLDER_BYTES = 0x7FFF_0000
# In RF64 the size of the audio is stated by the chunk ds64 instead.
SIZE_IN_DS64 = 0xFFFF_FFFF


@dataclass(frozen=True)
class Extent:
    """The offset at which the content of a file ends according to its chunks, and the size of the file, in bytes.

    `is_joined`: another file begins at `end`. `can_continue`: FFmpeg can decode what follows `end` as further audio.
    """

    end: int
    size: int
    is_joined: bool
    can_continue: bool

    @property
    def has_more_audio(self) -> bool:
        """Whether FFmpeg should decode what follows `end`."""
        return self.can_continue and self.end < self.size and not self.is_joined

    def describe(self) -> str:
        """Return how the end of the content and that of the file differ, "" if they do not."""
        rest = self.size - self.end
        if rest < 0:
            return f"the file is truncated: its last chunk states {-rest} bytes more than it contains"
        if self.is_joined:
            return f"the last {rest} bytes are another file, joined to this one: not decoded, or not reliably"
        decoded = "decoded as audio" if self.can_continue else "not decoded"
        return f"the last {rest} bytes follow the end that the file states: {decoded}" if rest else ""


@dataclass(frozen=True)
class _Layout:
    """How the files of a format are divided into chunks.

    `signature`: how a file begins; `begin`: the offset of the first chunk; `name`, `size`: where the header of a chunk
    contains them; `media`: the names of chunks with audio or video; `restart`: the name with which another file begins.
    """

    signature: re.Pattern[bytes]
    begin: int
    name: slice
    size: slice
    order: Literal["little", "big"]
    media: frozenset[bytes]
    restart: bytes
    alignment: int = 1
    counts_header: bool = False
    can_continue: bool = False

    @property
    def header_bytes(self) -> int:
        return max(int(self.name.stop), int(self.size.stop))


_FIRST, _SECOND = slice(0, 4), slice(4, 8)
_MP4_BOXES = rb"(?:ftyp|styp|moov|moof|mdat|wide|free|skip|pnot)"
_AUDIO, _BOXES = frozenset({b"data"}), frozenset({b"mdat", b"moov", b"moof"})
LAYOUTS = (
    _Layout(re.compile(rb"RIFF.{4}WAVE", re.S), 12, _FIRST, _SECOND, "little", _AUDIO, b"RIFF", 2, can_continue=True),
    _Layout(re.compile(rb"RF64.{4}WAVE", re.S), 12, _FIRST, _SECOND, "little", _AUDIO, b"RF64", 2, can_continue=True),
    _Layout(re.compile(rb"riff\x2e\x91"), 40, _FIRST, slice(16, 24), "little", _AUDIO, b"riff", 8, counts_header=True),
    _Layout(re.compile(rb"FORM.{4}AIF[FC]", re.S), 12, _FIRST, _SECOND, "big", frozenset({b"SSND"}), b"FORM", 2),
    _Layout(re.compile(rb"caff"), 8, _FIRST, slice(4, 12), "big", _AUDIO, b"caff"),
    _Layout(re.compile(rb".{4}" + _MP4_BOXES, re.S), 0, _SECOND, _FIRST, "big", _BOXES, b"ftyp", counts_header=True),
)


@dataclass(frozen=True)
class _Chunk:
    """A chunk: the offset of its first byte after the header and the size that it states from there, in bytes."""

    name: bytes
    begin: int
    size: int


def read_extent(path: Path) -> Extent | None:
    """Return where the content of the file ends; None if its format is another or its chunks do not state it."""
    with path.open("rb") as file:
        file_size = os.fstat(file.fileno()).st_size
        signature = file.read(SIGNATURE_BYTES)
        layout = next((layout for layout in LAYOUTS if layout.signature.match(signature)), None)
        if layout is None:
            return None
        end, has_media, size_in_ds64 = layout.begin, False, None
        while file_size - end > layout.header_bytes:
            chunk = _find_chunk(file, layout, end, file_size)
            if chunk is None or (has_media and chunk.name == layout.restart):
                return Extent(end, file_size, chunk is not None, layout.can_continue) if has_media else None
            size = chunk.size
            if chunk.name == b"ds64":
                file.seek(chunk.begin + 8)
                size_in_ds64 = int.from_bytes(file.read(8), "little")
            elif chunk.name in layout.media:
                has_media = True
                if size == SIZE_IN_DS64 and size_in_ds64 is not None:
                    size = size_in_ds64
                elif size == 0:
                    return None
                if size >= max(PLACEHOLDER_BYTES, file_size - chunk.begin):
                    return None
            end = chunk.begin + size
        # A difference smaller than a header is padding, or a writer's mistake.
        is_whole = abs(file_size - end) <= layout.header_bytes
        return Extent(file_size if is_whole else end, file_size, False, layout.can_continue) if has_media else None


def _find_chunk(file: BinaryIO, layout: _Layout, end: int, file_size: int) -> _Chunk | None:
    """Return the chunk that follows another's `end`. Writers forget padding, or add a byte where none is due."""
    positions = (end + -end % layout.alignment, end, end + 1)
    return next(filter(None, (_read_chunk(file, layout, position, file_size) for position in positions)), None)


def _read_chunk(file: BinaryIO, layout: _Layout, position: int, file_size: int) -> _Chunk | None:
    """Return the chunk at `position`; None if there is none: it would have no name, or exceed the file.

    Chunks of audio and video may exceed it, and so may another file.
    """
    file.seek(position)
    header = file.read(layout.header_bytes)
    name, size = header[layout.name], int.from_bytes(header[layout.size], layout.order)
    if layout.counts_header:
        # In MP4 a size of 1 says that 64 bits follow.
        size = (int.from_bytes(file.read(8), "big") if size == 1 else size) - layout.header_bytes
    begin = position + layout.header_bytes
    if name in layout.media or name == layout.restart:
        return _Chunk(name, begin, max(0, size))
    is_chunk = name.isascii() and name.decode().isprintable() and 0 <= size <= file_size - begin
    return _Chunk(name, begin, size) if is_chunk else None
