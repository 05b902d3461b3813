"""Whether the numbers run on that H.264's pictures bear (`frame_num`), told by their slice headers. It decodes nothing.

A picture that no other refers to bears the number of the next one, unless that starts afresh. Where it does not, one
that others refer to is missing, or bears a damaged mark. FFmpeg then makes up what is missing without a word, and what
it makes up depends on the picture that no other refers to: leaving that one out would change those after it.
Source: ITU-T H.264, sections 7.3.2.1.1 and 7.3.3, 7.4.3 (frame_num).
"""

from collections.abc import Iterator
from itertools import islice
from typing import cast

import av

from pipeline.media.decoders.pyav.nal_units import IDR_SLICE, SLICES, count_length_bytes

SPS = 7
REFERRED_TO = 0x60
# Bytes of a NAL unit that hold what is read of it.
SLICE_BYTES, SPS_BYTES = 24, 64
# Profiles whose parameters say how colours are sampled.
HIGH_PROFILES = frozenset({44, 83, 86, 100, 110, 118, 122, 128, 134, 135, 138, 139, 244})
COLOURS_IN_FULL = 3
WIDTHS = range(4, 17)
START = b"\0\0\1"
PADDING_BYTES = 16


class FrameNumbers:
    """Follow the numbers of one stream's pictures, packet by packet in the file's order."""

    def __init__(self, video: av.VideoStream) -> None:
        self._length_bytes = count_length_bytes(video)
        record = video.codec_context.extradata or b""
        units = islice(_units(record[6:], 2), record[5] & 0x1F) if self._length_bytes else _units(record, 0)
        self._widths = {_number_bits(unit) for unit in units if unit[0] & 0x1F == SPS}
        self._left_out: int | None = None

    def run_on(self, packet: av.Packet, is_left_out: bool) -> bool:
        """Return whether it is sure that leaving pictures out has changed no other, up to this packet's.

        `is_left_out`: whether this one's picture is left out if no other refers to it.
        """
        if packet.has_sidedata("new_extradata"):
            self._widths.add(0)
        for unit in _units(cast(bytes, packet), self._length_bytes):
            kind = unit[0] & 0x1F
            if kind == SPS:
                self._widths.add(_number_bits(unit))
            elif kind in SLICES:
                number = self._read_number(unit)
                runs_on = self._left_out is None or kind == IDR_SLICE or number == self._left_out
                is_left_out = is_left_out and not unit[0] & REFERRED_TO
                self._left_out = number if is_left_out else None
                return runs_on and not (is_left_out and number is None)
        return not is_left_out

    def _read_number(self, unit: bytes) -> int | None:
        """Return the number that a slice bears; None where it is cut off, or parameters leave in doubt where it stands.

        Behind start codes where lengths should be, a slice is one byte long: the code's own 1 is taken for its length.
        """
        if len(self._widths) != 1:
            return None
        (width,) = self._widths
        bits = _Bits(unit[1:SLICE_BYTES])
        for _ in ("first_mb_in_slice", "slice_type", "pic_parameter_set_id"):
            bits.read_code()
        number = bits.read(width)
        return number if width and not bits.is_past_end else None


class _Bits:
    """Read the bits of a NAL unit's beginning; past its end come zeros."""

    def __init__(self, data: bytes) -> None:
        payload = data.replace(b"\0\0\3", b"\0\0") + bytes(PADDING_BYTES)
        self._value, self._left = int.from_bytes(payload, "big"), 8 * len(payload)

    @property
    def is_past_end(self) -> bool:
        """Whether some of what was read is not there."""
        return self._left < 8 * PADDING_BYTES

    def read(self, count: int) -> int:
        self._left = max(0, self._left - count)
        return (self._value >> self._left) & ((1 << count) - 1)

    def read_code(self) -> int:
        """Read an Exp-Golomb code (section 9.1)."""
        rest = self._value & ((1 << self._left) - 1)
        zeros = self._left - rest.bit_length()
        return self.read(2 * zeros + 1) - 1


def _number_bits(unit: bytes) -> int:
    """Return how many bits a sequence parameter set gives to a picture's number; 0 where it is not simply told."""
    bits = _Bits(unit[1:SPS_BYTES])
    profile = bits.read(8)
    bits.read(16)
    bits.read_code()
    if profile in HIGH_PROFILES:
        has_planes = bits.read_code() == COLOURS_IN_FULL and bits.read(1)
        for _ in ("bit_depth_luma", "bit_depth_chroma"):
            bits.read_code()
        bits.read(1)
        has_matrices = bits.read(1)
        if has_planes or has_matrices:
            return 0
    width = bits.read_code() + 4
    return width if width in WIDTHS and not bits.is_past_end else 0


def _units(data: bytes, length_bytes: int) -> Iterator[bytes]:
    """Yield the NAL units of a packet, counted or behind start codes; what is cut off or empty ends them."""
    if not length_bytes:
        yield from filter(None, bytes(data).split(START)[1:])
        return
    view, at = memoryview(data), 0
    while at + length_bytes < len(view):
        begin = at + length_bytes
        at = begin + int.from_bytes(view[at:begin], "big")
        if at > len(view) or at == begin:
            return
        yield bytes(view[begin : min(at, begin + SPS_BYTES)])
