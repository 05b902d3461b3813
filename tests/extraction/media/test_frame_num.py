"""Discontinuous H.264 frame numbers are found in slice headers, and such files are decoded without skipping."""

import re
from types import SimpleNamespace

import av
import media_maker
import pytest
from counted_decoding import decode, is_same

from pipeline.media.decoders.pyav.frame_num import FrameNumbers

MAIN, HIGH = 77, 100
RECORD = b"\x01M\x00\x1e\xff"


def exp_golomb(number):
    """Return the Exp-Golomb code of a number as a string of bits."""
    return f"{number + 1:b}".zfill(2 * (number + 1).bit_length() - 1)


def unit(header, bits):
    """Return a NAL unit with these bits, with emulation prevention bytes."""
    data = int(f"{bits}1".ljust(160, "0"), 2).to_bytes(20, "big")
    return bytes([header]) + re.sub(b"\0\0(?=[\0-\3])", b"\0\0\3", data)


def parameter_set(width=4, profile=MAIN, chroma="", matrices=""):
    zero = exp_golomb(0)
    return unit(0x67, f"{profile:08b}{0:08b}{30:08b}{zero}{chroma}{matrices}{exp_golomb(width - 4)}")


def frame(number, header=0x01, width=4, parameter_set_id=0):
    ids = exp_golomb(0) + exp_golomb(7) + exp_golomb(parameter_set_id)
    return unit(header, f"{ids}{number:0{width}b}{exp_golomb(9)}")


class Packet(bytes):
    """Bytes with the interface of PyAV's packet."""

    has_new_extradata = False

    def has_sidedata(self, kind):
        return kind == "new_extradata" and self.has_new_extradata


def packet(*units, has_lengths=True):
    return Packet(b"".join((len(one).to_bytes(4, "big") if has_lengths else b"\0\0\1") + one for one in units))


def numbers(*sets, has_lengths=True):
    sets = sets or (parameter_set(),)
    prefixed = RECORD + bytes([0xE0 + len(sets)]) + b"".join(len(sps).to_bytes(2, "big") + sps for sps in sets)
    record = prefixed + b"\1\0\4\x68\xce\x3c\x80" if has_lengths else b"".join(b"\0\0\0\1" + sps for sps in sets)
    return FrameNumbers(SimpleNamespace(codec_context=SimpleNamespace(extradata=record)))


def run(packets, follow=None, **options):
    """Return `is_continuous` of each (*NAL units of a packet, is skippable)."""
    follow = follow or numbers()
    return [follow.is_continuous(packet(*units, **options), is_skippable) for *units, is_skippable in packets]


P, B, IDR = 0x61, 0x01, 0x65


@pytest.mark.parametrize("has_lengths", [True, False])
@pytest.mark.parametrize(
    ("number", "header", "is_continuous"), [(6, P, True), (7, P, False), (7, B, False), (0, IDR, True)]
)
def test_skipped_frame_has_the_number_of_the_next_frame(has_lengths, number, header, is_continuous):
    packets = [(frame(5, P), True), (b"\x09\xf0", frame(6, B), True), (frame(number, header), False)]
    assert run(packets, numbers(has_lengths=has_lengths), has_lengths=has_lengths) == [True, True, is_continuous]


def test_decoded_frame_may_have_any_number():
    assert run([(frame(6, B), False), (frame(9, P), True), (frame(12, P), True)]) == [True, True, True]


def test_packet_without_a_frame_changes_nothing():
    packets = [(frame(6, B), True), (b"\x06\x05", False), (frame(7, P), False)]
    assert run(packets) == [True, True, False]


