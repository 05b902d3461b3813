"""The time axis of decoded files: every step has the right frame and the right audio."""

import math
import random
from dataclasses import replace
from fractions import Fraction

import av
import backends
import media_maker
import numpy as np
import pytest

from pipeline.media.decoders.pyav import collectors
from pipeline.media.decoders.pyav import decoder as pyav_decoder
from pipeline.media.timeline import DecodeRequest, FrameSize, Track
from pipeline.store.schema import State

SIZE = FrameSize("stretch", 224)
REQUEST = DecodeRequest(seconds=20, frame_sizes=(SIZE,))
CLICK_TOLERANCE_SECONDS = 0.004
PCM = {"audio_codec": "pcm_s16le", "audio_format": "s16"}
AAC_PRIMING_SECONDS = 1024 / 44_100


def numbers(media):
    return [media_maker.read_number(image) for image in media.frames[SIZE]]


def check(
    decoder, path, starts, seconds, *, origin=0.0, lead=0.0, silent=(), request=REQUEST, case="", audio_reason=""
):
    """Decode and compare every step with the frames and audio that were written.

    `origin`: t0 in the media's own time; `lead`: seconds of an audio codec's priming samples before `origin`, if the
    container cannot mark them; `case`: the declared exception that the file belongs to.
    """
    media = decoder.decode(path, request)
    assert (media.visual.state, backends.own_reason(decoder, media, case)) == (State.COMPLETE, "")
    assert (media.audio.state, media.audio.reason) == (State.COMPLETE, audio_reason)
    steps = range(seconds)
    assert numbers(media) == [media_maker.shown_at(starts, origin - lead + step + 0.5) for step in steps]
    for step in steps:
        if step not in silent:
            second, click = media_maker.identify_audio(media.waveform, media.sample_rate_hz, step)
            assert second == step + int(origin)
            assert click == pytest.approx(media_maker.CLICK_SECONDS + lead, abs=CLICK_TOLERANCE_SECONDS)
    return media


@pytest.mark.parametrize(
    ("suffix", "codec"), [("mp4", "aac"), ("mov", "aac"), ("mkv", "aac"), ("mkv", "libopus"), ("ts", "aac")]
)
@pytest.mark.parametrize("frames_per_second", [25, 30])
def test_constant_rate(decoder, tmp_path, suffix, codec, frames_per_second):
    starts = media_maker.steady(6, frames_per_second)
    rate = 48_000 if codec == "libopus" else 44_100
    audio_format = "flt" if codec == "libopus" else "fltp"
    path = tmp_path / f"clip.{suffix}"
    media_maker.write_clip(path, starts, (0, 6), audio_codec=codec, audio_format=audio_format, rate=rate)
    if suffix == "ts":
        check(decoder, path, starts, 7, lead=AAC_PRIMING_SECONDS, silent=(6,), case="transport stream")
    else:
        check(decoder, path, starts, 6)


def test_fractional_and_low_rates(decoder, tmp_path):
    for frames_per_second in (Fraction(30_000, 1001), Fraction(3, 4)):
        starts = [Fraction(round(number / frames_per_second * 12_800), 12_800) for number in range(200)]
        starts = [start for start in starts if start < 6]
        check(decoder, media_maker.write_clip(tmp_path / "clip.mp4", starts, (0, 6)), starts, 6)


@pytest.mark.parametrize("seed", range(4))
def test_variable_frame_rate(decoder, tmp_path, seed):
    rng = random.Random(seed)
    starts, moment = [], Fraction(0)
    while moment < 7:
        starts.append(moment)
        moment += Fraction(rng.choice([200, 256, 512, 1300, 6400, 12_000]), 12_800)
    starts = [*starts, Fraction(7)]
    path = media_maker.write_clip(tmp_path / "clip.mp4", starts, (0, 8))
    check(decoder, path, starts, 8)


def test_frame_that_starts_exactly_at_the_middle_is_selected(decoder, tmp_path):
    starts = [Fraction(number, 2) for number in range(12)]
    media = check(decoder, media_maker.write_clip(tmp_path / "clip.mp4", starts, (0, 6)), starts, 6)
    assert numbers(media) == [1, 3, 5, 7, 9, 11]


@pytest.mark.parametrize(("frames_per_second", "case"), [(25, ""), (30, "edit list")])
def test_edit_list(decoder, tmp_path, frames_per_second, case):
    """There is a key frame every 25 frames, so three seconds end between key frames at 30 frames per second."""
    starts = media_maker.steady(8, frames_per_second)
    path = media_maker.write_clip(tmp_path / "clip.mp4", starts, (0, 8))
    media_maker.cut_by_edit_list(path, 3)
    check(decoder, path, starts, 5, origin=3.0, case=case)


def test_both_streams_start_late(decoder, tmp_path):
    starts = media_maker.steady(5, start=8)
    path = media_maker.write_clip(tmp_path / "clip.mov", starts, (8, 13), **PCM)
    check(decoder, path, starts, 5, origin=8.0)


