"""Pictures left undecoded: fewer are decoded, and what comes out is what a whole pass gives, byte for byte."""

import random
from collections import Counter
from fractions import Fraction
from types import SimpleNamespace

import av
import media_maker
import pytest
from counted_decoding import FINE, SIZE, decode, same, same_where_noticed

from pipeline.media.decoders.pyav import decoder as pyav
from pipeline.media.decoders.pyav.frame_skipping import PacketWindow
from pipeline.media.timeline import DecodeRequest
from pipeline.store.schema import State


@pytest.mark.parametrize("sizes", [(SIZE,), (SIZE, FINE)], ids=["one a second", "eight a second too"])
def test_fewer_pictures_are_decoded_and_the_same_ones_chosen(tmp_path, sizes):
    path = media_maker.write_clip(tmp_path / "clip.mp4", media_maker.steady(6), (0, 6))
    request = DecodeRequest(seconds=20, frame_sizes=sizes)
    whole, (every,) = decode(path, request, codecs=())
    media, (decoded,) = decode(path, request)
    assert every == 150
    assert decoded < (110 if len(sizes) == 1 else 140)
    assert media.visual.state is State.COMPLETE
    assert same(media, whole)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("late", [0, 1.7])
def test_irregular_frames_are_chosen_as_by_a_whole_pass(tmp_path, seed, late):
    random.seed(seed)
    starts = [Fraction(late)]
    while starts[-1] < 7:
        starts.append(starts[-1] + Fraction(random.choice([1, 2, 3, 3, 4, 30]), 75))
    path = media_maker.write_clip(tmp_path / "clip.mkv", starts, (0, 7.5))
    assert same(decode(path)[0], decode(path, codecs=())[0])


