"""Skipping non-reference frames: fewer frames are decoded, and the media equal those of a full pass byte for byte."""

import random
from collections import Counter
from fractions import Fraction
from types import SimpleNamespace

import av
import media_maker
import pytest
from counted_decoding import FINE, SIZE, decode, is_same, is_same_except_missing_reason

from pipeline.media.decoders.pyav import decoder as pyav_decoder
from pipeline.media.decoders.pyav.frame_skipping import PacketWindow
from pipeline.media.timeline import DecodeRequest
from pipeline.store.schema import State


@pytest.mark.parametrize("sizes", [(SIZE,), (SIZE, FINE)], ids=["1 per second", "1 and 8 per second"])
def test_fewer_frames_are_decoded_and_the_same_ones_selected(tmp_path, sizes):
    path = media_maker.write_clip(tmp_path / "clip.mp4", media_maker.steady(6), (0, 6))
    request = DecodeRequest(seconds=20, frame_sizes=sizes)
    full, (total,) = decode(path, request, codecs=())
    media, (decoded,) = decode(path, request)
    assert total == 150
    assert decoded < (110 if len(sizes) == 1 else 140)
    assert media.visual.state is State.COMPLETE
    assert is_same(media, full)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("late", [0, 1.7])
def test_irregular_frames_are_selected_as_in_a_full_pass(tmp_path, seed, late):
    random.seed(seed)
    starts = [Fraction(late)]
    while starts[-1] < 7:
        starts.append(starts[-1] + Fraction(random.choice([1, 2, 3, 3, 4, 30]), 75))
    path = media_maker.write_clip(tmp_path / "clip.mkv", starts, (0, 7.5))
    assert is_same(decode(path)[0], decode(path, codecs=())[0])


