"""A decoder that crashes, hangs or uses too much memory fails only that file and leaves no process behind."""

import json
import math
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import media_maker
import numpy as np
import paths
import psutil
import pytest
from failing_decoders import FailingDecoder

from pipeline.media import decoder_process
from pipeline.media.decoder_process import DecoderProcess, DecoderStartError, Limits
from pipeline.media.decoders.registry import open_decoder
from pipeline.media.timeline import DecodeRequest, FrameSize, Track
from pipeline.store.schema import State

BUG_LINE = FailingDecoder.buggy.__code__.co_firstlineno + 1
FAILING = "failing_decoders:FailingDecoder"
SIZE = FrameSize("stretch", 64)
REQUEST = DecodeRequest(seconds=2, frame_sizes=(SIZE,))
# A failed attempt at one modality is repeated once, at both twice.
ONE_MODALITY = replace(REQUEST, wants_audio=False)
LIMITS = Limits(cpu_seconds=1, wall_seconds=20, memory_bytes=200_000_000)


@pytest.fixture
def process():
    with DecoderProcess(FAILING, LIMITS) as process:
        yield process


def decode(process, tmp_path, name, request=REQUEST):
    path = tmp_path / f"{name}.mp4"
    path.write_bytes(b"x")
    media = process.decode(path, request)
    attempts = (tmp_path / f"{path.name}.attempts").read_text().split()
    return media, [int(pid) for pid in attempts]


def assert_is_fine(process, tmp_path):
    media, _ = decode(process, tmp_path, "fine")
    assert media.visual.state is State.COMPLETE


def test_process_returns_the_media_of_the_decoder(tmp_path):
    path = media_maker.write_clip(tmp_path / "clip.mp4", media_maker.steady(3), (0, 3))
    request = DecodeRequest(frame_sizes=(SIZE, FrameSize("crop", 32, shorter_side=48, filter="bicubic")))
    expected = open_decoder("pyav").decode(path, request)
    with DecoderProcess("pyav") as process:
        media = process.decode(path, request)
    assert (media.visual, media.audio) == (expected.visual, expected.audio)
    assert media.sample_rate_hz == expected.sample_rate_hz
    assert media.frames.keys() == expected.frames.keys()
    assert all(np.array_equal(media.frames[size], expected.frames[size]) for size in expected.frames)
    assert np.array_equal(media.waveform, expected.waveform)


def test_a_minute_at_sixteen_frames_per_second_is_returned(tmp_path):
    path = media_maker.write_clip(tmp_path / "clip.mp4", media_maker.steady(60, 16), size=(64, 64))
    clip = FrameSize("stretch", 112, per_second=16)
    with DecoderProcess("pyav") as process:
        media = process.decode(path, DecodeRequest(seconds=60, frame_sizes=(clip,)))
    assert media.frames[clip].shape == (960, 112, 112, 3)
    assert [media_maker.read_number(image) for image in media.frames[clip]] == list(range(960))


def test_more_requested_seconds_are_allowed_more_cpu_time_unless_the_limit_is_given():
    assert Limits().cpu_range(60) == (30, 1200)
    assert Limits().cpu_range(2) == (10, 40)
    assert Limits(cpu_seconds=7).cpu_range(60) == (7, 7)


def test_cpu_time_grows_with_the_decoded_pixels_up_to_the_limit(monkeypatch):
    limits, replies = [], []
    monkeypatch.setattr(decoder_process, "_set_soft_limit", lambda limit, value: limits.append(value))
    monkeypatch.setattr(decoder_process, "_write", lambda stream, data: replies.append(json.loads(data[8:])))
    allowance = decoder_process._CpuAllowance(30, 33, 0)
    for _ in range(6):
        allowance.add_frame(3840 * 2160)
    assert [limit - limits[0] for limit in limits] == [0, 1, 2, 3, 3]
    assert replies == [{"cpu_seconds": seconds} for seconds in (31, 32, 33, 33)]


@pytest.fixture
def least_second(monkeypatch):
    """Allow a file without decoded frames one second of CPU time."""
    monkeypatch.setattr(decoder_process, "MIN_CPU_SECONDS", 1)
    monkeypatch.setattr(decoder_process, "CPU_SECONDS_PER_SECOND", 0)


