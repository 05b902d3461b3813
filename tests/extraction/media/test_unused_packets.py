"""Frames dropped between the last sampled frame and the next IDR frame, without any effect on the media."""

import random
from types import SimpleNamespace

import av
import media_maker
import numpy as np
import pytest
from counted_decoding import FINE, REQUEST, SIZE, decode, is_same, is_same_except_missing_reason

from pipeline.media.decoders.pyav import decoder as pyav_decoder
from pipeline.media.decoders.pyav.unused_packets import HELD_PACKETS, drop_unused_packets
from pipeline.media.timeline import DecodeRequest

EXTRADATA = b"\x01d\x00\x1e\xff\xe1\x00"
# The NAL unit types of a packet by its letter; capitals may be sampled.
UNITS = {"i": (6, 5), "I": (9, 5), "p": (1,), "W": (1,), "m": (5, 1), "s": (7, 1), "r": (7, 8, 5), "d": (2,), "n": (1,)}


class Packet(bytes):
    """Bytes with the interface of PyAV's packet."""

    def has_sidedata(self, kind):
        return kind == "new_extradata" and self.letter == "n"


def packets(letters, length_bytes=4):
    for letter in letters:
        kinds = UNITS.get(letter, ())
        units = b"".join((4).to_bytes(length_bytes, "big") + bytes([0x60 | kind, 1, 2, 3]) for kind in kinds)
        packet = Packet(units + b"x" if letter == "x" else units)
        packet.letter, packet.stream = letter, "audio" if letter == "a" else VIDEO
        yield packet, not letter.islower() or letter == "a"


VIDEO = SimpleNamespace(codec_context=SimpleNamespace(extradata=EXTRADATA))


def kept(letters, **options):
    """Return the letters of the packets that are not dropped."""
    return "".join(packet.letter for packet, _ in drop_unused_packets(packets(letters, **options), VIDEO))


@pytest.mark.parametrize(
    ("letters", "expected"),
    [
        ("WppIW", "WIW"),
        ("WpapiaW", "WaiaW"),
        ("WpppW", "WpppW"),
        ("WppippiW", "WiW"),
        ("Wppippi", "Wi"),
        ("Wpp", "Wpp"),
        ("apiW", "aiW"),
    ],
)
def test_frames_between_the_last_sampled_frame_and_an_idr_frame_are_dropped(letters, expected):
    assert kept(letters) == expected


@pytest.mark.parametrize("special", "sdnx")
def test_packet_that_may_affect_later_frames_is_kept_with_all_before_it(special):
    assert kept(f"Wp{special}piW") == f"Wp{special}iW"


def test_idr_frame_with_parameter_sets_is_kept():
    assert kept("WprpiW") == "WriW"


def test_frame_with_idr_and_other_slices_is_not_an_idr_frame():
    assert kept("WppmW") == "WppmW"


def test_lengths_may_have_one_byte_and_without_lengths_all_packets_are_kept(monkeypatch):
    monkeypatch.setattr(VIDEO.codec_context, "extradata", EXTRADATA[:4] + b"\xfc" + EXTRADATA[5:])
    assert kept("WppIW", length_bytes=1) == "WIW"
    for without in (None, b"", b"\x00\x00\x00\x01\x67d\x00\x1e"):
        monkeypatch.setattr(VIDEO.codec_context, "extradata", without)
        assert kept("WppIW") == "WppIW"


def test_no_more_than_the_limit_of_packets_is_held():
    letters = "W" + "p" * (HELD_PACKETS + 20) + "iW"
    assert kept(letters) == "W" + "p" * HELD_PACKETS + "iW"


@pytest.mark.parametrize("sizes", [(SIZE,), (SIZE, FINE)], ids=["1 per second", "1 and 8 per second"])
@pytest.mark.parametrize("gop_size", [4, 10, 26])
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_fewer_frames_are_decoded_and_the_same_ones_selected(tmp_path, monkeypatch, suffix, gop_size, sizes):
    path = media_maker.write_clip(tmp_path / f"clip.{suffix}", media_maker.steady(6), (0, 6), gop_size=gop_size)
    request = DecodeRequest(seconds=20, frame_sizes=sizes)
    media, (decoded,) = decode(path, request)
    assert is_same(media, decode(path, request, codecs=())[0])
    monkeypatch.setattr(pyav_decoder, "drop_unused_packets", lambda packets, video: packets)
    _, (without,) = decode(path, request)
    assert decoded < without if len(sizes) == 1 else decoded <= without


def test_corrupt_files_are_decoded_as_in_a_full_pass_and_concealed_errors_are_reported(tmp_path):
    intact = media_maker.write_clip(tmp_path / "clip.mp4", media_maker.steady(5), (0, 5), gop_size=10).read_bytes()
    path, reasons = tmp_path / "corrupt.mp4", []
    for seed in range(12):
        data = bytearray(intact)
        random.seed(seed)
        for _ in range(40):
            data[random.randrange(len(data) // 10, len(data) * 9 // 10)] ^= 1 << random.randrange(8)
        path.write_bytes(data)
        media, other = decode(path, REQUEST)[0], decode(path, REQUEST, codecs=())[0]
        reasons.append(media.visual.reason)
        assert is_same_except_missing_reason(media, other), seed
    concealed = [reason for reason in reasons if "concealed errors in" in reason]
    assert 0 < len(concealed) < len(reasons)


def test_concealed_frame_is_reported_if_only_dependent_frames_are_sampled(tmp_path):
    path = media_maker.write_clip(tmp_path / "clip.mp4", media_maker.steady(3), gop_size=75)
    intact = decode(path)[0]
    with av.open(str(path)) as container:
        hit = next(packet for packet in container.demux(video=0) if packet.pts * packet.time_base * 25 == 21)
    data = bytearray(path.read_bytes())
    data[hit.pos + hit.size // 2 : hit.pos + hit.size] = bytes(hit.size - hit.size // 2)
    path.write_bytes(data)
    media, passes = decode(path)
    assert passes[1:] == [75]
    assert not np.array_equal(media.frames[SIZE], intact.frames[SIZE])
    assert media.visual.reason == "FFmpeg concealed errors in 1 frame"
