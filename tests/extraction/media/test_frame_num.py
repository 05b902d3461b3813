"""Numbers of pictures that do not run on: seen in slice headers, and a file that has such is decoded whole."""

import re
from types import SimpleNamespace

import av
import media_maker
import pytest
from counted_decoding import decode, same

from pipeline.media.decoders.pyav.frame_num import FrameNumbers

MAIN, HIGH = 77, 100
RECORD = b"\x01M\x00\x1e\xff"


def code(number):
    """Return the Exp-Golomb code of a number as text."""
    return f"{number + 1:b}".zfill(2 * (number + 1).bit_length() - 1)


def unit(header, bits):
    """Return a NAL unit with these bits, zeros that could be taken for a start code kept apart."""
    data = int(f"{bits}1".ljust(160, "0"), 2).to_bytes(20, "big")
    return bytes([header]) + re.sub(b"\0\0(?=[\0-\3])", b"\0\0\3", data)


def parameters(width=4, profile=MAIN, colours="", matrices=""):
    return unit(0x67, f"{profile:08b}{0:08b}{30:08b}{code(0)}{colours}{matrices}{code(width - 4)}")


def picture(number, header=0x01, width=4, parameters=0):
    return unit(header, f"{code(0)}{code(7)}{code(parameters)}{number:0{width}b}{code(9)}")


class Packet(bytes):
    """Bytes that look like PyAV's packet."""

    is_new = False

    def has_sidedata(self, kind):
        return kind == "new_extradata" and self.is_new


def packet(*units, is_counted=True):
    return Packet(b"".join((len(one).to_bytes(4, "big") if is_counted else b"\0\0\1") + one for one in units))


def numbers(*sets, is_counted=True):
    sets = sets or (parameters(),)
    counted = RECORD + bytes([0xE0 + len(sets)]) + b"".join(len(sps).to_bytes(2, "big") + sps for sps in sets)
    record = counted + b"\1\0\4\x68\xce\x3c\x80" if is_counted else b"".join(b"\0\0\0\1" + sps for sps in sets)
    return FrameNumbers(SimpleNamespace(codec_context=SimpleNamespace(extradata=record)))


def run(pictures, follow=None, **options):
    """Return what is said of each (packet, is left out)."""
    follow = follow or numbers()
    return [follow.run_on(packet(*units, **options), is_left_out) for *units, is_left_out in pictures]


P, B, IDR = 0x61, 0x01, 0x65


@pytest.mark.parametrize("is_counted", [True, False])
@pytest.mark.parametrize(("number", "header", "runs_on"), [(6, P, True), (7, P, False), (7, B, False), (0, IDR, True)])
def test_what_is_left_out_bears_the_number_of_the_next(is_counted, number, header, runs_on):
    pictures = [(picture(5, P), True), (b"\x09\xf0", picture(6, B), True), (picture(number, header), False)]
    assert run(pictures, numbers(is_counted=is_counted), is_counted=is_counted) == [True, True, runs_on]


def test_what_is_decoded_may_bear_any_number():
    assert run([(picture(6, B), False), (picture(9, P), True), (picture(12, P), True)]) == [True, True, True]


def test_packets_without_a_picture_change_nothing():
    pictures = [(picture(6, B), True), (b"\x06\x05", False), (picture(7, P), False)]
    assert run(pictures) == [True, True, False]


@pytest.mark.parametrize("width", [5, 11, 16])
@pytest.mark.parametrize("sps", [{}, {"profile": HIGH, "colours": code(1) + code(2) + code(2) + "0", "matrices": "0"}])
def test_the_parameters_say_how_long_numbers_are(width, sps):
    for nexts, runs_on in ((16, True), (17, False)):
        pictures = [(picture(16, B, width), True), (picture(nexts, P, width), False)]
        assert run(pictures, numbers(parameters(width, **sps))) == [True, runs_on]


def test_bytes_that_keep_zeros_apart_are_no_part_of_a_number():
    pictures = [picture(number, B, 16, parameters=127) for number in (0, 1)]
    assert all(b"\0\0\3" in one for one in pictures)
    assert run([(pictures[0], True), (pictures[1], True)], numbers(parameters(16))) == [True, False]


@pytest.mark.parametrize(
    "sps",
    [
        b"",
        b"\x67",
        bytes([0x67]) + bytes(30),
        parameters(17),
        parameters(profile=HIGH, colours=code(1) + code(0) + code(0) + "0", matrices="1"),
        parameters(profile=HIGH, colours=code(3) + "1" + code(0) + code(0) + "0", matrices="0"),
    ],
)
def test_where_numbers_cannot_be_read_nothing_may_be_left_out(sps):
    assert run([(picture(5, P), True), (picture(6, B), True)], numbers(sps)) == [True, False]


@pytest.mark.parametrize("is_counted", [True, False])
@pytest.mark.parametrize(("widths", "runs_on"), [((8, 8), True), ((4, 8), False), ((8, 4), False)])
def test_several_parameters_must_agree(is_counted, widths, runs_on):
    follow = numbers(*map(parameters, widths), is_counted=is_counted)
    assert run([(picture(6, B, 8), True)], follow, is_counted=is_counted) == [runs_on]


@pytest.mark.parametrize("units", [[picture(6, B)[:1]], [picture(6, B, 16)[:3]], [b"\x06\x05"], []])
def test_what_is_left_out_must_bear_a_number(units):
    assert run([(picture(5, P), True), (*units, True)], numbers(parameters(16))) == [True, False]


def test_other_parameters_on_the_way_leave_it_in_doubt():
    follow = numbers()
    assert run([(parameters(4), picture(6, B), True), (parameters(5), picture(6, P), False)], follow) == [True, False]
    follow, changed = numbers(), packet(picture(6, P))
    changed.is_new = True
    assert follow.run_on(changed, False)
    assert not follow.run_on(packet(picture(7, B)), True)


def put_start_codes(path):
    """Write start codes over the lengths of the NAL units of an MP4, whose record still promises lengths."""
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as source:
        for one in source.demux(video=0):
            at = one.pos
            while one.size and at < one.pos + one.size:
                length = int.from_bytes(data[at : at + 4], "big")
                data[at : at + 4] = b"\0\0\0\1"
                at += 4 + length
    path.write_bytes(data)


@pytest.mark.parametrize(("suffix", "is_counted"), [("mp4", True), ("mp4", False), ("ts", True)])
def test_a_file_that_lacks_a_picture_that_others_need_is_decoded_whole(tmp_path, suffix, is_counted):
    path = media_maker.write_clip(tmp_path / f"clip.{suffix}", media_maker.steady(4), group=200)
    cut = tmp_path / f"cut.{suffix}"
    with av.open(str(path)) as source, av.open(str(cut), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for number, one in enumerate(one for one in source.demux(video=0) if one.size):
            if number != 25:
                one.stream = stream
                target.mux(one)
    _, once = decode(path)
    assert len(once) == 1
    if not is_counted:
        put_start_codes(cut)
    media, passes = decode(cut)
    assert len(passes) == 2
    assert same(media, decode(cut, codecs=())[0])