@pytest.mark.usefixtures("least_second")
def test_a_slow_file_is_decoded_as_long_as_it_yields_frames(tmp_path):
    with DecoderProcess(FAILING) as process:
        media, attempts = decode(process, tmp_path, "slow")
    assert media.visual.state is State.COMPLETE
    assert len(attempts) == 1


@pytest.mark.usefixtures("least_second")
def test_a_file_that_yields_frames_forever_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(decoder_process, "MOST_CPU_SECONDS_PER_SECOND", 0.5)
    with DecoderProcess(FAILING) as process:
        media, _ = decode(process, tmp_path, "endless", ONE_MODALITY)
    assert media.visual.reason == "used more than 1 s of CPU time twice (to allow more: --max-cpu-seconds)"


def test_the_wall_clock_limit_is_of_the_time_without_progress(tmp_path):
    with DecoderProcess(FAILING, Limits(wall_seconds=2)) as process:
        media, attempts = decode(process, tmp_path, "waiting")
    assert media.visual.state is State.COMPLETE
    assert len(attempts) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux shows the limits of another process")
def test_frames_that_a_header_claims_buy_no_cpu_time(tmp_path):
    path = media_maker.write_clip(tmp_path / "clip.mkv", media_maker.steady(2), size=(64, 64))
    media_maker.claim_duration(path, 10**9)
    with DecoderProcess("pyav") as process:
        assert process.decode(path, REQUEST).visual.steps == 2
        decoding = psutil.Process(process.pid)
        assert decoding.rlimit(psutil.RLIMIT_CPU)[0] <= math.ceil(sum(decoding.cpu_times()[:2])) + 10


def test_one_process_decodes_many_files_whatever_they_print(process, tmp_path, capfd):
    attempts = [decode(process, tmp_path, "fine")[1][-1] for _ in range(3)]
    assert len(set(attempts)) == 1
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("killed", "decoder killed by signal 9 (SIGKILL) twice"),
        ("crashed", "decoder killed by signal 11 (SIGSEGV) twice"),
        (
            "killed_differently",
            "decoder killed by signal 9 (SIGKILL), then decoder killed by signal 11 (SIGSEGV)",
        ),
        ("spinning", "used more than 1 s of CPU time twice (to allow more: --max-cpu-seconds)"),
        ("bloating", "needs more than 0.2 GB of memory twice (to allow more: --max-memory-gb)"),
        (
            "buggy",
            "internal error of decoder failing_decoders:FailingDecoder, report it: "
            f"ZeroDivisionError: a bug (failing_decoders.py, line {BUG_LINE}) twice",
        ),
    ],
)
def test_file_that_kills_its_process_or_exceeds_a_limit_twice_is_failed(process, tmp_path, name, reason):
    media, attempts = decode(process, tmp_path, name)
    assert (media.visual.state, media.audio.state) == (State.FAILED, State.FAILED)
    assert media.visual.reason == media.audio.reason == reason
    assert len(set(attempts)) == 3
    assert not any(psutil.pid_exists(pid) for pid in attempts)
    assert_is_fine(process, tmp_path)


@pytest.mark.parametrize("name", ["hanging", "stopped"])
def test_hanging_file_is_ended_by_the_wall_clock_limit(tmp_path, name):
    with DecoderProcess(FAILING, Limits(wall_seconds=1)) as process:
        media, attempts = decode(process, tmp_path, name, ONE_MODALITY)
        assert media.visual.reason == "decoder did not answer for 1 s twice"
        assert not any(psutil.pid_exists(pid) for pid in attempts)
        assert_is_fine(process, tmp_path)


def test_file_that_killed_its_process_once_is_decoded_again_each_modality_alone(process, tmp_path):
    media, attempts = decode(process, tmp_path, "killed_once")
    assert (media.visual, media.audio) == (Track(State.COMPLETE, 1), Track(State.COMPLETE, 1))
    assert (list(media.frames), len(media.waveform), media.sample_rate_hz) == ([SIZE], 8000, 8000)
    assert len(attempts) == 3


@pytest.mark.parametrize(("name", "failed"), [("visual_killed", "visual"), ("audio_buggy", "audio")])
def test_one_modality_that_crashes_does_not_fail_the_other(process, tmp_path, name, failed):
    media, _ = decode(process, tmp_path, name)
    states = {"visual": media.visual.state, "audio": media.audio.state}
    assert states == dict.fromkeys(states, State.COMPLETE) | {failed: State.FAILED}
    assert (bool(media.frames), len(media.waveform) > 0) == (failed == "audio", failed == "visual")
    assert_is_fine(process, tmp_path)


