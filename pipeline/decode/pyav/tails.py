"""Pictures that need not even reach the decoder: those between the last one looked at and one that starts afresh.

An IDR picture of H.264 makes the decoder forget every picture before it. What stands before it in the file, and behind
the last picture that is looked at, matters to nothing. This file reads the types of NAL units and decodes nothing.
"""

from collections.abc import Iterable, Iterator
from typing import cast

import av

# All packets held until the next picture looked at, or one that starts afresh, is known; sound included.
HELD_PACKETS = 500
IDR_SLICE = 5
SLICES = frozenset({1, IDR_SLICE})
# A key frame of these codecs makes the decoder forget all before it.
ALWAYS_FRESH = frozenset({"vp8", "vp9", "mjpeg"})
# Besides slices: supplemental information, the delimiter of access units, filler data. Others may matter later.
PASSING = SLICES | {6, 9, 12}


def leave_out_tails(
    packets: Iterable[tuple[av.Packet, bool]], video: av.VideoStream
) -> Iterator[tuple[av.Packet, bool]]:
    """Yield the packets and whether each one's picture is looked at, in their order, without those that are in vain.

    A picture is in vain where none behind it, up to the next that starts afresh, is looked at. Streams that are no
    H.264 with counted NAL units (as MP4, Matroska and FLV have them) pass whole.
    """
    length_bytes = _length_bytes(video)
    held: list[tuple[av.Packet, bool]] = []
    for packet, is_wanted in packets:
        is_picture, must_come = packet.stream is video, False
        if is_picture:
            types = nal_types(packet, length_bytes)
            if _is_idr(types):
                held = [entry for entry in held if entry[0].stream is not video]
            must_come = is_wanted or not types or not types <= PASSING or packet.has_sidedata("new_extradata")
        if must_come or len(held) >= HELD_PACKETS:
            yield from held
            held = []
        if (is_picture and not must_come) or held:
            held.append((packet, is_wanted))
        else:
            yield packet, is_wanted
    yield from held


def starts_afresh(packet: av.Packet, video: av.VideoStream) -> bool:
    """Return whether it is sure that no picture from this key frame's packet on needs one from before it."""
    if video.codec_context.name in ALWAYS_FRESH:
        return True
    return video.codec_context.name == "h264" and _is_idr(nal_types(packet, _length_bytes(video)))


def _is_idr(types: frozenset[int]) -> bool:
    return types & SLICES == {IDR_SLICE}


def nal_types(packet: av.Packet, length_bytes: int) -> frozenset[int]:
    """Return the types of the packet's NAL units; nothing where their lengths do not add up to the packet."""
    data, at, types = memoryview(cast(bytes, packet)), 0, set()
    while length_bytes and at + length_bytes < len(data):
        begin = at + length_bytes
        at = begin + int.from_bytes(data[at:begin], "big")
        types.add(data[begin] & 0x1F)
    return frozenset(types) if at == len(data) else frozenset()


def _length_bytes(video: av.VideoStream) -> int:
    """Return how many bytes count the length of a NAL unit; 0 where none do (ISO/IEC 14496-15, section 5.3.3)."""
    record = video.codec_context.extradata or b""
    return (record[4] & 3) + 1 if len(record) > 6 and record[0] == 1 else 0
