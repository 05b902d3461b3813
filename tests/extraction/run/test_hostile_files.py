"""Runs over files that crash, hang or bloat the decoder process, or claim wrong sizes: each file fails alone."""

import hashlib
import struct
from pathlib import Path
from typing import Any

import av
import media_maker
import numpy as np
import pytest
from run_toys import run_toys

from pipeline.errors import UserError
from pipeline.inspection.verify import verify_store
from pipeline.manifests.manifest import save_manifest
from pipeline.manifests.sources.folder import build
from pipeline.media.decoder_process import DecoderProcess, Limits
from pipeline.media.timeline import DecodeRequest, FrameSize, Track
from pipeline.store.reader import open_store
from pipeline.store.schema import State

CLAIMED_SECONDS = 143_165
SIZE = FrameSize("stretch", 64)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "set" / "videos").mkdir(parents=True)
    return tmp_path / "set"


def make_manifest(folder: Path) -> Path:
    save_manifest(build("set", folder / "videos").manifest, folder)
    return folder


def claim_size(path: Path, side: int) -> None:
    """Write a video of one PNG frame whose header claims `side` x `side` pixels."""
    with av.open(str(path), "w", format="mov") as container:
        stream = container.add_stream("png", rate=1)
        stream.width = stream.height = 64
        stream.pix_fmt = "rgb24"
        frame = av.VideoFrame.from_ndarray(media_maker.draw(1, 64, 64), format="rgb24")
        container.mux([*stream.encode(frame), *stream.encode(None)])
    data = bytearray(path.read_bytes())
    struct.pack_into(">II", data, data.index(b"IHDR") + 4, side, side)
    path.write_bytes(data)


def test_files_that_kill_hang_or_bloat_the_decoder_fail_alone(folder: Path) -> None:
    for name in ("fine", "crashed", "hanging", "bloating", "killed_once"):
        (folder / "videos" / f"{name}.mp4").write_bytes(name.encode())
    limits = Limits(wall_seconds=2, memory_bytes=200_000_000)
    store = folder / "store.zarr"
    summary = run_toys(
        make_manifest(folder), store, ("toy-audio",), decoder="failing_decoders:FailingDecoder", limits=limits
    )
    assert not summary.is_complete
    assert {failure["video_id"]: failure["reason"] for failure in summary.failures} == {
        "crashed": "decoder killed by signal 11 (SIGSEGV) twice",
        "hanging": "decoder did not answer for 2 s twice",
        "bloating": "needs more than 0.2 GB of memory twice (to allow more: --max-memory-gb)",
    }
    assert summary.states["toy-audio"] == {"complete": 2, "failed": 3, "absent": 0, "pending": 0}
    assert verify_store(open_store(store)) == []


def test_a_file_that_exceeded_a_limit_is_decoded_under_a_larger_one(folder: Path) -> None:
    (folder / "videos" / "large.mp4").write_bytes(b"large")
    store, manifest = folder / "store.zarr", make_manifest(folder)
    options: dict[str, Any] = {"features": ("toy-audio",), "decoder": "failing_decoders:FailingDecoder"}
    failed = run_toys(manifest, store, max_memory_gb=0.05, **options)
    (failure,) = failed.failures
    assert failure["reason"] == "needs more than 0.05 GB of memory twice (to allow more: --max-memory-gb)"
    fingerprint = open_store(store).spec("toy-audio").fingerprint
    assert run_toys(manifest, store, retry_failed=True, **options).is_complete
    assert open_store(store).spec("toy-audio").fingerprint == fingerprint


