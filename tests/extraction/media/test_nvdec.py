"""Frames decoded by the GPU equal PyAV's, and PyAV decodes what the GPU does not; without a GPU, on a stand-in."""

from dataclasses import replace
from types import SimpleNamespace

import av
import media_maker
import numpy as np
import pytest
from counted_decoding import FINE, SIZE, is_same
from nvdec_stand_in import StandIn, make_decoder
from run_toys import run_toys

from pipeline.manifests.manifest import Manifest, Video, save_manifest
from pipeline.media.decoders.interface import DecoderLoadError
from pipeline.media.decoders.pyav import nvdec
from pipeline.media.decoders.pyav.decoder import PyAVDecoder
from pipeline.media.decoders.registry import open_decoder
from pipeline.media.timeline import DecodeRequest
from pipeline.store.reader import open_store
from pipeline.store.schema import State

REQUEST = DecodeRequest(seconds=8, frame_sizes=(SIZE,))
# Tests of a real GPU too; its decoder takes frames from 144x144 pixels.
GPUS = [StandIn, pytest.param(nvdec.Nvdec, marks=pytest.mark.gpu)]
CLIPS = {
    "mp4": ("clip.mp4", {}),
    "rotated and mirrored": ("clip.mp4", {"rotation": (90, True)}),
    "full range": ("clip.mkv", {"pix_fmt": "yuvj420p"}),
    "open groups": ("clip.mp4", {"has_open_gops": True, "gop_size": 30}),
    "transport stream": ("clip.ts", {}),
    "hevc": ("clip.mp4", {"video_codec": "libx265"}),
    "hevc, 10 bits": ("clip.mkv", {"video_codec": "libx265", "pix_fmt": "yuv420p10le"}),
    "vp9": ("clip.mkv", {"video_codec": "libvpx-vp9"}),
}


@pytest.fixture
def gpu(request):
    """The video decoder of a GPU, or its stand-in; skipped if it does not load."""
    try:
        return request.param()
    except DecoderLoadError as error:
        pytest.skip(str(error))


def write(tmp_path, name="clip.mp4", **options):
    return media_maker.write_clip(tmp_path / name, media_maker.steady(3), (0, 3), size=(192, 160), **options)


def decode_with(gpu, path, request=REQUEST):
    return PyAVDecoder(library=gpu).decode(path, request)


def assert_decoded_by_pyav(gpu, path, why):
    media, expected = decode_with(gpu, path), PyAVDecoder().decode(path, REQUEST)
    note = f"frames decoded by pyav: pyav-cuda {why}"
    assert media.visual.reason == "; ".join(filter(None, [expected.visual.reason, note]))
    assert is_same(replace(media, visual=expected.visual), expected)


@pytest.mark.parametrize("gpu", GPUS, indirect=True)
@pytest.mark.parametrize("kind", CLIPS)
def test_media_equal_those_of_pyav_to_the_bit(tmp_path, gpu, kind):
    name, options = CLIPS[kind]
    path = write(tmp_path, name, **options)
    assert is_same(decode_with(gpu, path), PyAVDecoder().decode(path, REQUEST))


@pytest.mark.real
@pytest.mark.gpu
@pytest.mark.parametrize("gpu", GPUS[1:], indirect=True)
def test_real_files_have_the_frames_of_pyav(gpu, shared_data):
    for path in sorted(path for path in (shared_data / "media").rglob("*") if path.suffix in (".mp4", ".webm", ".mkv")):
        media, expected = decode_with(gpu, path), PyAVDecoder().decode(path, REQUEST)
        assert is_same(replace(media, visual=expected.visual), expected), path.name


@pytest.mark.parametrize(
    "request_", [DecodeRequest(frame_sizes=(SIZE, FINE)), DecodeRequest(frame_sizes=(SIZE,), padding="released")]
)
def test_every_way_to_sample_gives_the_frames_of_pyav(tmp_path, request_):
    path = write(tmp_path)
    assert is_same(decode_with(StandIn(), path, request_), PyAVDecoder().decode(path, request_))


def test_the_gpu_skips_the_frames_that_pyav_skips(tmp_path):
    path, gpu = write(tmp_path), StandIn()
    decode_with(gpu, path)
    assert 0 < gpu.decoded < 60


def test_damage_that_the_processor_notices_is_decoded_there(tmp_path):
    path = write(tmp_path)
    with av.open(str(path)) as container:
        keys = [packet for packet in container.demux(video=0) if packet.size and packet.is_keyframe]
    data = bytearray(path.read_bytes())
    data[keys[2].pos : keys[2].pos + keys[2].size] = bytes(keys[2].size)
    path.write_bytes(data)
    media = decode_with(StandIn(), path)
    assert "could not be decoded" in media.visual.reason
    assert "frames decoded by pyav: pyav-cuda failed" in media.visual.reason
    assert np.array_equal(media.frames[SIZE], PyAVDecoder().decode(path, REQUEST).frames[SIZE])


@pytest.mark.parametrize(
    ("options", "form"),
    [
        ({"video_codec": "libsvtav1"}, "av1 in yuv420p"),
        ({"pix_fmt": "yuv420p10le"}, "h264 in yuv420p10le"),
        ({"pix_fmt": "yuv444p"}, "h264 in yuv444p"),
        ({"video_codec": "mpeg4"}, "mpeg4 in yuv420p"),
    ],
)
def test_the_content_of_a_file_decides_what_decodes_it(tmp_path, options, form):
    gpu = StandIn()
    assert_decoded_by_pyav(gpu, write(tmp_path, "clip.mkv", **options), f"is not used for {form}")
    assert gpu.opened == []