def test_audio_starts_later_than_the_video(decoder, tmp_path):
    starts = media_maker.steady(6, start=8)
    path = media_maker.write_clip(tmp_path / "clip.mov", starts, (10.4, 14), **PCM)
    late = "the audio starts at second 2"
    media = check(decoder, path, starts, 6, origin=8.0, silent=(0, 1, 2), audio_reason=late)
    assert media.audio == Track(State.COMPLETE, 6, late, first=2)
    assert not media.waveform[: round(2.39 * media.sample_rate_hz)].any()
    assert media.waveform[round(2.41 * media.sample_rate_hz) :][:100].any()


@pytest.mark.parametrize("origin", [0, 8])
def test_video_starts_later_than_the_audio(decoder, tmp_path, origin):
    starts = media_maker.steady(5, start=origin + 0.75)
    path = media_maker.write_clip(tmp_path / "clip.mov", starts, (origin, origin + 6), **PCM)
    media = decoder.decode(path, REQUEST)
    expected = [0] + [media_maker.shown_at(starts, origin + step + 0.5) for step in range(1, 6)]
    assert numbers(media) == expected
    seconds = [media_maker.identify_audio(media.waveform, 44_100, step)[0] for step in range(6)]
    assert seconds == [origin + step for step in range(6)]


def test_steps_before_the_first_frame_are_no_steps_of_the_video(decoder, tmp_path):
    clip = FrameSize("stretch", 112, per_second=4)
    starts = media_maker.steady(3, start=3.4)
    path = media_maker.write_clip(tmp_path / "clip.mov", starts, (0, 6.4), **PCM)
    media = decoder.decode(path, DecodeRequest(seconds=20, frame_sizes=(SIZE, clip)))
    assert media.visual == Track(State.COMPLETE, 7, "the video starts at second 3", first=3)
    assert media.audio == Track(State.COMPLETE, 7)
    assert not media.frames[SIZE][:3].any()
    assert numbers(media)[3:] == [media_maker.shown_at(starts, step + 0.5) for step in range(3, 7)]
    assert media.frames[clip].shape[0] == 7 * 4
    assert not media.frames[clip][: 3 * 4].any()
    moments = [max(3.4, step + (part + 0.5) / 4) for step in range(3, 7) for part in range(4)]
    found = [media_maker.read_number(image) for image in media.frames[clip][3 * 4 :]]
    assert found == [media_maker.shown_at(starts, moment) for moment in moments]


def test_a_modality_that_starts_after_the_requested_seconds_is_failed(decoder, tmp_path):
    path = media_maker.write_clip(tmp_path / "clip.mov", media_maker.steady(2, start=6), (0, 8), **PCM)
    media = decoder.decode(path, DecodeRequest(seconds=5, frame_sizes=(SIZE,)))
    assert media.visual.state is State.FAILED
    assert media.visual.reason.startswith("the first 5 seconds have no frame")
    assert media.audio == Track(State.COMPLETE, 5)


def test_padding_released_counts_the_frames_of_a_video_that_starts_late(decoder, tmp_path):
    path = media_maker.write_clip(tmp_path / "clip.mov", media_maker.steady(4, start=2), (3, 6), **PCM)
    media = decoder.decode(path, DecodeRequest(seconds=4, frame_sizes=(SIZE,), padding="released"))
    assert (numbers(media), media.visual.first, media.audio.first) == ([11, 37, 61, 87], 0, 0)


@pytest.mark.parametrize("degrees", [90, 180, 270])
@pytest.mark.parametrize("is_mirrored", [False, True])
def test_display_rotation_and_reflection(decoder, tmp_path, degrees, is_mirrored):
    starts = media_maker.steady(3)
    path = tmp_path / "clip.mp4"
    media_maker.write_clip(path, starts, (0, 3), rotation=(degrees, is_mirrored))
    plain = media_maker.write_clip(tmp_path / "plain.mp4", starts, (0, 3))
    media = decoder.decode(path, REQUEST)
    assert backends.own_reason(decoder, media, "mirrored" if is_mirrored else "") == ""
    rotated = media.frames[SIZE]
    upright = decoder.decode(plain, REQUEST).frames[SIZE]
    assert [media_maker.read_number(image) for image in rotated] == [-1, -1, -1]
    for image, original in zip(rotated, upright, strict=True):
        expected = _rotate_like_ffmpeg(original, degrees, is_mirrored)
        assert abs(image.astype(int) - expected.astype(int)).mean() < 3


