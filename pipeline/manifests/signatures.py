"""Media recognised by the first bytes of a file, without decoding anything.

Raw streams without a header, such as MP3 without a tag or H.264, have no reliable signature and are recognised by their
suffix only. Still images are not media.
"""

HEAD_BYTES = 1024

# Formats whose files start with a fixed text.
_STARTS = (
    b"\x1aE\xdf\xa3",  # Matroska, WebM
    *(b"OggS", b"fLaC", b"wvpk", b"caff", b".snd", b"#!AMR", b"ID3\x02", b"ID3\x03", b"ID3\x04"),
    *(b"FLV\x01", b".RMF", b"DKIF", b"YUV4MPEG2 ", b"GIF87a", b"GIF89a"),
    *(b"\x00\x00\x01\xba", b"\x00\x00\x01\xb3"),  # MPEG program stream and video
    *(b"\x1f\x07\x00\x3f", b"\x1f\x07\x00\xbf"),  # DV, NTSC and PAL
    bytes.fromhex("3026b2758e66cf11"),  # ASF, WMV, WMA
    bytes.fromhex("726966662e91cf11"),  # Wave64
    bytes.fromhex("060e2b3402050101"),  # MXF
)
# Formats named by bytes 0 to 4 and 8 to 12.
_CHUNKED = {
    *((b"RIFF", b"AVI "), (b"RIFF", b"WAVE"), (b"RF64", b"WAVE"), (b"BW64", b"WAVE")),
    *((b"FORM", b"AIFF"), (b"FORM", b"AIFC")),
}
# MP4 and QuickTime start with one of these boxes; the brands of HEIF, AVIF and Canon's raw format are still images.
_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")
_IMAGE_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"mif1", b"mif2", b"avif", b"crx ")
_TRANSPORT_PACKET_BYTES = {0: 188, 4: 192}


def is_media(head: bytes) -> bool:
    """Return whether a file that starts with `head`, its first `HEAD_BYTES`, is video or audio."""
    return (
        head.startswith(_STARTS)
        or (head[:4], head[8:12]) in _CHUNKED
        or _is_box(head)
        or any(_has_packets(head, first, size) for first, size in _TRANSPORT_PACKET_BYTES.items())
    )


def _is_box(head: bytes) -> bool:
    # The size of the first box is less than 2 ** 29 bytes, which no text starts with.
    return head[4:8] in _BOXES and head[0] < 0x20 and not (head[4:8] == b"ftyp" and head[8:12] in _IMAGE_BRANDS)


def _has_packets(head: bytes, first: int, size: int) -> bool:
    """Return whether the first four packets of an MPEG transport stream have their synchronisation byte."""
    return len(head) > first + 3 * size and all(head[first + number * size] == 0x47 for number in range(4))
