"""Pictures that need not even reach the decoder: those between the last one looked at and one that starts afresh.

An IDR picture of H.264 makes the decoder forget every picture before it. What stands before it in the file, and behind
the last picture that is looked at, matters to nothing. It decodes nothing.
"""

from collections.abc import Iterable, Iterator

import av

from pipeline.media.decoders.pyav.nal_units import SLICES, count_length_bytes, is_idr, nal_types

# All packets held until the next picture looked at, or one that starts afresh, is known; sound included.
HELD_PACKETS = 500
# Besides slices: supplemental information, the delimiter of access units, filler data. Others may matter later.
PASSING = SLICES | {6, 9, 12}


def drop_unused_packets(
    packets: Iterable[tuple[av.Packet, bool]], video: av.VideoStream
) -> Iterator[tuple[av.Packet, bool]]:
    """Yield the packets and whether each one's picture is looked at, in their order, without those that are in vain.

    A picture is in vain where none behind it, up to the next that starts afresh, is looked at. Streams that are no
    H.264 with counted NAL units (as MP4, Matroska and FLV have them) pass whole.
    """
    length_bytes = count_length_bytes(video)
    held: list[tuple[av.Packet, bool]] = []
    for packet, is_wanted in packets:
        is_picture, must_come = packet.stream is video, False
        if is_picture:
            types = nal_types(packet, length_bytes)
            if is_idr(types):
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
