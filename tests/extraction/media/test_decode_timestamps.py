"""Files whose timestamps leap or go back: every frame and every second of audio stays in its place, and it is reported.

Gaps that are genuine stay as they are.
"""

import av
import backends
import media_maker
import numpy as np
import pytest

from pipeline.media.decoders.registry import open_decoder
from pipeline.media.timeline import DecodeRequest, FrameSize, Track
from pipeline.store.schema import State

SIZE = FrameSize("stretch", 64)
SECONDS = 8
KEY_FRAME = 125
PCM = {"audio_codec": "pcm_s16le", "audio_format": "s16"}


@pytest.fixture(scope="module")
def pyav():
    return open_decoder("pyav")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("timestamps") / "clip.mov"
    return media_maker.write_clip(path, media_maker.steady(SECONDS), (0, SECONDS), **PCM)


@pytest.fixture(scope="module")
def coded_clip(tmp_path_factory):
    """The clip with AAC, which MPEG-TS and FLV can store."""
    path = tmp_path_factory.mktemp("timestamps") / "clip.mp4"
    return media_maker.write_clip(path, media_maker.steady(SECONDS), (0, SECONDS))


def decode(decoder, path, seconds=60):
    return decoder.decode(path, DecodeRequest(seconds=seconds, frame_sizes=(SIZE,)))


def numbers(media):
    return [media_maker.read_number(image) for image in media.frames[SIZE]]


def heard(media):
    """Return the second of the clip that is heard in each step."""
    return [
        media_maker.identify_audio(media.waveform, media.sample_rate_hz, step)[0] for step in range(media.audio.steps)
    ]


def reasons(decoder, media):
    """Return the reasons of both tracks, without the note that PyAV decoded the frames, which the visual one has."""
    note = "; " + backends.NOTE + f"{decoder.name} is not used for timestamps that leap or go back"
    reason = media.visual.reason
    assert reason.endswith(note) == (decoder.name != "pyav")
    return reason.removesuffix(note), media.audio.reason


def keep(kind, number, pts, dts):
    return pts, dts


def move_pts(kind, seconds, at):
    return lambda own, number, pts, dts: (pts + seconds * (own == kind and number == at), dts)


FRAMES = [12 + 25 * step for step in range(SECONDS)]


@pytest.mark.parametrize(
    ("suffix", "at", "seconds"), [("mov", 96, 5), ("mov", 0, 300), ("mkv", 95, 300), ("mkv", 0, 5), ("mkv", 95, 2)]
)
def test_one_frame_whose_timestamp_leaps_is_shown_after_the_one_before_it(pyav, clip, tmp_path, suffix, at, seconds):
    check_one_leap(pyav, clip, tmp_path / f"leap.{suffix}", at, seconds)


def test_no_other_decoder_is_used_for_timestamps_that_leap(decoder, clip, tmp_path):
    check_one_leap(decoder, clip, tmp_path / "leap.mov", 95, 300)


def check_one_leap(decoder, clip, path, at, seconds):
    media_maker.retime(clip, path, move_pts("video", seconds, at))
    media = decode(decoder, path)
    assert (media.visual.state, media.visual.steps) == (State.COMPLETE, SECONDS)
    # Where the first frame is the stray, a MOV file starts with its second frame, and so does the first.
    dropped = "1 frame out of order dropped; " if at == 0 and path.suffix == ".mov" else ""
    assert reasons(decoder, media) == (f"{dropped}timestamps leap or go back: 1 replaced", "")
    assert numbers(media) == [number + (at == 0 and path.suffix == ".mov") for number in FRAMES]
    assert heard(media) == list(range(SECONDS))


def test_the_last_frame_may_be_the_one_whose_timestamp_leaps(pyav, clip, tmp_path):
    path = media_maker.retime(clip, tmp_path / "leap.mov", move_pts("video", 300, 25 * SECONDS - 1))
    media = decode(pyav, path)
    assert (numbers(media), media.visual.steps) == (FRAMES, SECONDS)
    assert reasons(pyav, media) == ("timestamps leap or go back: 1 replaced", "")


@pytest.fixture(scope="module")
def vp8_clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("timestamps") / "clip.mkv"
    return media_maker.write_clip(path, media_maker.steady(6), video_codec="libvpx")


