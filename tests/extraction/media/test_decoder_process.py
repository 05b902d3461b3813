"""A decoder may crash, hang or bloat: it costs that one file, and nothing is left behind."""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import media_maker
import numpy as np
import paths
import psutil
import pytest

from pipeline.media.decoder_process import DecoderProcess, DecoderStartError, Limits
from pipeline.media.decoders.registry import open_decoder
from pipeline.media.timeline import DecodeRequest, FrameSize
from pipeline.store.schema import State

FAILING = "failing_decoders:FailingDecoder"
SIZE = FrameSize("stretch", 64)
REQUEST = DecodeRequest(seconds=2, frame_sizes=(SIZE,))
LIMITS = Limits(cpu_seconds_at_least=1, wall_seconds=20, memory_bytes=200_000_000)


@pytest.fixture
def child():
    with DecoderProcess(FAILING, LIMITS) as child:
        yield child


def decode(child, tmp_path, what):
    path = tmp_path / f"{what}.mp4"
    path.write_bytes(b"x")
    media = child.decode(path, REQUEST)
    attempts = (tmp_path / f"{path.name}.attempts").read_text().split()
    return media, [int(pid) for pid in attempts]


def assert_is_fine(child, tmp_path):
    media, _ = decode(child, tmp_path, "fine")
    assert media.visual.state is State.COMPLETE


def test_child_gives_what_the_decoder_gives(tmp_path):
    path = media_maker.write_clip(tmp_path / "clip.mp4", media_maker.steady(3), (0, 3))
    request = DecodeRequest(frame_sizes=(SIZE, FrameSize("crop", 32, shorter_side=48, filter="bicubic")))
    expected = open_decoder("pyav").decode(path, request)
    with DecoderProcess("pyav") as child:
        media = child.decode(path, request)
    assert (media.visual, media.audio) == (expected.visual, expected.audio)
    assert media.sample_rate_hz == expected.sample_rate_hz
    assert media.frames.keys() == expected.frames.keys()
    assert all(np.array_equal(media.frames[size], expected.frames[size]) for size in expected.frames)
    assert np.array_equal(media.waveform, expected.waveform)


def test_a_minute_of_clips_comes_through(tmp_path):
    path = media_maker.write_clip(tmp_path / "clip.mp4", media_maker.steady(60, 16), size=(64, 64))
    clip = FrameSize("stretch", 112, per_second=16)
    with DecoderProcess("pyav") as child:
        media = child.decode(path, DecodeRequest(seconds=60, frame_sizes=(clip,)))
    assert media.frames[clip].shape == (960, 112, 112, 3)
    assert [media_maker.read(picture) for picture in media.frames[clip]] == list(range(960))


def test_more_pictures_of_a_second_are_allowed_more_time():
    limits = Limits(cpu_seconds_per_minute=30, cpu_seconds_at_least=10, cpu_seconds_per_picture=0.05)
    clip = FrameSize("stretch", 112, per_second=16)
    assert limits.cpu_seconds(DecodeRequest(seconds=60, frame_sizes=(SIZE,))) == 30
    assert limits.cpu_seconds(DecodeRequest(seconds=60, frame_sizes=(SIZE, clip))) == 30 + 45
    assert limits.cpu_seconds(DecodeRequest(seconds=2, frame_sizes=(SIZE,))) == 10


def test_one_child_serves_many_files_whatever_is_printed_meanwhile(child, tmp_path, capfd):
    attempts = [decode(child, tmp_path, "fine")[1][-1] for _ in range(3)]
    assert len(set(attempts)) == 1
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("killed", "decoder killed by signal 9 (SIGKILL) twice"),
        ("crashed", "decoder killed by signal 11 (SIGSEGV) twice"),
        (
            "killed_differently",
            "decoder killed by signal 9 (SIGKILL), then decoder killed by signal 11 (SIGSEGV)",
        ),
        ("spinning", "took more than 1 s of processor time twice"),
        ("bloating", "needs more than 0.2 GB of memory twice"),
        ("buggy", "decoder stopped with exit code 1 (ZeroDivisionError: a mistake of ours) twice"),
    ],
)
def test_file_that_kills_or_outlasts_its_child_twice_has_failed(child, tmp_path, what, reason):
    media, attempts = decode(child, tmp_path, what)
    assert (media.visual.state, media.audio.state) == (State.FAILED, State.FAILED)
    assert media.visual.reason == media.audio.reason == reason
    assert len(set(attempts)) == 2
    assert not any(psutil.pid_exists(pid) for pid in attempts)
    assert_is_fine(child, tmp_path)


@pytest.mark.parametrize("what", ["hanging", "stopped"])
def test_hanging_file_is_ended_by_the_wall_clock(tmp_path, what):
    with DecoderProcess(FAILING, Limits(wall_seconds=1)) as child:
        media, attempts = decode(child, tmp_path, what)
        assert media.visual.reason == "gave no answer for 1 s twice"
        assert not any(psutil.pid_exists(pid) for pid in attempts)
        assert_is_fine(child, tmp_path)


def test_file_that_killed_its_child_once_gets_a_second_try(child, tmp_path):
    media, attempts = decode(child, tmp_path, "killed_once")
    assert media.visual.state is State.COMPLETE
    assert len(attempts) == 2


