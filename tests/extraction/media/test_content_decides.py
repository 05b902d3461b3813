"""What a file contains decides how it is read: not its suffix, and not the length that its header states."""

import struct

import av
import media_maker
import numpy as np
import pytest
import soundfile

from pipeline.media.timeline import DecodeRequest, FrameSize, Track
from pipeline.store.schema import State

REQUEST = DecodeRequest(seconds=20, frame_sizes=(FrameSize("stretch", 32),))
RATE = 8000
SECONDS = 3
WAVEFORM = media_maker.make_waveform(0, SECONDS, RATE)
NO_VIDEO = Track(State.ABSENT)


def write(path, **options):
    soundfile.write(path, WAVEFORM, RATE, **options)
    return path


def assert_has_all_audio(media, steps=(SECONDS,), reason=""):
    assert media.visual == NO_VIDEO
    assert (media.audio.state, media.audio.reason) == (State.COMPLETE, reason)
    assert media.audio.steps in steps
    seconds = [media_maker.identify_audio(media.waveform, media.sample_rate_hz, step)[0] for step in range(SECONDS)]
    assert seconds == list(range(SECONDS))


@pytest.mark.parametrize(
    ("content", "codec"),
    [("adts", "aac"), ("mp4", "aac"), ("mp3", "mp3"), ("ogg", "libopus"), ("wav", "pcm_s16le"), ("flac", "flac")],
)
def test_suffix_has_no_influence(decoder, tmp_path, content, codec):
    audio_format = "fltp" if codec == "aac" else "s16"
    path = tmp_path / f"clip.{content}"
    media_maker.write_clip(path, audio=(0, SECONDS), audio_codec=codec, audio_format=audio_format, rate=48_000)
    for suffix in ("wav", "mp3", "mp4", "unknown"):
        path = path.rename(path.with_suffix(f".{suffix}"))
        media = decoder.decode(path, REQUEST)
        assert media.sample_rate_hz == 48_000
        # ADTS does not state the delay of its encoder, which lengthens the audio to a fourth second.
        assert_has_all_audio(media, steps=(SECONDS + 1 if content == "adts" else SECONDS,))


def test_video_in_a_file_with_an_audio_suffix_is_decoded(decoder, tmp_path):
    clip = media_maker.write_clip(tmp_path / "clip.mp4", media_maker.steady(2), (0, 2))
    media = decoder.decode(clip.rename(tmp_path / "clip.wav"), REQUEST)
    assert (media.visual.state, media.audio.state) == (State.COMPLETE, State.COMPLETE)


@pytest.mark.parametrize("suffix", ["mp3", "flac"])
def test_cover_image_is_no_video(decoder, tmp_path, suffix):
    path = tmp_path / f"clip.{suffix}"
    codec, audio_format = ("mp3", "s16p") if suffix == "mp3" else ("flac", "s16")
    with av.open(str(path), "w") as container:
        audio = container.add_stream(codec, rate=44_100, layout="mono")
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        image = av.VideoFrame.from_ndarray(media_maker.draw(1, 64, 48), format="rgb24").reformat(format="yuvj420p")
        packets = [*cover.encode(image), *cover.encode(None)]
        container.mux(packets)
        for block in media_maker.audio_blocks((0, SECONDS), 44_100, "mono", audio_format):
            container.mux(audio.encode(block))
        container.mux(audio.encode(None))
    assert_has_all_audio(decoder.decode(path, REQUEST))


def test_mp3_that_states_no_length_is_decoded_to_its_end(decoder, tmp_path):
    path = tmp_path / "clip.mp3"
    with path.open("wb") as file:
        for second, bit_rate in enumerate((320_000, 32_000, 32_000)):
            part = tmp_path / f"{second}.mp3"
            with av.open(str(part), "w", options={"write_xing": "0", "id3v2_version": "0"}) as container:
                stream = container.add_stream("mp3", rate=44_100, layout="mono")
                stream.bit_rate = bit_rate
                for block in media_maker.audio_blocks((second, second + 1), 44_100, "mono", "s16p"):
                    block.pts -= second * 44_100
                    container.mux(stream.encode(block))
                container.mux(stream.encode(None))
            file.write(part.read_bytes())
    media = decoder.decode(path, REQUEST)
    assert (media.visual, media.audio.state, media.audio.steps) == (NO_VIDEO, State.COMPLETE, SECONDS + 1)


