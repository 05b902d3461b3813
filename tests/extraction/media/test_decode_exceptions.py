"""Each declared exception of a decoder is real: the library behaves as stated, or PyAV decodes the frames instead."""

import random
from fractions import Fraction

import av
import backends
import media_maker
import numpy as np
import pytest
from av.codec.context import Flags

from pipeline.media.decoders.interface import DecoderLoadError
from pipeline.media.decoders.registry import open_decoder
from pipeline.media.timeline import DecodeRequest, FrameSize
from pipeline.store.schema import State

SIZE = FrameSize("stretch", 64)
REQUEST = DecodeRequest(seconds=8, frame_sizes=(SIZE,))
DECLARED = [(name, case) for name in ("torchcodec", "decord") for case in backends.exceptions(name)]


@pytest.fixture
def library(request):
    """The decoder of the requested name; skipped if it does not load."""
    try:
        return open_decoder(request.param)
    except DecoderLoadError as error:
        pytest.skip(str(error))


def decode_alone(name, path):
    """Return the images of all frames as decoded by the library alone, [frame, height, width, 3]."""
    if name == "decord":
        import decord

        reader = decord.VideoReader(str(path), num_threads=1)
        return [reader[number].asnumpy() for number in range(len(reader))]
    from torchcodec.decoders import VideoDecoder

    reader = VideoDecoder(path, dimension_order="NHWC")
    return [reader.get_frame_at(number).data.numpy() for number in range(len(reader))]


def numbers(name, path):
    """Return the numbers of all frames as decoded by the library alone, [] if it fails."""
    try:
        return [media_maker.read_number(image) for image in decode_alone(name, path)]
    except RuntimeError:
        return []


def decode_both(library, path):
    """Return the media of the library and of PyAV."""
    return library.decode(path, REQUEST), open_decoder("pyav").decode(path, REQUEST)


def assert_decoded_by_pyav(library, path, why):
    media, expected = decode_both(library, path)
    assert backends.NOTE in media.visual.reason
    assert why in media.visual.reason
    assert (media.visual.state, media.visual.steps) == (expected.visual.state, expected.visual.steps)
    assert np.array_equal(media.frames[SIZE], expected.frames[SIZE])
    assert np.array_equal(media.waveform, expected.waveform)


def break_packet(path, number, nth=3):
    """Overwrite with zeros the `number`-th packet after the `nth` key frame."""
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        key = [index for index, packet in enumerate(packets) if packet.is_keyframe][nth]
        position, size = packets[key + number].pos, packets[key + number].size
    data = bytearray(path.read_bytes())
    data[position : position + size] = bytes(size)
    path.write_bytes(data)


def show_av1(library, tmp_path):
    path = media_maker.write_clip(tmp_path / "clip.mkv", media_maker.steady(1), video_codec="libsvtav1")
    assert_decoded_by_pyav(library, path, "cannot open the file")


def show_late_start(library, tmp_path):
    import decord

    starts = media_maker.steady(2, start=8)
    path = media_maker.write_clip(tmp_path / "clip.mov", starts, (8, 10), audio_codec="pcm_s16le", audio_format="s16")
    with av.open(str(path)) as container:
        assert next(container.decode(video=0)).time == 8
    assert decord.VideoReader(str(path)).get_frame_timestamp(0)[0] == 0
    assert library.decode(path, REQUEST).visual.reason == ""


def show_edit_list(library, tmp_path):
    path = media_maker.write_clip(tmp_path / "clip.mp4", media_maker.steady(4, 30), (0, 4))
    media_maker.cut_by_edit_list(path, 3)
    assert len(decode_alone(library.name, path)) > 30
    assert_decoded_by_pyav(library, path, "but 30 are shown")


def show_transport_stream(library, tmp_path):
    path = media_maker.write_clip(tmp_path / "clip.ts", media_maker.steady(3), (0, 3))
    assert numbers(library.name, path) != list(range(75))
    assert_decoded_by_pyav(library, path, "is not used for transport streams")


