"""Examination of timestamps without files: any sequence is examined, and parts follow one another."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.media.decoders.pyav.timestamps import NEIGHBOURS, PacketTimes, Timeline, examine

TICK = 0.001
FRAME_TICKS = 40


def make_timeline(stamps, is_video=True, position=0):
    packets = [PacketTimes(position + n, pts, dts, n % 25 == 0) for n, (pts, dts) in enumerate(stamps)]
    return Timeline(is_video, TICK, packets)


def placed(timeline):
    """Return the seconds at which the packets are placed, without the strays."""
    moved = timeline.times + np.array(timeline.shifts)[timeline.part_of]
    return moved[timeline.part_of >= 0]


def steady(count, start=0):
    return [(start + FRAME_TICKS * number, start + FRAME_TICKS * number) for number in range(count)]


@settings(max_examples=60)
@given(st.data())
def test_any_timestamps_can_be_examined(data):
    ticks = st.one_of(st.integers(-(2**62), 2**62), st.integers(0, 20_000), st.none())
    streams = data.draw(st.lists(st.lists(st.tuples(ticks, ticks), min_size=2, max_size=60), min_size=1, max_size=2))
    streams = [[(0, 0), *stamps] for stamps in streams]
    timelines = [make_timeline(stamps, position=60 * index) for index, stamps in enumerate(streams)]
    examine(timelines)
    for timeline, stamps in zip(timelines, streams, strict=True):
        assert len(timeline.part_of) == len(stamps)
        assert len(timeline.shifts) == len(timeline.firsts)
        assert sorted({*timeline.part_of.tolist()} - {-1}) == list(range(len(timeline.firsts)))


@settings(max_examples=60)
@example([(40, 0), (40, 12_560), (40, 1000)])  # the last part has packets in the time of the gap before the second
@given(st.lists(st.tuples(st.integers(40, 200), st.integers(0, 10**6)), min_size=1, max_size=4))
def test_parts_follow_one_another_in_both_streams(parts):
    """Video and audio of each part have the same clock, which starts anywhere.

    A clock that goes back by less than frames are reordered is left as it is.
    """
    timelines = [
        make_timeline([stamp for count, start in parts for stamp in steady(count, start)], is_video)
        for is_video in (True, False)
    ]
    examine(timelines)
    video, audio = (placed(timeline) for timeline in timelines)
    np.testing.assert_allclose(video, audio, atol=1e-6)
    assert len(video) == sum(count for count, _ in parts)
    assert np.diff(video).min() > -NEIGHBOURS * FRAME_TICKS * TICK
    assert np.diff(video).max() < 11


@pytest.mark.parametrize("inserted", [3, 12, 40])
@pytest.mark.parametrize("leap", [-1, 1, 3, 1000])
def test_timestamps_that_leave_and_return_are_strays_whatever_their_number(inserted, leap):
    stamps = [
        (pts + 1000 * leap, dts + 1000 * leap) if 100 <= n < 100 + inserted else (pts, dts)
        for n, (pts, dts) in enumerate(steady(240))
    ]
    video, audio = make_timeline(stamps), make_timeline(steady(240), is_video=False)
    for timelines in ([video, audio], [make_timeline(stamps)]):
        examine(timelines)
        assert np.flatnonzero(timelines[0].part_of < 0).tolist() == list(range(100, 100 + inserted))
        assert timelines[0].firsts == [0]
    assert not audio.needs_repairs


@pytest.mark.parametrize("leap", [-0.7, -0.4, -0.2])
def test_both_streams_go_back_by_the_same_time(leap):
    """Where two recordings overlap, the parts of both are found, also in a stream with few packets."""
    video, audio = [], []
    for second in range(0, 10_000, 1000):
        moved = second + int(1000 * leap) * (second >= 5000)
        video += [(PacketTimes(0, moved + at, moved + at, at == 0)) for at in range(0, 1000, 40)]
        audio += [(PacketTimes(0, moved + at, moved + at, True)) for at in range(0, 1000, 20)]
    order = sorted(
        [(n * 40, "video", p) for n, p in enumerate(video)] + [(n * 20, "audio", p) for n, p in enumerate(audio)],
        key=lambda each: each[:2],
    )
    streams = {"video": [], "audio": []}
    for position, (_, kind, packet) in enumerate(order):
        streams[kind].append(packet._replace(position=position))
    timelines = [Timeline(kind == "video", TICK, packets) for kind, packets in streams.items()]
    examine(timelines)
    assert [timeline.firsts for timeline in timelines] == [[0, 125], [0, 250]]
    np.testing.assert_allclose([timeline.shifts for timeline in timelines], [[0, -leap]] * 2)


def test_reordered_frames_are_no_discontinuity_whatever_their_rate():
    order = [0, 4, 2, 1, 3, 8, 6, 5, 7]
    for frame_ticks in (33, 40, 1000, 10_000):
        shown = [9 * group + number for group in range(12) for number in order]
        stamps = [(frame_ticks * number, frame_ticks * (n - 2)) for n, number in enumerate(shown)]
        timeline = make_timeline(stamps)
        examine([timeline])
        assert not timeline.needs_repairs
