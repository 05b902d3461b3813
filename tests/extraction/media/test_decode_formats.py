"""Many video and audio formats are decoded to the same RGB frames and mono waveform."""

from fractions import Fraction

import av
import backends
import media_maker
import numpy as np
import pytest

from pipeline.errors import UserError
from pipeline.media.decoders.pyav.decoder import PyAVDecoder
from pipeline.media.decoders.registry import open_decoder
from pipeline.media.timeline import DecodeRequest, FrameSize
from pipeline.store.schema import State

SIZE = FrameSize("stretch", 32)
REQUEST = DecodeRequest(seconds=5, frame_sizes=(SIZE,))
COLOURS = {"red": (200, 40, 30), "grey": (128, 128, 128), "black": (2, 2, 2), "white": (250, 250, 250)}


def write_colour(path, colour, *, size=(64, 48), codec="libx264", pix_fmt="yuv420p"):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
        if codec == "libx264":
            stream.codec_context.options = {"preset": "ultrafast", "crf": "10"}
        image = np.broadcast_to(np.array(colour, np.uint8), (size[1], size[0], 3))
        for number in range(10):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame = frame.reformat(format=pix_fmt)
            frame.pts, frame.time_base = number, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize(
    ("codec", "pix_fmt", "size"),
    [
        ("libx264", "yuv420p", (64, 48)),
        ("libx264", "yuvj420p", (64, 48)),
        ("libx264", "yuv444p", (61, 47)),
        ("libx264", "yuv420p10le", (64, 48)),
        ("libx264", "gray", (64, 48)),
        ("mjpeg", "yuvj422p", (62, 48)),
        ("ffv1", "bgra", (61, 47)),
    ],
)
def test_pixel_format(decoder, tmp_path, codec, pix_fmt, size, colour):
    if pix_fmt == "gray" and colour == "red":
        pytest.skip("a grey format has no red")
    path = write_colour(tmp_path / "clip.mkv", COLOURS[colour], codec=codec, pix_fmt=pix_fmt, size=size)
    media = decoder.decode(path, REQUEST)
    assert (media.visual.state, backends.own_reason(decoder, media)) == (State.COMPLETE, "")
    assert abs(media.frames[SIZE].astype(int) - np.array(COLOURS[colour])).max() <= 6


@pytest.mark.parametrize("layout", ["mono", "stereo", "5.1", "7.1"])
@pytest.mark.parametrize(("codec", "audio_format"), [("pcm_s16le", "s16"), ("pcm_f32le", "flt"), ("aac", "flt")])
def test_channels_are_averaged(decoder, tmp_path, layout, codec, audio_format):
    path = media_maker.write_clip(
        tmp_path / "clip.mkv", audio=(0, 3), layout=layout, audio_codec=codec, audio_format=audio_format
    )
    media = decoder.decode(path, REQUEST)
    assert (media.audio.state, media.audio.steps) == (State.COMPLETE, 3)
    assert [media_maker.identify_audio(media.waveform, 44_100, step)[0] for step in range(3)] == [0, 1, 2]
    if codec != "aac":
        assert abs(media.waveform - media_maker.make_waveform(0, 3, 44_100)).max() < 2 / 32_768


def test_different_channels_give_their_mean(decoder, tmp_path):
    path = tmp_path / "clip.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="stereo")
        samples = np.stack([np.full(8000, 16_384), np.full(8000, -8192)], axis=1).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format="s16", layout="stereo")
        frame.sample_rate, frame.pts = 8000, 0
        container.mux(stream.encode(frame))
    for one in (PyAVDecoder(), decoder):
        assert np.all(one.decode(path, REQUEST).waveform == 0.125)


@pytest.mark.parametrize("rate", [8000, 11_025, 16_000, 22_050, 48_000, 96_000, 192_000])
def test_sample_rate_is_kept(decoder, tmp_path, rate):
    path = media_maker.write_clip(
        tmp_path / "clip.mkv", audio=(0, 2), rate=rate, audio_codec="pcm_s16le", audio_format="s16"
    )
    media = decoder.decode(path, REQUEST)
    assert (media.sample_rate_hz, len(media.waveform)) == (rate, 2 * rate)
    assert media_maker.identify_audio(media.waveform, rate, 1)[0] == 1


def test_default_streams_are_decoded(decoder, tmp_path):
    path = tmp_path / "clip.mkv"
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("ffv1", rate=10) for _ in range(2)]
        streams += [container.add_stream("pcm_s16le", rate=8000, layout="mono") for _ in range(2)]
        for stream in streams[:2]:
            stream.width, stream.height, stream.pix_fmt = 64, 48, "bgra"
        streams[0].disposition = streams[2].disposition = 0
        streams[1].disposition = streams[3].disposition = av.stream.Disposition.default
        for value, stream in ((40, streams[0]), (200, streams[1])):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), value, np.uint8), format="rgb24")
            frame = frame.reformat(format="bgra")
            frame.pts, frame.time_base = 0, Fraction(1, 10)
            container.mux(stream.encode(frame))
        for value, stream in ((4096, streams[2]), (8192, streams[3])):
            frame = av.AudioFrame.from_ndarray(np.full((1, 800), value, np.int16), format="s16", layout="mono")
            frame.sample_rate, frame.pts = 8000, 0
            container.mux(stream.encode(frame))
    media = decoder.decode(path, REQUEST)
    assert backends.own_reason(decoder, media, "several streams") == ""
    assert np.all(media.frames[SIZE] == 200)
    assert np.all(media.waveform[:800] == 0.25)


def test_error_for_an_unknown_decoder_lists_the_known_ones():
    with pytest.raises(
        UserError, match="unknown decoder 'quicktime': choose one of decord, pyav, pyav-cuda, torchcodec"
    ):
        open_decoder("quicktime")