def test_process_that_died_between_files_does_not_count_as_an_attempt(process, tmp_path):
    _, (pid,) = decode(process, tmp_path, "fine")
    psutil.Process(pid).kill()
    media, attempts = decode(process, tmp_path, "killed_once")
    assert media.visual.state is State.COMPLETE
    assert len(attempts) == 3


def test_cpu_time_is_counted_per_file(process, tmp_path):
    for _ in range(4):
        media, attempts = decode(process, tmp_path, "busy")
        assert media.visual.reason == ""
    assert len(set(attempts)) == 1


def test_loading_the_decoder_does_not_count_as_cpu_time_of_a_file(tmp_path):
    with DecoderProcess("failing_decoders:SlowToLoad", LIMITS) as process:
        media, attempts = decode(process, tmp_path, "fine")
    assert media.visual.reason == ""
    assert len(attempts) == 1


def test_reported_output_is_of_the_file_that_ended_the_process(process, tmp_path):
    assert_is_fine(process, tmp_path)
    media, _ = decode(process, tmp_path, "ended")
    assert media.visual.reason == "decoder exited with code 3 (bye) twice"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux shows name a process writes to")
def test_log_does_not_grow_over_many_files(process, tmp_path):
    sizes = []
    for _ in range(3):
        assert_is_fine(process, tmp_path)
        sizes.append(Path(f"/proc/{process.pid}/fd/2").stat().st_size)
    assert 0 < sizes[0] == sizes[1] == sizes[2]


def test_ctrl_c_does_not_end_the_process(process, tmp_path):
    _, (pid,) = decode(process, tmp_path, "fine")
    os.kill(pid, signal.SIGINT)
    _, (_, again) = decode(process, tmp_path, "fine")
    assert again == pid


def test_process_that_crashes_leaves_no_core_dump(process, tmp_path):
    before = resource.getrlimit(resource.RLIMIT_CORE)
    if before[1] == 0:
        pytest.skip("this machine allows no core dumps")
    resource.setrlimit(resource.RLIMIT_CORE, (before[1], before[1]))
    try:
        assert_is_fine(process, tmp_path)
        assert psutil.Process(process.pid).rlimit(psutil.RLIMIT_CORE) == (0, 0)
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, before)


def test_process_that_cannot_start_is_not_a_failure_of_the_file(tmp_path):
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


def test_process_exits_when_its_parent_is_killed(tmp_path):
    path = tmp_path / "hanging.mp4"
    path.write_bytes(b"x")
    attempts = Path(f"{path}.attempts")
    parent = subprocess.Popen([sys.executable, "-c", PARENT.format(path=sys.path, decoder=FAILING, file=str(path))])
    wait_for(lambda: attempts.exists() and attempts.read_text().endswith("\n"))
    started = psutil.Process(int(attempts.read_text()))
    parent.kill()
    parent.wait()
    wait_for(lambda: not started.is_running() or started.status() == psutil.STATUS_ZOMBIE)


def test_process_ends_when_it_is_closed(tmp_path):
    process = DecoderProcess(FAILING, LIMITS)
    _, (pid,) = decode(process, tmp_path, "fine")
    process.close()
    assert not psutil.pid_exists(pid)


def test_decoder_process_runs_inside_a_daemonic_process(tmp_path):
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
    with DecoderProcess("pyav") as process:
        sender.send(process.decode(path, REQUEST).visual.steps)


def test_importing_the_module_loads_no_heavy_library():
    heavy = {"torch", "librosa", "dask", "av"}
    code = f"import sys, pipeline.media.decoder_process; print(sorted({heavy} & set(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=paths.ROOT)
    assert output.stdout == "[]\n"


def wait_for(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_interrupted_reply_is_not_returned_for_the_next_request(process, tmp_path, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(DecoderProcess, "_receive", interrupt)
        with pytest.raises(KeyboardInterrupt):
            decode(process, tmp_path, "fine")
    path = tmp_path / "fine.mp4"
    request = DecodeRequest(frame_sizes=(FrameSize("stretch", 8),))
    assert list(process.decode(path, request).frames) == [FrameSize("stretch", 8)]