def show_flash_video(library, tmp_path):
    import decord

    path = media_maker.write_clip(tmp_path / "clip.flv", media_maker.steady(6.04), (0, 6))
    assert media_maker.read_number(decord.VideoReader(str(path), num_threads=1)[150].asnumpy()) != 150
    assert_decoded_by_pyav(library, path, "wrong frames in FLV")


def show_open_groups(library, tmp_path):
    import decord

    path = media_maker.write_clip(tmp_path / "clip.mp4", media_maker.steady(7), (0, 7), gop_size=50, has_open_gops=True)
    readers = [(number, decord.VideoReader(str(path), num_threads=1)) for number in (49, 50, 51)]
    assert all(media_maker.read_number(reader[number].asnumpy()) != number for number, reader in readers)
    assert_decoded_by_pyav(library, path, "seeks to wrong frames")
    closed = media_maker.write_clip(tmp_path / "closed.mp4", media_maker.steady(7), (0, 7), gop_size=50)
    assert library.decode(closed, REQUEST).visual.reason == ""


def show_several_streams(library, tmp_path):
    path = tmp_path / "clip.mkv"
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("ffv1", rate=10) for _ in range(2)]
        for number, stream in enumerate(streams):
            stream.width, stream.height, stream.pix_fmt = 64, 48, "bgra"
            stream.disposition = av.stream.Disposition.default if number else 0
        for number, stream in enumerate(streams):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 40 + 160 * number, np.uint8), format="rgb24")
            frame = frame.reformat(format="bgra")
            frame.pts, frame.time_base = 0, Fraction(1, 10)
            container.mux(stream.encode(frame))
    assert_decoded_by_pyav(library, path, "several video streams")


def show_damaged(library, tmp_path):
    path = media_maker.write_clip(tmp_path / "clip.mp4", media_maker.steady(6), (0, 6))
    break_packet(path, 0)
    assert_decoded_by_pyav(library, path, "could not be decoded")


def show_unread_damage(library, tmp_path):
    path = media_maker.write_clip(tmp_path / "clip.mp4", media_maker.steady(6), (0, 6))
    break_packet(path, 22)
    media, expected = decode_both(library, path)
    assert "1 of 150 video packets could not be decoded" in expected.visual.reason
    assert (media.visual.state, media.visual.reason) == (State.COMPLETE, "")
    assert np.array_equal(media.frames[SIZE], expected.frames[SIZE])


def show_mirrored(library, tmp_path):
    path = tmp_path / "clip.mp4"
    media_maker.write_clip(path, media_maker.steady(1), rotation=(0, True))
    plain = [media_maker.draw(number) for number in range(2)]
    alone = decode_alone(library.name, path)
    assert all(abs(one[:, ::-1].astype(int) - two).mean() > 3 for one, two in zip(alone, plain, strict=False))
    assert_decoded_by_pyav(library, path, "not the mirroring")


def show_deep_or_odd_frames(library, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3)).astype(np.uint8)
    for name, size, pix_fmt in (
        ("deep", (80, 60), "yuv420p10le"),
        ("odd", (79, 59), "yuv420p"),
        ("even", (80, 60), "yuv420p"),
    ):
        path = tmp_path / f"{name}.mkv"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("ffv1", rate=1)
            stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
            frame = av.VideoFrame.from_ndarray(noise[: size[1], : size[0]].copy(), format="rgb24").reformat(
                format=pix_fmt
            )
            container.mux([*stream.encode(frame), *stream.encode(None)])
        media, expected = decode_both(library, path)
        assert (media.visual.state, media.visual.reason) == (State.COMPLETE, "")
        difference = np.abs(media.frames[SIZE].astype(int) - expected.frames[SIZE])
        # torchcodec uses the machine's FFmpeg, whose version may behave like PyAV's.
        assert difference.mean() < (10 if name != "even" else 1e-9)
        assert name == "even" or library.name == "torchcodec" or difference.max() > 0