def move_block(source, target, number, milliseconds):
    """Copy a Matroska file and move the timestamp of one packet, its only one, which is relative to its cluster's."""
    with av.open(str(source)) as container:
        packets = [bytes(packet) for packet in container.demux() if packet.size]
    data = bytearray(source.read_bytes())
    # A block has its timestamp in milliseconds, a byte of flags, and the packet.
    at = data.index(packets[number]) - 3
    moved = int.from_bytes(data[at : at + 2], "big", signed=True) + milliseconds
    data[at : at + 2] = moved.to_bytes(2, "big", signed=True)
    target.write_bytes(data)
    return target


@pytest.mark.parametrize("milliseconds", [-3000, 20_000])
def test_a_frame_whose_only_timestamp_leaps_or_goes_back(pyav, vp8_clip, tmp_path, milliseconds):
    media = decode(pyav, move_block(vp8_clip, tmp_path / "clip.mkv", 100, milliseconds))
    assert media.visual == Track(State.COMPLETE, 6, "timestamps leap or go back: 1 replaced")
    assert numbers(media) == FRAMES[:6]


def test_one_frame_that_leaps_by_less_than_half_a_second_is_shown_in_its_place(pyav, vp8_clip, tmp_path):
    media = decode(pyav, move_block(vp8_clip, tmp_path / "clip.mkv", 100, 400))
    # Frames 101 to 110 are not later than frame 100 now: they were dropped as out of order.
    assert media.visual == Track(State.COMPLETE, 6, "timestamps leap or go back: 1 replaced")
    assert numbers(media) == FRAMES[:6]


def test_frames_without_a_time_of_their_own_fail_the_video(pyav, clip, tmp_path):
    def change(kind, number, pts, dts):
        return pts + 40 * (kind == "video" and number > 25 and number % 2), dts

    media = decode(pyav, media_maker.retime(clip, tmp_path / "clip.mov", change))
    assert media.visual.state is State.FAILED
    assert "frames have timestamps that repeat or go back" in media.visual.reason
    assert media.audio.state is State.COMPLETE


def test_one_block_of_audio_whose_timestamp_leaps_ends_nothing(pyav, clip, tmp_path):
    path = media_maker.retime(clip, tmp_path / "leap.mkv", move_pts("audio", 300, 100))
    media = decode(pyav, path)
    assert media.audio == Track(State.COMPLETE, SECONDS, "timestamps leap or go back: 1 replaced")
    assert heard(media) == list(range(SECONDS))
    assert np.abs(media.waveform[-1000:]).max() > 0.1
    assert numbers(media) == FRAMES


def split_at_second_5(kinds, seconds):
    """Return a change that moves what starts at second 5, a key frame, by `seconds`."""
    return lambda kind, number, pts, dts: (
        (pts + seconds, dts + seconds)
        if kind in kinds and pts >= 5 and (kind == "audio" or number >= KEY_FRAME)
        else (pts, dts)
    )


@pytest.mark.parametrize("seconds", [20, 300])
@pytest.mark.parametrize("suffix", ["mp4", "flv"])
def test_both_streams_leap_and_stay_synchronous(pyav, coded_clip, tmp_path, suffix, seconds):
    path = media_maker.retime(coded_clip, tmp_path / f"leap.{suffix}", split_at_second_5(("video", "audio"), seconds))
    media, plain = decode(pyav, path), decode(pyav, media_maker.retime(coded_clip, tmp_path / f"plain.{suffix}", keep))
    bridged = "timestamps leap or go back: 1 bridged"
    assert reasons(pyav, media) == (bridged, bridged)
    assert (numbers(media), heard(media)) == (numbers(plain), heard(plain))


@pytest.mark.parametrize("kind", ["video", "audio"])
def test_one_stream_leaps_beyond_the_end_of_the_other(pyav, coded_clip, tmp_path, kind):
    media = decode(pyav, media_maker.retime(coded_clip, tmp_path / "leap.mp4", split_at_second_5((kind,), 300)))
    bridged = "timestamps leap or go back: 1 bridged"
    assert reasons(pyav, media) == ((bridged, "") if kind == "video" else ("", bridged))
    assert (numbers(media), heard(media)) == (FRAMES, list(range(SECONDS)))