@pytest.mark.parametrize("width", [5, 11, 16])
@pytest.mark.parametrize(
    "sps", [{}, {"profile": HIGH, "chroma": exp_golomb(1) + exp_golomb(2) + exp_golomb(2) + "0", "matrices": "0"}]
)
def test_parameter_set_determines_the_bits_of_a_frame_number(width, sps):
    for following, is_continuous in ((16, True), (17, False)):
        packets = [(frame(16, B, width), True), (frame(following, P, width), False)]
        assert run(packets, numbers(parameter_set(width, **sps))) == [True, is_continuous]


def test_emulation_prevention_bytes_are_not_part_of_a_frame_number():
    frames = [frame(number, B, 16, parameter_set_id=127) for number in (0, 1)]
    assert all(b"\0\0\3" in one for one in frames)
    assert run([(frames[0], True), (frames[1], True)], numbers(parameter_set(16))) == [True, False]


@pytest.mark.parametrize(
    "sps",
    [
        b"",
        b"\x67",
        bytes([0x67]) + bytes(30),
        parameter_set(17),
        parameter_set(profile=HIGH, chroma=exp_golomb(1) + exp_golomb(0) + exp_golomb(0) + "0", matrices="1"),
        parameter_set(profile=HIGH, chroma=exp_golomb(3) + "1" + exp_golomb(0) + exp_golomb(0) + "0", matrices="0"),
    ],
)
def test_no_frame_may_be_skipped_if_frame_numbers_cannot_be_read(sps):
    assert run([(frame(5, P), True), (frame(6, B), True)], numbers(sps)) == [True, False]


@pytest.mark.parametrize("has_lengths", [True, False])
@pytest.mark.parametrize(("widths", "is_continuous"), [((8, 8), True), ((4, 8), False), ((8, 4), False)])
def test_several_parameter_sets_must_agree(has_lengths, widths, is_continuous):
    follow = numbers(*map(parameter_set, widths), has_lengths=has_lengths)
    assert run([(frame(6, B, 8), True)], follow, has_lengths=has_lengths) == [is_continuous]


@pytest.mark.parametrize("units", [[frame(6, B)[:1]], [frame(6, B, 16)[:3]], [b"\x06\x05"], []])
def test_skipped_frame_must_have_a_number(units):
    assert run([(frame(5, P), True), (*units, True)], numbers(parameter_set(16))) == [True, False]


def test_continuity_is_uncertain_after_a_change_of_parameter_sets():
    follow = numbers()
    packets = [(parameter_set(4), frame(6, B), True), (parameter_set(5), frame(6, P), False)]
    assert run(packets, follow) == [True, False]
    follow, changed = numbers(), packet(frame(6, P))
    changed.has_new_extradata = True
    assert follow.is_continuous(changed, False)
    assert not follow.is_continuous(packet(frame(7, B)), True)


def replace_lengths(path):
    """Replace the lengths of the NAL units of an MP4 file by start codes, although its header declares lengths."""
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as source:
        for one in source.demux(video=0):
            offset = one.pos
            while one.size and offset < one.pos + one.size:
                length = int.from_bytes(data[offset : offset + 4], "big")
                data[offset : offset + 4] = b"\0\0\0\1"
                offset += 4 + length
    path.write_bytes(data)


@pytest.mark.parametrize(("suffix", "has_lengths"), [("mp4", True), ("mp4", False), ("ts", True)])
def test_file_with_a_missing_reference_frame_is_decoded_without_skipping(tmp_path, suffix, has_lengths):
    path = media_maker.write_clip(tmp_path / f"clip.{suffix}", media_maker.steady(4), gop_size=200)
    incomplete = tmp_path / f"incomplete.{suffix}"
    with av.open(str(path)) as source, av.open(str(incomplete), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for number, one in enumerate(one for one in source.demux(video=0) if one.size):
            if number != 25:
                one.stream = stream
                target.mux(one)
    _, once = decode(path)
    assert len(once) == 1
    if not has_lengths:
        replace_lengths(incomplete)
    media, passes = decode(incomplete)
    assert len(passes) == 2
    assert is_same(media, decode(incomplete, codecs=())[0])