def test_what_the_gpu_refuses_is_decoded_by_pyav(tmp_path):
    why = "failed: Invalid data found when processing input"
    assert_decoded_by_pyav(StandIn(refused={"h264"}), write(tmp_path), why)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda frame: frame.reformat(width=frame.width + 2), "a frame that is not cropped as the stream requires"),
        (lambda frame: frame.reformat(format="p016le"), "a frame in p016le"),
        (
            lambda frame: SimpleNamespace(format=frame.format, width=192, height=160, is_corrupt=True),
            "an incomplete frame",
        ),
    ],
)
def test_frames_that_could_differ_are_decoded_by_pyav(tmp_path, change, why):
    assert_decoded_by_pyav(StandIn(change=change), write(tmp_path), f"returned {why}")


def test_whether_a_file_fails_is_decided_on_the_processor(tmp_path, monkeypatch):
    monkeypatch.setattr(StandIn, "decode", lambda self, stream, packet: [])
    assert_decoded_by_pyav(StandIn(), write(tmp_path), "does not decode all seconds of the file")


@pytest.mark.parametrize("limits", [{}, {"max_pixels": 1000}])
def test_a_file_that_fails_has_the_reason_of_pyav(tmp_path, limits):
    path = write(tmp_path) if limits else tmp_path / "clip.mp4"
    if not limits:
        path.write_bytes(b"no media file")
    request = replace(REQUEST, **limits)
    media = decode_with(StandIn(), path, request)
    assert media.visual.state is State.FAILED
    assert media.visual == PyAVDecoder().decode(path, request).visual


def test_a_gpu_that_cannot_be_opened_is_not_the_fault_of_the_file(tmp_path, monkeypatch):
    gpu, open_file = StandIn(), nvdec.open_file

    def refuse(path, *hwaccel):
        if hwaccel:
            raise av.error.MemoryError(12, "Cannot allocate memory")
        return open_file(path)

    monkeypatch.setattr(nvdec, "open_file", refuse)
    assert_decoded_by_pyav(gpu, write(tmp_path), "cannot use the GPU: Cannot allocate memory")


def test_the_gpu_is_not_opened_for_audio(tmp_path):
    gpu = StandIn()
    media = decode_with(gpu, write(tmp_path), DecodeRequest(seconds=8))
    assert (media.visual.state, media.audio.state, gpu.opened) == (State.PENDING, State.COMPLETE, [])
    alone = media_maker.write_clip(tmp_path / "alone.m4a", audio=(0, 2))
    assert (decode_with(gpu, alone).visual.state, decode_with(gpu, alone).visual.reason) == (State.ABSENT, "")


def brighten(frame):
    changed = av.VideoFrame.from_ndarray(np.clip(frame.to_ndarray(), 0, 200) + 5, format=frame.format.name)
    changed.pts, changed.time_base = frame.pts, frame.time_base
    return changed


def test_the_measured_difference_is_part_of_the_version():
    equal = PyAVDecoder(library=StandIn())
    assert equal.version().startswith("pyav-cuda: frames equal pyav's; pyav ")
    assert equal.version("audio") == PyAVDecoder().version("audio")
    gpu = StandIn(refused={"vp9", "hevc"}, change=brighten)
    found = gpu.probe()
    assert found["vp9 yuv420p"] == "failed: Invalid data found when processing input"
    assert found["h264 yuv420p"] >= 5
    assert gpu.version() == f"pyav-cuda: frames differ from pyav's by up to {found['h264 yuv420p']} of 255 levels"


def test_a_gpu_that_decodes_nothing_is_refused():
    with pytest.raises(
        DecoderLoadError, match=r"decodes no video \(h264 yuv420p: failed: Invalid data.*pass --decoder"
    ):
        StandIn(refused={"h264", "hevc", "vp9"}).version()


def test_the_store_has_the_decoder_and_the_reason_of_each_fallback(tmp_path):
    videos = tmp_path / "videos"
    videos.mkdir()
    write(videos, "gpu.mp4")
    write(videos, "processor.mp4", video_codec="mpeg4")
    listed = tuple(Video(name, f"{name}.mp4") for name in ("gpu", "processor"))
    save_manifest(Manifest("few", "1", "none", listed), tmp_path)
    run_toys(tmp_path, tmp_path / "s", ("toy-image",), decoder="nvdec_stand_in:make_decoder", question_features=())
    run_toys(tmp_path, tmp_path / "p", ("toy-image",), question_features=())
    store, plain = open_store(tmp_path / "s"), open_store(tmp_path / "p")
    assert store.spec("toy-image").constants["decoder"]["version"] == make_decoder().version()
    assert store.reasons("visual") == [
        "",
        "frames decoded by pyav: pyav-cuda is not used for mpeg4 in yuv420p",
    ]
    assert np.array_equal(store.values("toy-image")[:], plain.values("toy-image")[:], equal_nan=True)


def test_without_a_driver_the_decoder_does_not_load(monkeypatch):
    monkeypatch.setattr(nvdec, "loads", lambda library: library == nvdec.DRIVER)
    with pytest.raises(DecoderLoadError, match=r"libnvcuvid\.so\.1 does not load: .*libnvidia-decode.*--decoder pyav"):
        open_decoder("pyav-cuda")


def test_without_a_gpu_the_decoder_does_not_load(monkeypatch):
    monkeypatch.setattr(nvdec, "loads", lambda library: True)
    tried = []

    def refuse(codec, mode, hwaccel):
        tried.append(hwaccel.options)
        raise av.error.ExternalError(542398533, "Generic error in an external library")

    monkeypatch.setattr(nvdec.av.CodecContext, "create", refuse)
    with pytest.raises(DecoderLoadError, match=r"the GPU cannot be opened \(Generic error in an external library\)"):
        open_decoder("pyav-cuda")
    assert tried == [{"primary_ctx": "1"}, {}]
