"""Where a file states that it ends, and where it does: what is not decoded is in the reason."""

import struct
from dataclasses import replace

import av
import media_maker
import pytest
import soundfile

from pipeline.media.decoders.pyav.extent import read_extent
from pipeline.media.decoders.registry import open_decoder
from pipeline.media.timeline import DecodeRequest, FrameSize, Track
from pipeline.store.schema import State

REQUEST = DecodeRequest(seconds=20, frame_sizes=(FrameSize("stretch", 32),))
RATE, SECONDS = 8000, 3
AUDIO_BYTES = 2 * RATE * SECONDS
# Of each format: how the chunk with the size of the audio begins, where its size is stated and as what, and what else
# than the audio it counts.
SIZES = {
    "WAV": (b"data", 4, "<I", 0),
    "RF64": (b"ds64", 16, "<Q", 0),
    "W64": (b"data", 16, "<Q", 24),
    "AIFF": (b"SSND", 4, ">I", 8),
    "CAF": (b"data", 4, ">Q", 4),
}
JOINED = "the last {} bytes are another file, joined to this one: not decoded, or not reliably"
TRUNCATED = "the file is truncated: its last chunk states {} bytes more than it contains"


def write_audio(path, container):
    soundfile.write(path, media_maker.make_waveform(0, SECONDS, RATE), RATE, format=container, subtype="PCM_16")
    return path


def state_size(path, container, audio_bytes):
    name, offset, size_format, others = SIZES[container]
    data = bytearray(path.read_bytes())
    struct.pack_into(size_format, data, data.index(name) + offset, audio_bytes + others)
    path.write_bytes(data)


def join(path, *parts):
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


def seconds_of_audio(media):
    steps = range(media.audio.steps)
    return [media_maker.identify_audio(media.waveform, media.sample_rate_hz, step)[0] for step in steps]


def keep(_kind, _number, *times):
    return times


@pytest.fixture(scope="module")
def decoder():
    return open_decoder("pyav")


@pytest.fixture(scope="module")
def fragmented(tmp_path_factory):
    """An MP4 file of three seconds, with a fragment for each."""
    folder = tmp_path_factory.mktemp("fragmented")
    clip = media_maker.write_clip(folder / "clip.mp4", media_maker.steady(SECONDS), (0, SECONDS))
    options = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
    return media_maker.retime(clip, folder / "fragmented.mp4", keep, **options)