@pytest.mark.parametrize("seed", range(12))
def test_a_damaged_file_is_read_as_by_a_whole_pass(tmp_path, seed):
    path = media_maker.write_clip(tmp_path / "clip.ts", media_maker.steady(5), (0, 5))
    data = bytearray(path.read_bytes())
    random.seed(seed)
    for _ in range(30):
        data[random.randrange(len(data) // 4, len(data))] ^= 1 << random.randrange(8)
    path.write_bytes(data)
    assert same_where_noticed(decode(path)[0], decode(path, codecs=())[0])


def first_start(original, times):
    """Return pictures' timestamps with that of the n-th picture changed as `times` {n: pts} says."""
    seen = Counter()

    def check(self, window, pts):
        seen["pictures"] += 1
        original(self, window, times.get(seen["pictures"], pts))

    return check


@pytest.mark.parametrize("times", [{40: None}, {40: 0}], ids=["no time", "out of order"])
def test_a_picture_whose_time_is_wrong_starts_a_whole_pass(tmp_path, monkeypatch, times):
    path = media_maker.write_clip(tmp_path / "clip.mp4", media_maker.steady(6), (0, 6))
    whole, (every,) = decode(path, codecs=())
    monkeypatch.setattr(pyav._Pass, "_check_order", first_start(pyav._Pass._check_order, times))
    media, passes = decode(path)
    assert passes[1:] == [every]
    assert same(media, whole)


def test_a_wanted_picture_that_never_comes_starts_a_whole_pass(tmp_path, monkeypatch):
    path = media_maker.write_clip(tmp_path / "clip.mp4", media_maker.steady(6), (0, 6))
    whole, (every,) = decode(path, codecs=())
    original, swallowed = PacketWindow.came, []

    def came(self, pts):
        if len(swallowed) == 40:
            self._awaited.add(pts - 1)
        swallowed.append(pts)
        return original(self, pts)

    monkeypatch.setattr(PacketWindow, "came", came)
    media, passes = decode(path)
    assert passes[1:] == [every]
    assert same(media, whole)


def test_a_packet_that_cannot_be_decoded_starts_a_whole_pass(tmp_path):
    path = media_maker.write_clip(tmp_path / "clip.mp4", media_maker.steady(6), (0, 6))
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        key = [packet for packet in packets if packet.is_keyframe][3]
        position, size = key.pos, key.size
    data = bytearray(path.read_bytes())
    data[position : position + size] = bytes(size)
    path.write_bytes(data)
    whole, (every,) = decode(path, codecs=())
    media, passes = decode(path)
    assert "cannot be decoded" in whole.visual.reason
    assert passes[1:] == [every]
    assert same(media, whole)


@pytest.mark.parametrize("delay", [0.45, 0.52, 0.6])
def test_the_first_picture_comes_whatever_refers_to_it(tmp_path, delay):
    starts = [delay + start for start in media_maker.steady(4)]
    path = media_maker.write_clip(tmp_path / "clip.mkv", starts, (0, 5))
    with av.open(str(path)) as source, av.open(str(tmp_path / "open.mkv"), "w") as cut:
        streams = {stream.index: cut.add_stream_from_template(stream) for stream in source.streams}
        for number, packet in enumerate(packet for packet in source.demux() if packet.size):
            if packet.stream.type == "audio" or number > 3:
                packet.stream = streams[packet.stream.index]
                cut.mux(packet)
    for file in (path, tmp_path / "open.mkv"):
        assert same(decode(file)[0], decode(file, codecs=())[0])


def test_the_released_rule_counts_every_picture(tmp_path):
    path = media_maker.write_clip(tmp_path / "clip.mp4", media_maker.steady(4), (0, 4))
    _, passes = decode(path, DecodeRequest(seconds=4, frame_sizes=(SIZE,), padding="released"))
    assert len(passes) == 1
    assert passes[0] > 80


def packet(stream, pts, is_discard=False):
    return SimpleNamespace(stream=stream, pts=pts, time_base=Fraction(1, 10), is_discard=is_discard)


def wanted(packets, video="video", rates=(1,), t0=0, has_come=True):
    window = PacketWindow(iter(packets), video, rates)
    if t0 is not None:
        window.start(Fraction(t0))
    if has_come:
        assert window.came(-5)
    handed = list(window)
    assert [given for given, _ in handed] == list(packets)
    return [given.pts for given, is_wanted in handed if is_wanted]


def test_the_two_last_pictures_before_each_moment_are_wanted():
    packets = [packet("video", pts) for pts in range(25)]
    assert wanted(packets) == [4, 5, 14, 15, 23, 24]
    assert wanted(packets, rates=(1, 2)) == [1, 2, 4, 5, 6, 7, 11, 12, 14, 15, 16, 17, 21, 22, 23, 24]
    assert wanted(packets, t0=Fraction(1, 4)) == [6, 7, 16, 17, 23, 24]


def test_the_order_in_which_pictures_are_stored_does_not_matter():
    packets = [packet("video", pts) for pts in (0, 4, 2, 1, 3, 8, 6, 5, 7, 12, 10, 9, 11)]
    assert sorted(wanted(packets)) == [4, 5, 11, 12]


def test_sound_and_what_is_not_shown_or_has_no_time_is_always_handed_on():
    packets = [packet("audio", 0), packet("video", None), *(packet("video", pts, pts > 2) for pts in range(6))]
    assert wanted(packets) == [0, None, 1, 2, 3, 4, 5]


def test_nothing_is_left_out_before_the_axis_is_known_and_a_picture_came():
    packets = [packet("video", pts) for pts in range(25)]
    assert wanted(packets, t0=None) == list(range(25))
    assert wanted(packets, has_come=False) == list(range(25))


def test_what_is_wanted_must_come_before_what_is_shown_later():
    window = PacketWindow(iter([packet("video", pts) for pts in (0, 2, 1)]), "video", (1,))
    assert len(list(window)) == 3
    assert not window.is_settled
    assert window.came(0)
    assert not window.came(2)
    assert window.came(1)
    assert window.is_settled


def test_a_long_sound_without_pictures_is_not_held():
    sound = [packet("audio", pts) for pts in range(2000)]
    given = []
    window = PacketWindow((given.append(one) or one for one in [packet("video", 0), *sound]), "video", (1,))
    next(iter(window))
    assert len(given) <= 501