def show_interlaced_frames(library, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    for flags in (0, Flags.interlaced_dct | Flags.interlaced_me):
        path = tmp_path / f"{int(flags)}.mkv"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("mpeg2video", rate=25)
            stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
            stream.codec_context.flags |= flags
            stream.codec_context.bit_rate = 20_000_000
            container.mux([*stream.encode(av.VideoFrame.from_ndarray(noise, format="rgb24")), *stream.encode(None)])
        media, expected = decode_both(library, path)
        assert (media.visual.state, media.visual.reason) == (State.COMPLETE, "")
        difference = np.abs(media.frames[SIZE].astype(int) - expected.frames[SIZE])
        # torchcodec uses the machine's FFmpeg, whose version may behave like PyAV's.
        assert difference.mean() < (20 if flags else 1e-9)
        assert not flags or library.name == "torchcodec" or difference.max() > 0


def show_untimed(library, tmp_path):
    path = media_maker.write_clip(tmp_path / "clip.avi", media_maker.steady(4), (0, 4), audio_codec="mp3")
    assert_decoded_by_pyav(library, path, "timestamps" if library.name == "decord" else "returned the frame at")


def show_gaps_in_the_audio(library, tmp_path):
    from torchcodec.decoders import AudioDecoder

    path = tmp_path / "clip.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        for start, stop in ((0, 3), (3.4, 7)):
            samples = (media_maker.make_waveform(start, stop, 8000)[None] * 32_767).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 8000, round(start * 8000), Fraction(1, 8000)
            container.mux(stream.encode(frame))
    assert AudioDecoder(path).get_all_samples().data.shape[1] == round(6.6 * 8000)
    media = library.decode(path, REQUEST)
    assert len(media.waveform) == 7 * 8000
    assert not media.waveform[round(3.05 * 8000) : round(3.35 * 8000)].any()
    assert [media_maker.identify_audio(media.waveform, 8000, step)[0] for step in (0, 5)] == [0, 5]


@pytest.mark.parametrize(("library", "case"), DECLARED, indirect=["library"])
def test_declared_exception_is_real(library, case, tmp_path):
    globals()[f"show_{case.replace(' ', '_')}"](library, tmp_path)


def test_library_is_not_used_for_a_playlist(decoder, tmp_path):
    clip = media_maker.write_clip(tmp_path / "clip.mp4", media_maker.steady(2))
    path = tmp_path / "list.m3u8"
    path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{clip.name}\n#EXT-X-ENDLIST\n")
    reason = decoder.decode(path, REQUEST).visual.reason
    assert ("is not used for playlists" in reason) == (decoder.name != "pyav"), reason


@pytest.mark.parametrize("seed", range(3))
def test_irregular_frames_equal_those_of_pyav(decoder, tmp_path, seed):
    rng = random.Random(seed)
    starts = [Fraction(0)]
    while starts[-1] < 6:
        starts.append(starts[-1] + Fraction(rng.choice([1, 2, 3, 3, 4, 30]), 75))
    path = media_maker.write_clip(tmp_path / "clip.mkv", starts, (0.5, 6.5))
    media, expected = decode_both(decoder, path)
    assert (media.visual, media.audio) == (expected.visual, expected.audio)
    assert np.array_equal(media.frames[SIZE], expected.frames[SIZE])
    assert np.array_equal(media.waveform, expected.waveform)


@pytest.mark.real
def test_t0_is_the_start_of_audio_before_the_first_frame_in_all_decoders(decoder, shared_data):
    path = shared_data / "media" / "odd" / "sample_edit_list_only_preroll_sync_sample.mp4"
    media, expected = decode_both(decoder, path)
    assert (media.visual.steps, media.audio) == (expected.visual.steps, expected.audio)
    assert np.array_equal(media.waveform, expected.waveform)