@pytest.mark.parametrize("stated_samples", [0, 100, RATE * 1000])
def test_flac_is_decoded_to_its_end_whatever_length_it_states(decoder, tmp_path, stated_samples):
    path = write(tmp_path / "clip.flac")
    data = bytearray(path.read_bytes())
    fields = int.from_bytes(data[18:26], "big")
    data[18:26] = (fields >> 36 << 36 | stated_samples).to_bytes(8, "big")
    path.write_bytes(data)
    assert_has_all_audio(decoder.decode(path, REQUEST))


def set_wav_length(path, stated):
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, data.index(b"data") + 4, stated)
    path.write_bytes(data)


@pytest.mark.parametrize("stated", [0, 44, RATE, 0x7FFF_F000, 0xFFFF_FFFF])
def test_wav_is_decoded_to_its_end_whatever_length_it_states(decoder, tmp_path, stated):
    path = write(tmp_path / "clip.wav")
    set_wav_length(path, stated)
    states_length = 0 < stated <= RATE
    reason = f"the last {2 * RATE * SECONDS - stated} bytes follow the end that the file states: decoded as audio"
    media = decoder.decode(path, REQUEST)
    assert_has_all_audio(media, reason=reason if states_length else "")
    assert abs(media.waveform - WAVEFORM).max() < 2 / 32_768


def test_reason_of_a_truncated_wav_file(decoder, tmp_path):
    path = write(tmp_path / "clip.wav")
    path.write_bytes(path.read_bytes()[: -2 * RATE])
    reason = f"the file is truncated: its last chunk states {2 * RATE} bytes more than it contains"
    assert decoder.decode(path, REQUEST).audio == Track(State.COMPLETE, SECONDS - 1, reason)


@pytest.mark.parametrize("padding", [b"", b"\0"])
def test_chunk_after_the_audio_of_a_wav_file_is_not_audio(decoder, tmp_path, padding):
    path = write(tmp_path / "clip.wav")
    chunk = struct.pack("<4sI", b"id3 ", 20_000) + b"\x55" * 20_000
    path.write_bytes(path.read_bytes() + padding + chunk)
    media = decoder.decode(path, REQUEST)
    assert_has_all_audio(media)
    assert len(media.waveform) == len(WAVEFORM)


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_24", "FLOAT", "DOUBLE", "IMA_ADPCM", "ULAW"])
def test_wav_subtype(decoder, tmp_path, subtype):
    path = write(tmp_path / "clip.wav", subtype=subtype)
    media = decoder.decode(path, REQUEST)
    expected, _ = soundfile.read(path, dtype="float32")
    assert media.audio.state is State.COMPLETE
    assert np.array_equal(media.waveform[: len(expected)], expected)


@pytest.mark.parametrize("container", ["AIFF", "AU", "W64", "CAF", "RF64", "WAVEX", "FLAC"])
def test_samples_of_lossless_files_are_exact(decoder, tmp_path, container):
    path = write(tmp_path / "clip", format=container, subtype="PCM_16")
    media = decoder.decode(path, REQUEST)
    expected, _ = soundfile.read(path, dtype="float32")
    assert media.audio.reason == ""
    assert np.array_equal(media.waveform, expected)


def test_libsndfile_reads_what_ffmpeg_cannot(decoder, tmp_path):
    tagged = tmp_path / "clip.wav"
    tagged.write_bytes(b"ID3\x03\0\0\0\0\0\x40" + bytes(64) + write(tmp_path / "plain.wav").read_bytes())
    for path in (write(tmp_path / "clip.mat", format="MAT5", subtype="PCM_16"), tagged):
        media = decoder.decode(path, REQUEST)
        assert media.audio.reason.startswith("audio read by libsndfile; FFmpeg: ")
        assert_has_all_audio(media, reason=media.audio.reason)
        frames_only = decoder.decode(path, DecodeRequest(frame_sizes=REQUEST.frame_sizes, wants_audio=False))
        assert (frames_only.visual, frames_only.audio) == (NO_VIDEO, Track(State.PENDING))


@pytest.mark.parametrize("suffix", ["mp3", "wav", "aac", "mp4"])
def test_noise_is_not_accepted_as_audio(decoder, tmp_path, suffix, capfd):
    path = tmp_path / f"clip.{suffix}"
    path.write_bytes(np.random.default_rng(0).bytes(200_000))
    media = decoder.decode(path, REQUEST)
    assert media.audio.state is State.FAILED
    assert "error" not in media.audio.reason.lower()
    assert capfd.readouterr() == ("", "")