@pytest.mark.parametrize("offset", [0, 1000])
def test_joined_transport_streams_follow_one_another(pyav, coded_clip, tmp_path, offset):
    parts = [
        media_maker.retime(coded_clip, tmp_path / f"{start}.ts", keep, output_ts_offset=str(start))
        for start in (0, offset)
    ]
    alone = decode(pyav, parts[0])
    joined = tmp_path / "joined.ts"
    joined.write_bytes(parts[0].read_bytes() + parts[1].read_bytes())
    media = decode(pyav, joined)
    bridged = "timestamps leap or go back: 1 bridged"
    assert reasons(pyav, media) == (bridged, bridged)
    assert (media.visual.steps, media.audio.steps) == (2 * SECONDS + 1, 2 * SECONDS + 1)
    assert numbers(media)[:SECONDS] == numbers(alone)[:SECONDS]
    for step in range(SECONDS, 2 * SECONDS):
        # What is seen at the middle of a step is what was seen when the sound of the step was recorded.
        second, click = media_maker.identify_audio(media.waveform, media.sample_rate_hz, step)
        seen = numbers(media)[step] / 25 - 0.5
        assert seen == pytest.approx(second + media_maker.CLICK_SECONDS - click, abs=0.1)


def test_a_stream_whose_first_packet_has_another_clock(pyav, coded_clip, tmp_path):
    """As in recordings of live streams, whose first packet has the timestamp 0."""

    def change(kind, number, pts, dts):
        return (pts, dts) if kind == "video" and number == 0 else (pts + 1000, dts + 1000)

    media = decode(pyav, media_maker.retime(coded_clip, tmp_path / "live.flv", change))
    assert reasons(pyav, media) == ("timestamps leap or go back: 1 replaced", "")
    assert numbers(media)[:SECONDS] == [number - 1 for number in FRAMES]
    assert heard(media)[:SECONDS] == list(range(SECONDS))


def test_the_overflow_of_the_clock_of_a_transport_stream(pyav, coded_clip, tmp_path):
    overflow = 2**33 / 90_000 - 4
    path = media_maker.retime(coded_clip, tmp_path / "clip.ts", keep, output_ts_offset=str(overflow))
    media = decode(pyav, path)
    assert media.audio.reason == ""
    assert numbers(media)[:SECONDS] == [number - 1 for number in FRAMES]


def test_a_leap_after_the_requested_seconds_is_not_reported(pyav, clip, tmp_path):
    path = media_maker.retime(clip, tmp_path / "leap.mov", move_pts("video", 300, 25 * 7))
    media = decode(pyav, path, seconds=3)
    assert (media.visual, numbers(media)) == (Track(State.COMPLETE, 3), FRAMES[:3])


STILL = [*media_maker.steady(3), *media_maker.steady(3, start=25)]
SLIDES = [10 * number for number in range(5)]


@pytest.mark.parametrize("starts", [STILL, SLIDES], ids=["still", "slides"])
@pytest.mark.parametrize("audio_seconds", [0, 5, 50])
@pytest.mark.parametrize("suffix", ["mov", "mkv"])
def test_a_frame_may_be_shown_for_long(pyav, tmp_path, suffix, audio_seconds, starts):
    audio = (0, audio_seconds) if audio_seconds else None
    path = media_maker.write_clip(tmp_path / f"clip.{suffix}", starts, audio, rate=8000, **PCM)
    media = decode(pyav, path)
    assert "timestamps" not in media.visual.reason + media.audio.reason
    shown = range(min(media.visual.steps, int(starts[-1])))
    assert numbers(media)[: len(shown)] == [media_maker.shown_at(starts, step + 0.5) for step in shown]
    assert media.visual.steps >= 28
    assert media.audio.steps == audio_seconds


def test_a_gap_of_audio_is_not_bridged_while_there_are_frames(pyav, tmp_path):
    path = media_maker.write_clip(tmp_path / "clip.mov", media_maker.steady(20, 5), (0, 8), rate=8000, **PCM)

    def change(kind, number, pts, dts):
        return (pts + 12, dts + 12) if kind == "audio" and pts >= 7 else (pts, dts)

    media = decode(pyav, media_maker.retime(path, tmp_path / "gap.mkv", change))
    assert media.visual.steps == 20
    assert media.audio.state is State.FAILED
    assert media.audio.reason.startswith("only ")