def test_child_that_died_between_files_costs_no_file(child, tmp_path):
    _, (pid,) = decode(child, tmp_path, "fine")
    psutil.Process(pid).kill()
    media, attempts = decode(child, tmp_path, "killed_once")
    assert media.visual.state is State.COMPLETE
    assert len(attempts) == 2


def test_processor_time_is_counted_per_file(child, tmp_path):
    for _ in range(4):
        media, attempts = decode(child, tmp_path, "busy")
        assert media.visual.reason == ""
    assert len(set(attempts)) == 1


def test_loading_libraries_for_a_file_is_not_counted_as_its_time(child, tmp_path):
    media, attempts = decode(child, tmp_path, "slow_to_load")
    assert media.visual.reason == ""
    assert len(attempts) == 1


def test_last_words_are_of_the_file_that_ended_the_child(child, tmp_path):
    assert_is_fine(child, tmp_path)
    media, _ = decode(child, tmp_path, "ended")
    assert media.visual.reason == "decoder stopped with exit code 3 (bye) twice"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux shows what a process writes to")
def test_what_is_printed_over_many_files_is_not_hoarded(child, tmp_path):
    sizes = []
    for _ in range(3):
        assert_is_fine(child, tmp_path)
        sizes.append(Path(f"/proc/{child.pid}/fd/2").stat().st_size)
    assert 0 < sizes[0] == sizes[1] == sizes[2]


def test_ctrl_c_is_for_the_parent_to_answer(child, tmp_path):
    _, (pid,) = decode(child, tmp_path, "fine")
    os.kill(pid, signal.SIGINT)
    _, (_, again) = decode(child, tmp_path, "fine")
    assert again == pid


def test_child_that_crashes_leaves_no_dump_of_its_memory(child, tmp_path):
    before = resource.getrlimit(resource.RLIMIT_CORE)
    if before[1] == 0:
        pytest.skip("this machine allows no dumps at all")
    resource.setrlimit(resource.RLIMIT_CORE, (before[1], before[1]))
    try:
        assert_is_fine(child, tmp_path)
        assert psutil.Process(child.pid).rlimit(psutil.RLIMIT_CORE) == (0, 0)
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, before)


def test_too_large_file_is_not_opened(tmp_path):
    path = tmp_path / "killed.mp4"
    path.write_bytes(b"x" * 101)
    with DecoderProcess(FAILING, Limits(file_bytes=100)) as child:
        assert child.decode(path, REQUEST).visual.reason == "the file has 101 bytes, more than 100"
    assert not (tmp_path / "killed.mp4.attempts").exists()


def test_child_that_cannot_start_is_no_fault_of_the_file(tmp_path):
    with pytest.raises(DecoderStartError, match="no_such_module"):
        DecoderProcess("no_such_module:Decoder").decode(tmp_path / "clip.mp4", REQUEST)


PARENT = """
import sys
sys.path[:] = {path!r}
from pathlib import Path
from pipeline.media.decoder_process import DecoderProcess
from pipeline.media.timeline import DecodeRequest
DecoderProcess({decoder!r}).decode(Path({file!r}), DecodeRequest())
"""


def test_child_dies_with_a_parent_that_is_killed(tmp_path):
    path = tmp_path / "hanging.mp4"
    path.write_bytes(b"x")
    attempts = Path(f"{path}.attempts")
    parent = subprocess.Popen([sys.executable, "-c", PARENT.format(path=sys.path, decoder=FAILING, file=str(path))])
    wait_for(lambda: attempts.exists() and attempts.read_text().endswith("\n"))
    child = psutil.Process(int(attempts.read_text()))
    parent.kill()
    parent.wait()
    wait_for(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def test_child_ends_when_it_is_closed(tmp_path):
    child = DecoderProcess(FAILING, LIMITS)
    _, (pid,) = decode(child, tmp_path, "fine")
    child.close()
    assert not psutil.pid_exists(pid)


def test_child_runs_inside_a_daemonic_process(tmp_path):
    import multiprocessing

    path = media_maker.write_clip(tmp_path / "clip.mp4", media_maker.steady(2))
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    worker = context.Process(target=_decode_and_send, args=(path, sender), daemon=True)
    worker.start()
    assert receiver.poll(60)
    assert receiver.recv() == 2
    worker.join(10)


def _decode_and_send(path, sender):
    with DecoderProcess("pyav") as child:
        sender.send(child.decode(path, REQUEST).visual.steps)


def test_nothing_heavy_is_loaded_by_a_child():
    heavy = {"torch", "librosa", "dask", "av"}
    code = f"import sys, pipeline.media.decoder_process; print(sorted({heavy} & set(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=paths.ROOT)
    assert output.stdout == "[]\n"


def wait_for(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_interrupted_answer_is_not_taken_for_the_next_one(child, tmp_path, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(DecoderProcess, "_receive", interrupt)
        with pytest.raises(KeyboardInterrupt):
            decode(child, tmp_path, "fine")
    path = tmp_path / "fine.mp4"
    request = DecodeRequest(frame_sizes=(FrameSize("stretch", 8),))
    assert list(child.decode(path, request).frames) == [FrameSize("stretch", 8)]