@pytest.mark.parametrize("container", SIZES)
def test_size_stated_too_small_is_reported(decoder, tmp_path, container):
    path = write_audio(tmp_path / "clip", container)
    state_size(path, container, AUDIO_BYTES // SECONDS)
    media = decoder.decode(path, REQUEST)
    can_continue = container in ("WAV", "RF64")
    decoded = "decoded as audio" if can_continue else "not decoded"
    reason = f"the last {AUDIO_BYTES * 2 // 3} bytes follow the end that the file states: {decoded}"
    assert media.audio == Track(State.COMPLETE, SECONDS if can_continue else 1, reason)
    assert seconds_of_audio(media) == list(range(media.audio.steps))


@pytest.mark.parametrize("container", SIZES)
def test_truncated_audio_is_reported(decoder, tmp_path, container):
    path = write_audio(tmp_path / "clip", container)
    path.write_bytes(path.read_bytes()[: -2 * RATE])
    assert decoder.decode(path, REQUEST).audio == Track(State.COMPLETE, 2, TRUNCATED.format(2 * RATE))


@pytest.mark.parametrize("container", SIZES)
def test_audio_joined_to_a_file_is_reported(decoder, tmp_path, container):
    first = write_audio(tmp_path / "first", container)
    path = join(tmp_path / "clip", first, first)
    assert decoder.decode(path, REQUEST).audio == Track(State.COMPLETE, 3, JOINED.format(first.stat().st_size))


def test_unknown_size_of_a_piped_rf64_file_is_not_taken_for_an_empty_one(decoder, tmp_path):
    path = write_audio(tmp_path / "clip.wav", "RF64")
    state_size(path, "RF64", 0)
    media = decoder.decode(path, REQUEST)
    assert (media.audio.state, seconds_of_audio(media)) == (State.COMPLETE, [0, 1, 2])


@pytest.mark.parametrize("size", [2**40, 2**64 - 100])
@pytest.mark.parametrize("container", ["RF64", "W64", "CAF"])
def test_size_that_no_file_has_is_a_placeholder(tmp_path, container, size):
    path = write_audio(tmp_path / "clip", container)
    state_size(path, container, size)
    assert read_extent(path) is None


@pytest.mark.parametrize("container", SIZES)
def test_decoding_that_ends_before_the_file_does_reports_nothing(decoder, tmp_path, container):
    path = write_audio(tmp_path / "clip", container)
    path = join(tmp_path / "joined", path, path)
    assert decoder.decode(path, DecodeRequest(seconds=2)).audio == Track(State.COMPLETE, 2)


@pytest.mark.parametrize("suffix", ["mp4", "mov"])
@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_clip_joined_to_another_is_reported(decoder, tmp_path, suffix, codec):
    first = media_maker.write_clip(tmp_path / f"first.{suffix}", media_maker.steady(2), (0, 2))
    second = media_maker.write_clip(tmp_path / f"second.{suffix}", media_maker.steady(2), (0, 2), video_codec=codec)
    alone, media = (decoder.decode(path, REQUEST) for path in (first, join(tmp_path / "clip", first, second)))
    assert alone.visual.reason == alone.audio.reason == ""
    reason = JOINED.format(second.stat().st_size)
    assert media.visual == replace(alone.visual, reason=reason)
    assert media.audio == replace(alone.audio, reason=reason)


@pytest.mark.parametrize("share", [0.2, 0.7, 0.95])
def test_truncated_fragment_is_reported(decoder, tmp_path, fragmented, share):
    data = fragmented.read_bytes()
    begin = data.rindex(b"mdat") - 4
    box_bytes = int.from_bytes(data[begin : begin + 4], "big")
    kept = round(share * box_bytes)
    path = tmp_path / "clip.mp4"
    path.write_bytes(data[: begin + kept])
    media = decoder.decode(path, REQUEST)
    assert TRUNCATED.format(box_bytes - kept) in media.visual.reason
    assert TRUNCATED.format(box_bytes - kept) in media.audio.reason


def test_fragmented_file_that_is_whole_has_no_reason(decoder, fragmented):
    media = decoder.decode(fragmented, REQUEST)
    assert (media.visual.state, media.audio.state) == (State.COMPLETE, State.COMPLETE)
    assert media.visual.reason == media.audio.reason == ""


@pytest.mark.parametrize("options", [{}, {"movflags": "faststart"}, {"movflags": "frag_keyframe"}])
def test_boxes_around_the_media_of_an_mp4_file_are_no_media(tmp_path, options):
    clip = media_maker.write_clip(tmp_path / "clip.mp4", media_maker.steady(1), (0, 1))
    path = media_maker.retime(clip, tmp_path / "other.mp4", keep, **options)
    boxes = struct.pack(">I4s", 5008, b"free") + bytes(5000) + struct.pack(">I4sQ", 1, b"uuid", 5016) + bytes(5000)
    path.write_bytes(path.read_bytes() + boxes)
    extent = read_extent(path)
    assert extent.describe() == ""
    assert extent.end == path.stat().st_size


def test_box_with_a_size_of_zero_reaches_to_the_end_of_the_file(decoder, tmp_path):
    clip = media_maker.write_clip(tmp_path / "clip.mp4", media_maker.steady(1), (0, 1))
    path = media_maker.retime(clip, tmp_path / "faststart.mp4", keep, movflags="faststart")
    data = bytearray(path.read_bytes())
    struct.pack_into(">I", data, data.index(b"mdat") - 4, 0)
    path.write_bytes(data)
    assert decoder.decode(path, REQUEST).visual == Track(State.COMPLETE, 1)


@pytest.mark.parametrize(
    "content", [b"", b"RIFF", b"RIFF\0\0\0\0WAVE", b"\0\0\0\0ftyp" + bytes(50), b"caff" + bytes(90)]
)
def test_header_without_media_states_no_end(tmp_path, content):
    path = tmp_path / "clip"
    path.write_bytes(content)
    assert read_extent(path) is None


def test_formats_without_chunks_state_no_end(tmp_path):
    with av.open(str(tmp_path / "clip.mkv"), "w") as container:
        container.add_stream("pcm_s16le", rate=RATE)
        container.start_encoding()
    assert read_extent(tmp_path / "clip.mkv") is None
