"""The released audio equals what moviepy 1.0.1 wrote (golden/released_audio.json), and is decoded beside the other."""

import json

import av
import media_maker
import numpy as np
import pytest
import soundfile
from paths import GOLDEN
from released_clips import CLIPS

from pipeline.media.decoder_process import DecoderProcess
from pipeline.media.decoders.pyav.stereo import StereoCollector
from pipeline.media.decoders.registry import open_decoder
from pipeline.media.released_audio import BUFFER_SAMPLES, release_audio
from pipeline.media.timeline import DecodeRequest, Track
from pipeline.store.schema import State

REQUEST = DecodeRequest(seconds=20, wants_released_audio=True)
RATE = 16_000
FULL_SCALE = 65_536  # Of the sum of two channels.
# FFmpeg 4 and 5 resample 16-bit audio in integers, FFmpeg 8 in floating point: up to 3 of 32,768 for each channel.
TOLERANCE = {"stereo-48000": 8, "mono-22050": 8}
STOPS_WHERE_THE_HEADER_ENDS = "the released audio ends after 3 s, the duration that the file states, but the file has "


@pytest.fixture(scope="module")
def golden():
    return json.loads((GOLDEN / "released_audio.json").read_text())


def assert_is_golden(waveform, golden, name, tolerance=0):
    """Assert that the golden samples which lie in `waveform` differ by at most `tolerance`, and zeros follow them."""
    clip, stride = golden["clips"][name], golden["stride"]
    last = min(clip["samples"], len(waveform))
    expected = np.array(clip["sums"][: -(-last // stride)])
    assert abs(waveform[:last:stride] * FULL_SCALE - expected).max() <= tolerance
    assert not waveform[clip["samples"] :].any()


@pytest.mark.parametrize("name", CLIPS)
def test_released_audio_is_that_of_moviepy(golden, tmp_path, name):
    path = CLIPS[name].write(tmp_path, name)
    media = open_decoder("pyav").decode(path, REQUEST)
    if name == "longer-than-stated":
        assert media.audio.state is State.FAILED
        assert media.audio.reason.startswith(STOPS_WHERE_THE_HEADER_ENDS)
        return
    assert len(media.released_waveform) == media.audio.steps * RATE
    assert media.released_waveform.dtype == np.float32
    assert_is_golden(media.released_waveform, golden, name, TOLERANCE.get(name, 0))
    assert media.audio.reason == ""


def test_requested_seconds_are_the_beginning_of_the_whole(golden, tmp_path):
    path = CLIPS["stereo-44100"].write(tmp_path, "clip")
    media = open_decoder("pyav").decode(path, DecodeRequest(seconds=5, wants_released_audio=True))
    assert len(media.released_waveform) == 5 * RATE
    assert_is_golden(media.released_waveform, golden, "stereo-44100")


def test_audio_beyond_the_requested_seconds_is_decoded_only_as_far_as_moviepy_buffers_it(tmp_path):
    path = media_maker.write_clip(tmp_path / "clip.wav", audio=(0, 12), audio_codec="pcm_s16le", audio_format="s16")
    whole = open_decoder("pyav").decode(path, REQUEST).released_waveform
    media = open_decoder("pyav").decode(path, DecodeRequest(seconds=3, wants_released_audio=True))
    assert np.array_equal(media.released_waveform, whole[: 3 * RATE])
    collector = StereoCollector(3)
    with av.open(str(path)) as container:
        for frame in container.decode(audio=0):
            collector.add(frame)
    assert collector.is_done
    assert 0 <= collector._count - (3 * 44_100 + BUFFER_SAMPLES) < 10_000


def test_the_other_waveform_and_the_tracks_do_not_depend_on_the_request(decoder, tmp_path):
    for name in ("stereo-48000", "half-as-long-as-video"):
        path = CLIPS[name].write(tmp_path, name)
        plain, media = decoder.decode(path, DecodeRequest(seconds=20)), decoder.decode(path, REQUEST)
        assert (plain.visual, plain.audio) == (media.visual, media.audio)
        assert np.array_equal(plain.waveform, media.waveform)
        assert (len(plain.released_waveform), len(media.released_waveform)) == (0, RATE * media.audio.steps)


def test_released_audio_begins_with_the_first_sample_whatever_its_timestamp(tmp_path):
    options = {"audio_codec": "pcm_s16le", "audio_format": "s16"}
    early = media_maker.write_clip(tmp_path / "early.mov", media_maker.steady(6), (0, 3), **options)
    late = media_maker.retime(early, tmp_path / "late.mov", delay_audio)
    media = open_decoder("pyav").decode(late, REQUEST)
    assert (media.audio.first, media.audio.steps) == (2, 5)
    seconds = [media_maker.identify_audio(media.released_waveform, RATE, step)[0] for step in range(3)]
    assert seconds == [0, 1, 2]


def delay_audio(kind, number, pts, dts):
    return (pts + 2, dts + 2) if kind == "audio" else (pts, dts)


def test_rate_and_layout_may_change(tmp_path):
    parts = [
        media_maker.write_clip(tmp_path / f"{rate}.aac", audio=(first, first + 2), rate=rate, layout=layout)
        for first, rate, layout in ((0, 48_000, "mono"), (2, 22_050, "stereo"))
    ]
    path = tmp_path / "clip.aac"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    media = open_decoder("pyav").decode(path, REQUEST)
    seconds = [media_maker.identify_audio(media.released_waveform, RATE, step)[0] for step in range(4)]
    assert seconds == [0, 1, 2, 3]


def test_the_decoder_process_returns_released_audio(tmp_path):
    path = CLIPS["mono-44100"].write(tmp_path, "clip")
    expected = open_decoder("pyav").decode(path, REQUEST)
    with DecoderProcess("pyav") as process:
        media = process.decode(path, REQUEST)
    assert np.array_equal(media.released_waveform, expected.released_waveform)
    assert np.array_equal(media.waveform, expected.waveform)


def test_what_only_libsndfile_reads_has_no_released_audio(decoder, tmp_path):
    path = tmp_path / "clip.mat"
    soundfile.write(path, np.zeros(RATE), RATE, format="MAT5", subtype="PCM_16")
    assert decoder.decode(path, DecodeRequest()).audio.state is State.COMPLETE
    media = decoder.decode(path, REQUEST)
    assert (media.audio.state, len(media.released_waveform)) == (State.FAILED, 0)


def test_audio_that_ffmpeg_cannot_convert_fails():
    frame = av.AudioFrame.from_ndarray(np.zeros((4, 1024), np.float32), format="fltp", layout="ambisonic 1")
    frame.sample_rate = 48_000
    collector = StereoCollector(1)
    collector.add(frame)
    waveform, track = collector.finish(Track(State.COMPLETE, 1), 1_000_000)
    assert (track.state, len(waveform)) == (State.FAILED, 0)
    assert track.reason == "FFmpeg cannot convert the audio to stereo at 44.1 kHz: Invalid argument"


def test_a_file_without_a_duration_has_that_of_its_audio():
    frame = av.AudioFrame.from_ndarray(np.full((1, 2 * 44_100), 8000, np.int16), format="s16", layout="stereo")
    frame.sample_rate = 44_100
    collector = StereoCollector(2)
    collector.add(frame)
    waveform, track = collector.finish(Track(State.COMPLETE, 1), None)
    assert np.all(waveform == 8000 / 32_768)
    assert track == Track(State.COMPLETE, 1)


def test_a_wrong_duration_costs_neither_time_nor_memory():
    decoded = np.ones((100, 2), np.int16)
    assert release_audio(decoded, 10**18, 1).shape == (RATE,)
    assert release_audio(decoded, 1, 1).shape == (0,)