def _rotate_like_ffmpeg(image, degrees, is_mirrored):
    """Rotate counter-clockwise by `degrees`, then mirror, as FFmpeg documents it."""
    rotated = np.rot90(image, degrees // 90)
    return rotated[:, ::-1] if is_mirrored else rotated


def test_longer_file_is_truncated_and_its_rest_not_decoded(decoder, tmp_path, monkeypatch):
    starts = media_maker.steady(12)
    path = media_maker.write_clip(tmp_path / "clip.mp4", starts, (0, 12))
    decoded = []
    original = pyav_decoder.Event
    monkeypatch.setattr(pyav_decoder, "Event", lambda *args, **named: decoded.append(args) or original(*args, **named))
    media = check(decoder, path, starts, 4, request=DecodeRequest(seconds=4, frame_sizes=(SIZE,)))
    assert len(media.waveform) == 4 * 44_100
    assert len(decoded) < 6 * (25 + 44_100 / 1024)


def test_t0_is_the_start_of_earlier_audio_though_a_fragment_stores_all_video_first(decoder, tmp_path):
    path = media_maker.write_clip(tmp_path / "clip.mov", media_maker.steady(4, start=0.12), (0, 4), gop_size=50, **PCM)
    options = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
    with av.open(str(path)) as source, av.open(str(tmp_path / "parts.mov"), "w", options=options) as parts:
        streams = {stream.index: parts.add_stream_from_template(stream) for stream in source.streams}
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                parts.mux(packet)
    with av.open(str(tmp_path / "parts.mov")) as container:
        kinds = [packet.stream.type for packet in container.demux() if packet.size]
    assert kinds.index("audio") > pyav_decoder.HELD_FRAMES
    request = DecodeRequest(frame_sizes=(SIZE,))
    expected, media = (decoder.decode(file, request) for file in (path, tmp_path / "parts.mov"))
    assert (media.visual, media.audio) == (expected.visual, expected.audio)
    assert np.array_equal(media.frames[SIZE], expected.frames[SIZE])
    assert np.array_equal(media.waveform, expected.waveform)


def test_every_requested_size_comes_from_one_pass(decoder, tmp_path):
    path = media_maker.write_clip(tmp_path / "clip.mp4", media_maker.steady(2))
    cropped = FrameSize("crop", 64, shorter_side=128, filter="bicubic")
    frames = decoder.decode(path, DecodeRequest(frame_sizes=(SIZE, cropped))).frames
    assert {size: array.shape for size, array in frames.items()} == {
        SIZE: (2, 224, 224, 3),
        cropped: (2, 64, 64, 3),
    }


@pytest.mark.parametrize(("frames_per_second", "padding"), [(25, "pad"), (30, "cycle"), (Fraction(9, 2), "pad")])
def test_several_frames_per_second_are_those_shown_at_the_middles_of_its_parts(
    decoder, tmp_path, frames_per_second, padding
):
    clip = FrameSize("stretch", 112, per_second=16)
    starts = [number / Fraction(frames_per_second) for number in range(math.ceil(3.5 * frames_per_second))]
    starts = [Fraction(round(start * media_maker.TICKS), media_maker.TICKS) + 8 for start in starts]
    path = media_maker.write_clip(tmp_path / "clip.mov", starts, (8, 12), **PCM)
    request = DecodeRequest(seconds=20, frame_sizes=(SIZE, clip), padding=padding)
    media = decoder.decode(path, request)
    assert media.frames[clip].shape == (4 * 16, 112, 112, 3)
    moments = [8 + step + (part + 0.5) / 16 for step in range(4) for part in range(16)]
    found = [media_maker.read_number(image) for image in media.frames[clip]]
    assert found == [media_maker.shown_at(starts, moment) for moment in moments]
    alone = decoder.decode(path, DecodeRequest(seconds=20, frame_sizes=(SIZE,), padding=padding))
    assert (media.visual, numbers(media)) == (alone.visual, numbers(alone))
    without = decoder.decode(path, DecodeRequest(seconds=20, frame_sizes=(clip,), padding=padding))
    assert without.visual == alone.visual
    assert (without.frames[clip] == media.frames[clip]).all()


def test_lost_frames_leave_several_frames_per_second_complete_if_the_modality_is(decoder, tmp_path, monkeypatch):
    clip = FrameSize("stretch", 112, per_second=16)
    path = media_maker.write_clip(tmp_path / "clip.mp4", media_maker.steady(4))
    lost = {13, 14, *range(20, 25), *range(60, 65)}
    add = collectors.FrameCollector.add

    def add_some(self, event):
        number = round((event.start - self._t0) * 25)
        add(self, replace(event, frame=None, error="broken") if number in lost else event)

    monkeypatch.setattr(collectors.FrameCollector, "add", add_some)
    media = decoder.decode(path, DecodeRequest(seconds=4, frame_sizes=(SIZE, clip)))
    assert (media.visual.state, media.visual.steps) == (State.COMPLETE, 4)
    assert "12 of 100 video packets" in media.visual.reason
    found = [media_maker.read_number(image) for image in media.frames[clip]]
    assert not lost & set(found)
    for step in range(4):
        own = found[16 * step : 16 * step + 16]
        assert all(25 * step <= number < 25 * (step + 1) for number in own)


def test_padding_released_counts_frames_and_cycles_through_the_last_second(decoder, tmp_path):
    request = DecodeRequest(seconds=15, frame_sizes=(SIZE,), padding="released")
    path = media_maker.write_clip(tmp_path / "clip.mp4", media_maker.steady(10))
    media = decoder.decode(path, request)
    expected = [11, 37, 61, 87, 111, 137, 161, 187, 211, 237, 236, 237, 236, 237, 236]
    assert numbers(media) == expected
    assert media.visual.steps == 10
