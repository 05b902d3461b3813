"""Sample rate, channels, sample format, frame size and pixel format may change at any frame of a stream."""

from fractions import Fraction

import av
import media_maker
import numpy as np
import pytest

from pipeline.media.timeline import DecodeRequest, FrameSize
from pipeline.store.schema import State

SIZE = FrameSize("stretch", 64)
REQUEST = DecodeRequest(seconds=20, frame_sizes=(SIZE,))


def join(path, parts):
    """Write the bytes of several files to `path`; streams without a container may be joined like this."""
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


def tones(media):
    """Return the second that each second of the audio has the tone of."""
    steps = range(media.audio.steps)
    return [media_maker.identify_audio(media.waveform, media.sample_rate_hz, step)[0] for step in steps]


def without_container(tmp_path, suffix, codec, parts):
    """Write seconds 0-3 and 3-6, each part with its own (rate, layout)."""
    paths = [
        media_maker.write_clip(
            tmp_path / f"{index}.{suffix}",
            audio=(3 * index, 3 * index + 3),
            audio_codec=codec,
            audio_format="s16p" if codec == "mp3" else "fltp",
            rate=rate,
            layout=layout,
        )
        for index, (rate, layout) in enumerate(parts)
    ]
    return join(tmp_path / f"clip.{suffix}", paths)


@pytest.mark.parametrize(
    ("suffix", "codec", "rates"),
    [
        ("aac", "aac", (48_000, 44_100)),
        ("mp3", "mp3", (44_100, 48_000)),
        ("ac3", "ac3", (48_000, 44_100)),
        ("ac3", "ac3", (32_000, 48_000)),
    ],
)
def test_sample_rate_may_change(decoder, tmp_path, suffix, codec, rates):
    path = without_container(tmp_path, suffix, codec, [(rate, "mono") for rate in rates])
    media = decoder.decode(path, REQUEST)
    assert (media.audio.state, media.sample_rate_hz) == (State.COMPLETE, 48_000)
    assert tones(media)[:6] == list(range(6))
    # Each encoder adds up to a tenth of a second, and the click keeps its place.
    clicks = [media_maker.identify_audio(media.waveform, 48_000, step)[1] for step in range(6)]
    assert np.ptp(clicks[:3]) < 0.001 > np.ptp(clicks[3:])
    assert abs(np.array(clicks) - media_maker.CLICK_SECONDS).max() < 0.1


def test_channels_may_change(decoder, tmp_path):
    path = without_container(tmp_path, "aac", "aac", [(44_100, "mono"), (44_100, "stereo")])
    media = decoder.decode(path, REQUEST)
    assert (media.audio.state, media.sample_rate_hz) == (State.COMPLETE, 44_100)
    assert tones(media)[:6] == list(range(6))


def test_sample_rate_that_a_corrupt_packet_states_is_not_taken(decoder, tmp_path):
    path = tmp_path / "clip.aac"
    media_maker.write_clip(path, audio=(0, 3), rate=16_000)
    expected = decoder.decode(path, REQUEST)
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        positions = [packet.pos for packet in container.demux(audio=0) if packet.size]
    header = positions[20] + 2
    data[header] = data[header] & 0b1100_0011
    path.write_bytes(data)
    media = decoder.decode(path, REQUEST)
    assert (media.audio.state, media.sample_rate_hz) == (State.COMPLETE, 16_000)
    assert media.audio.steps == expected.audio.steps


def write_changing_audio(tmp_path, start, video=None, rates=(48_000, 32_000), max_delay_seconds=0.0):
    """Write a transport stream: audio of seconds 0-3 and 3-6 at each of `rates` from `start` on, and a video.

    Several frames of audio share a packet of the stream as long as they are within `max_delay_seconds`.
    """
    without_container(tmp_path, "aac", "aac", [(rate, "mono") for rate in rates])
    options = {"max_delay": str(round(max_delay_seconds * 1_000_000))}
    with (
        av.open(str(tmp_path / "clip.ts"), "w", options=options) as container,
        av.open(str(tmp_path / "0.aac")) as first,
    ):
        stream = container.add_stream_from_template(first.streams.audio[0])
        if video is not None:
            with av.open(str(video)) as source:
                shown = container.add_stream_from_template(source.streams.video[0])
                for packet in filter(lambda packet: packet.size, source.demux(video=0)):
                    packet.stream = shown
                    container.mux(packet)
        for index, rate in enumerate(rates):
            with av.open(str(tmp_path / f"{index}.aac")) as part:
                for packet in filter(lambda packet: packet.size, part.demux(audio=0)):
                    packet.pts = packet.dts = round(start / packet.time_base)
                    packet.stream = stream
                    container.mux(packet)
                    start += Fraction(1024, rate)
    return tmp_path / "clip.ts"


@pytest.mark.parametrize(
    ("rates", "max_delay_seconds"), [((48_000, 32_000), 0), ((48_000, 24_000), 0.7), ((24_000, 48_000), 0.7)]
)
def test_audio_of_a_container_whose_rate_changes(decoder, tmp_path, rates, max_delay_seconds):
    path = write_changing_audio(tmp_path, Fraction(0), rates=rates, max_delay_seconds=max_delay_seconds)
    media = decoder.decode(path, REQUEST)
    assert (media.audio.state, media.sample_rate_hz, media.audio.reason) == (State.COMPLETE, 48_000, "")
    assert tones(media)[:6] == list(range(6))


@pytest.mark.parametrize("decoder", ["pyav"], indirect=True)
def test_late_audio_whose_rate_changes_starts_at_its_first_step(decoder, tmp_path):
    video = media_maker.write_clip(tmp_path / "video.ts", media_maker.steady(9, 5))
    with av.open(str(video)) as container:
        t0 = container.streams.video[0].start_time * container.streams.video[0].time_base
    media = decoder.decode(write_changing_audio(tmp_path, t0 + 2, video), REQUEST)
    assert (media.visual.state, media.visual.first) == (State.COMPLETE, 0)
    assert (media.audio.state, media.audio.first, media.sample_rate_hz) == (State.COMPLETE, 2, 48_000)
    assert media.audio.reason == "the audio starts at second 2"
    assert tones(media)[2:8] == list(range(6))


@pytest.mark.parametrize(
    ("suffix", "codec", "formats"),
    [("h264", "libx264", ("yuv420p", "yuv420p10le")), ("mjpeg", "mjpeg", ("yuvj420p", "yuvj422p"))],
)
def test_frame_size_and_pixel_format_may_change(decoder, tmp_path, suffix, codec, formats):
    paths = [
        media_maker.write_clip(
            tmp_path / f"{index}.{suffix}", media_maker.steady(3), size=size, pix_fmt=pix_fmt, video_codec=codec
        )
        for index, (size, pix_fmt) in enumerate(zip([(192, 128), (96, 160)], formats, strict=True))
    ]
    media = decoder.decode(join(tmp_path / f"clip.{suffix}", paths), REQUEST)
    assert media.visual.state is State.COMPLETE
    assert [media_maker.read_number(image) for image in media.frames[SIZE]] == [12, 37, 62] * 2