def test_a_file_of_ten_terabytes_is_neither_hashed_nor_opened(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "videos" / "fine.mp4").write_bytes(b"fine")
    manifest = make_manifest(folder)
    (folder / "videos" / "fine.mp4").unlink()
    with (folder / "videos" / "fine.mp4").open("wb") as file:
        file.truncate(10**13)
    monkeypatch.setattr(hashlib, "file_digest", lambda *arguments: pytest.fail("the file is hashed"))
    summary = run_toys(manifest, folder / "store.zarr", ("toy-audio",), decoder="failing_decoders:FailingDecoder")
    (failure,) = summary.failures
    expected = "the file has 10000000000000 bytes, more than 20000000000 (to allow more: --max-file-gb)"
    assert failure["reason"] == expected
    assert not (folder / "videos" / "fine.mp4.attempts").exists()


def test_files_that_claim_a_wrong_duration_or_size_affect_no_other_file(folder: Path) -> None:
    videos = folder / "videos"
    for name in ("fine", "long"):
        media_maker.write_clip(videos / f"{name}.mkv", media_maker.steady(3), (0, 3), size=(64, 64))
    media_maker.claim_duration(videos / "long.mkv", CLAIMED_SECONDS)
    with av.open(str(videos / "long.mkv")) as container:
        assert container.duration == CLAIMED_SECONDS * av.time_base, "the header claims the wrong duration"
    claim_size(videos / "wide.mov", 100_000)
    store = folder / "store.zarr"
    summary = run_toys(make_manifest(folder), store, seconds=60)
    assert {failure["video_id"] for failure in summary.failures} == {"wide"}
    opened = open_store(store)
    assert [int(opened.steps("visual")[opened.rows[name]]) for name in ("fine", "long")] == [3, 3]
    frames = opened.values("toy-image")
    assert np.array_equal(frames[opened.rows["fine"], :3], frames[opened.rows["long"], :3])


@pytest.mark.parametrize("side", [9_000, 100_000])
def test_a_frame_of_up_to_ten_gigapixels_fails_within_the_limits(side: int, tmp_path: Path) -> None:
    claim_size(tmp_path / "wide.mov", side)
    with DecoderProcess("pyav") as process:
        media = process.decode(tmp_path / "wide.mov", DecodeRequest(seconds=60, frame_sizes=(SIZE,)))
        assert process.pid is not None, "the decoder process is still running"
    assert media.visual.state is State.FAILED
    assert media.visual.reason.startswith("no frame could be decoded; 1 of 1 video packets")


def test_a_video_without_a_decodable_frame_needs_no_memory_for_all_its_audio(tmp_path: Path) -> None:
    pcm = {"audio_codec": "pcm_s16le", "audio_format": "s16", "layout": "stereo", "rate": 48_000}
    path = media_maker.write_clip(tmp_path / "clip.mov", media_maker.steady(1), (0.12, 100), **pcm)
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        for packet in container.demux(video=0):
            data[packet.pos or 0 : (packet.pos or 0) + packet.size] = bytes(packet.size)
    path.write_bytes(data)
    with DecoderProcess("pyav", Limits(memory_bytes=16_000_000)) as process:
        media = process.decode(path, DecodeRequest(seconds=2, frame_sizes=(SIZE,)))
    assert media.visual.reason.startswith("no frame could be decoded; 25 of 25 video packets")
    assert media.audio == Track(State.COMPLETE, 2)


def test_a_video_that_became_a_link_out_of_the_folder_is_refused_before_any_work(folder: Path) -> None:
    videos = folder / "videos"
    for name in ("a", "b"):
        media_maker.write_clip(videos / f"{name}.mp4", media_maker.steady(1), size=(64, 64))
    manifest = make_manifest(folder)
    (videos / "b.mp4").rename(folder / "secret.mp4")
    (videos / "b.mp4").symlink_to(folder / "secret.mp4")
    with pytest.raises(UserError, match=r"video 'b\.mp4' in .* is a link out of that folder, to '.*secret\.mp4'"):
        run_toys(manifest, folder / "store.zarr")
    (videos / "b.mp4").unlink()
    (folder / "secret.mp4").rename(videos / "c.mp4")
    (videos / "b.mp4").symlink_to(videos / "c.mp4")
    assert run_toys(manifest, folder / "store.zarr").is_complete, "a link inside the folder is followed"