@pytest.mark.parametrize("seed", range(12))
def test_corrupt_file_is_decoded_as_in_a_full_pass(tmp_path, seed):
    path = media_maker.write_clip(tmp_path / "clip.ts", media_maker.steady(5), (0, 5))
    data = bytearray(path.read_bytes())
    random.seed(seed)
    for _ in range(30):
        data[random.randrange(len(data) // 4, len(data))] ^= 1 << random.randrange(8)
    path.write_bytes(data)
    assert is_same_except_missing_reason(decode(path)[0], decode(path, codecs=())[0])


def replace_timestamps(original, timestamps):
    """Return `_check_order` with the timestamp of the n-th frame replaced according to `timestamps` {n: pts}."""
    seen = Counter()

    def check(self, window, pts):
        seen["frames"] += 1
        original(self, window, timestamps.get(seen["frames"], pts))

    return check


@pytest.mark.parametrize("timestamps", [{40: None}, {40: 0}], ids=["no timestamp", "out of order"])
def test_frame_with_an_invalid_timestamp_starts_a_full_pass(tmp_path, monkeypatch, timestamps):
    path = media_maker.write_clip(tmp_path / "clip.mp4", media_maker.steady(6), (0, 6))
    full, (total,) = decode(path, codecs=())
    check_order = replace_timestamps(pyav_decoder._DecodingPass._check_order, timestamps)
    monkeypatch.setattr(pyav_decoder._DecodingPass, "_check_order", check_order)
    media, passes = decode(path)
    assert passes[1:] == [total]
    assert is_same(media, full)


def test_sampled_frame_that_is_never_decoded_starts_a_full_pass(tmp_path, monkeypatch):
    path = media_maker.write_clip(tmp_path / "clip.mp4", media_maker.steady(6), (0, 6))
    full, (total,) = decode(path, codecs=())
    original, decoded = PacketWindow.mark_decoded, []

    def mark_decoded(self, pts):
        if len(decoded) == 40:
            self._pending.add(pts - 1)
        decoded.append(pts)
        return original(self, pts)

    monkeypatch.setattr(PacketWindow, "mark_decoded", mark_decoded)
    media, passes = decode(path)
    assert passes[1:] == [total]
    assert is_same(media, full)


def test_packet_that_cannot_be_decoded_starts_a_full_pass(tmp_path):
    path = media_maker.write_clip(tmp_path / "clip.mp4", media_maker.steady(6), (0, 6))
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        key = [packet for packet in packets if packet.is_keyframe][3]
        position, size = key.pos, key.size
    data = bytearray(path.read_bytes())
    data[position : position + size] = bytes(size)
    path.write_bytes(data)
    full, (total,) = decode(path, codecs=())
    media, passes = decode(path)
    assert "could not be decoded" in full.visual.reason
    assert passes[1:] == [total]
    assert is_same(media, full)


@pytest.mark.parametrize("delay", [0.45, 0.52, 0.6])
def test_first_frame_is_decoded_even_if_it_is_a_non_reference_frame(tmp_path, delay):
    starts = [delay + start for start in media_maker.steady(4)]
    path = media_maker.write_clip(tmp_path / "clip.mkv", starts, (0, 5))
    with av.open(str(path)) as source, av.open(str(tmp_path / "open.mkv"), "w") as target:
        streams = {stream.index: target.add_stream_from_template(stream) for stream in source.streams}
        for number, packet in enumerate(packet for packet in source.demux() if packet.size):
            if packet.stream.type == "audio" or number > 3:
                packet.stream = streams[packet.stream.index]
                target.mux(packet)
    for file in (path, tmp_path / "open.mkv"):
        assert is_same(decode(file)[0], decode(file, codecs=())[0])


def test_no_frame_is_skipped_with_padding_released(tmp_path):
    path = media_maker.write_clip(tmp_path / "clip.mp4", media_maker.steady(4), (0, 4))
    _, passes = decode(path, DecodeRequest(seconds=4, frame_sizes=(SIZE,), padding="released"))
    assert len(passes) == 1
    assert passes[0] > 80


def packet(stream, pts, is_discard=False):
    return SimpleNamespace(stream=stream, pts=pts, time_base=Fraction(1, 10), is_discard=is_discard)


def sampled(packets, video="video", rates=(1,), t0=0, has_decoded=True):
    """Return the timestamps of the packets whose frames may be sampled."""
    window = PacketWindow(iter(packets), video, rates)
    if t0 is not None:
        window.start(Fraction(t0))
    if has_decoded:
        assert window.mark_decoded(-5)
    yielded = list(window)
    assert [one for one, _ in yielded] == list(packets)
    return [one.pts for one, may_be_sampled in yielded if may_be_sampled]


def test_the_last_two_frames_before_each_sampling_time_may_be_sampled():
    packets = [packet("video", pts) for pts in range(25)]
    assert sampled(packets) == [4, 5, 14, 15, 23, 24]
    assert sampled(packets, rates=(1, 2)) == [1, 2, 4, 5, 6, 7, 11, 12, 14, 15, 16, 17, 21, 22, 23, 24]
    assert sampled(packets, t0=Fraction(1, 4)) == [6, 7, 16, 17, 23, 24]


def test_the_order_in_which_frames_are_stored_does_not_matter():
    packets = [packet("video", pts) for pts in (0, 4, 2, 1, 3, 8, 6, 5, 7, 12, 10, 9, 11)]
    assert sorted(sampled(packets)) == [4, 5, 11, 12]


def test_audio_and_frames_that_are_discarded_or_have_no_timestamp_are_always_decoded():
    packets = [packet("audio", 0), packet("video", None), *(packet("video", pts, pts > 2) for pts in range(6))]
    assert sampled(packets) == [0, None, 1, 2, 3, 4, 5]


def test_no_frame_is_skipped_before_t0_is_known_and_a_frame_was_decoded():
    packets = [packet("video", pts) for pts in range(25)]
    assert sampled(packets, t0=None) == list(range(25))
    assert sampled(packets, has_decoded=False) == list(range(25))


def test_sampled_frames_must_be_decoded_before_later_ones():
    window = PacketWindow(iter([packet("video", pts) for pts in (0, 2, 1)]), "video", (1,))
    assert len(list(window)) == 3
    assert not window.has_decoded_all
    assert window.mark_decoded(0)
    assert not window.mark_decoded(2)
    assert window.mark_decoded(1)
    assert window.has_decoded_all


def test_long_audio_without_frames_is_not_held():
    audio = [packet("audio", pts) for pts in range(2000)]
    read = []
    window = PacketWindow((read.append(one) or one for one in [packet("video", 0), *audio]), "video", (1,))
    next(iter(window))
    assert len(read) <= 501
