"""Recognition of frames that reset the decoder, from the types of their NAL units."""

from typing import cast

import av

IDR_SLICE = 5
SLICES = frozenset({1, IDR_SLICE})
# In these codecs no frame depends on one before the last key frame.
SELF_CONTAINED_KEY_FRAMES = frozenset({"vp8", "vp9", "mjpeg"})


def resets_decoder(packet: av.Packet, video: av.VideoStream) -> bool:
    """Return whether it is certain that no frame from this key frame's packet on depends on an earlier frame."""
    if video.codec_context.name in SELF_CONTAINED_KEY_FRAMES:
        return True
    return video.codec_context.name == "h264" and is_idr(nal_types(packet, count_length_bytes(video)))


def is_idr(types: frozenset[int]) -> bool:
    """Return whether an access unit with NAL units of these types is an H.264 IDR frame."""
    return types & SLICES == {IDR_SLICE}


def nal_types(packet: av.Packet, length_bytes: int) -> frozenset[int]:
    """Return the types of the packet's NAL units; empty if their lengths do not add up to the packet."""
    data, offset, types = memoryview(cast(bytes, packet)), 0, set()
    while length_bytes and offset + length_bytes < len(data):
        begin = offset + length_bytes
        offset = begin + int.from_bytes(data[offset:begin], "big")
        types.add(data[begin] & 0x1F)
    return frozenset(types) if offset == len(data) else frozenset()


def count_length_bytes(video: av.VideoStream) -> int:
    """Return the bytes of a NAL unit's length prefix; 0 if there is none (ISO/IEC 14496-15, section 5.3.3)."""
    record = video.codec_context.extradata or b""
    return (record[4] & 3) + 1 if len(record) > 6 and record[0] == 1 else 0
