"""Which compressed pictures start afresh, told by the types of their NAL units. It decodes nothing."""

from typing import cast

import av

IDR_SLICE = 5
SLICES = frozenset({1, IDR_SLICE})
# A key frame of these codecs makes the decoder forget all before it.
ALWAYS_FRESH = frozenset({"vp8", "vp9", "mjpeg"})


def resets_decoder(packet: av.Packet, video: av.VideoStream) -> bool:
    """Return whether it is sure that no picture from this key frame's packet on needs one from before it."""
    if video.codec_context.name in ALWAYS_FRESH:
        return True
    return video.codec_context.name == "h264" and is_idr(nal_types(packet, count_length_bytes(video)))


def is_idr(types: frozenset[int]) -> bool:
    """Return whether NAL units of these types are an IDR picture of H.264, and no other."""
    return types & SLICES == {IDR_SLICE}


def nal_types(packet: av.Packet, length_bytes: int) -> frozenset[int]:
    """Return the types of the packet's NAL units; nothing where their lengths do not add up to the packet."""
    data, at, types = memoryview(cast(bytes, packet)), 0, set()
    while length_bytes and at + length_bytes < len(data):
        begin = at + length_bytes
        at = begin + int.from_bytes(data[at:begin], "big")
        types.add(data[begin] & 0x1F)
    return frozenset(types) if at == len(data) else frozenset()


def count_length_bytes(video: av.VideoStream) -> int:
    """Return how many bytes count the length of a NAL unit; 0 where none do (ISO/IEC 14496-15, section 5.3.3)."""
    record = video.codec_context.extradata or b""
    return (record[4] & 3) + 1 if len(record) > 6 and record[0] == 1 else 0
