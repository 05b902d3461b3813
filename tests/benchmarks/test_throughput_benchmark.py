"""The throughput benchmark: finished videos are counted, and rate and bottleneck are reported."""

import argparse

import media_maker
import pytest
import throughput
from nvdec_stand_in import make_decoder
from throughput import Snapshot

from pipeline.media.decoders.interface import DecoderLoadError


def options(*extract, device="cpu"):
    return argparse.Namespace(seconds=6, device=device, extract=list(extract))


@pytest.mark.nightly
def test_videos_are_counted_during_extraction(tmp_path):
    clip = media_maker.write_clip(tmp_path / "clip.mp4", media_maker.steady(6), (0, 6))
    runs = throughput.prepare(clip, tmp_path / "cores", ("pyav",), 3, options("--workers", "1"))
    snapshots = throughput.monitor(runs, has_gpu=False, seconds=600)
    counts = [snapshot.videos for snapshot in snapshots]
    assert counts == sorted(counts)
    assert counts[-1] == 3
    assert max(snapshot.cores_percent for snapshot in snapshots) > 0
    refused = throughput.prepare(clip, tmp_path / "refused", ("pyav",), 3, options("--workers", "nobody"))
    with pytest.raises(RuntimeError, match="exit code 2"):
        throughput.monitor(refused, has_gpu=False, seconds=600)


def test_a_run_over_its_time_is_stopped_and_measured_as_far_as_it_came(tmp_path):
    maps = tmp_path / "values"
    maps.mkdir()
    script = f"trap 'exit 75' TERM; touch {maps}/c.1 {maps}/c.2 {maps}/c.3; sleep 60 & wait"
    snapshots = throughput.monitor([(["bash", "-c", script], maps)], has_gpu=False, seconds=2)
    assert snapshots[-1].videos == 3
    assert snapshots[-1].seconds < 60


def test_both_share_the_clips_and_the_workers(tmp_path, monkeypatch):
    clip = media_maker.write_clip(tmp_path / "clip.mp4", media_maker.steady(1))
    monkeypatch.setattr(throughput.os, "cpu_count", lambda: 16)
    monkeypatch.setattr(throughput, "create_dataset", lambda clip, folder, videos: made.append(videos))
    made = []
    runs = throughput.prepare(clip, tmp_path, throughput.ROWS["both"], 320, options(device="cuda"))
    commands = [" ".join(command) for command, _ in runs]
    assert made == [160, 160]
    assert [("--decoder pyav-cuda" in one, "--workers 2" in one) for one in commands] == [(False, True), (True, True)]


def test_rows_that_the_machine_cannot_measure_are_left_out_with_the_reason(monkeypatch):
    monkeypatch.setattr(throughput, "open_decoder", lambda name: make_decoder())
    rows, (note,) = throughput.choose_rows("cuda")
    assert rows == ["cores", "GPU", "both"]
    assert note.startswith("GPU: pyav-cuda: frames equal pyav's")
    assert throughput.choose_rows("cpu") == (["cores"], ["GPU, both: left out: pass --device cuda"])

    def refuse(name):
        raise DecoderLoadError(name, "there is no driver", "install it")

    monkeypatch.setattr(throughput, "open_decoder", refuse)
    rows, (note,) = throughput.choose_rows("cuda")
    assert rows == ["cores"]
    assert note == "GPU, both: left out: decoder pyav-cuda does not load: there is no driver: install it"


@pytest.mark.parametrize(
    ("cores", "gpu", "nvdec", "bottleneck"),
    [
        (97, 10, 40, "the cores"),
        (40, 91, 40, "the GPU"),
        (40, 30, 95, "NVDEC"),
        (90, 20, float("nan"), "the cores"),
        (50, 20, 30, "none is busy: waiting"),
    ],
)
def test_the_rate_excludes_start_and_end_and_the_bottleneck_is_printed(cores, gpu, nvdec, bottleneck):
    # Two videos per second from the fifth second on; the last tenth is slow.
    snapshots = [Snapshot(second, max(0, 2 * (second - 5)), cores, gpu, nvdec, 2e9) for second in range(51)]
    snapshots += [Snapshot(200.0, 100, cores, gpu, nvdec, 2e9)]
    rate, line = throughput.describe_rate("GPU", snapshots)
    assert rate == 2
    assert line.split()[:4] == ["GPU", "2.00", "77.4", "min"]
    assert "6.0 s" in line
    assert line.endswith(f"   {bottleneck}")


def test_the_promise_is_for_a_gpu(capsys):
    assert not throughput.print_promise(14.9, "cuda")
    assert "BROKEN" in capsys.readouterr().out
    assert throughput.print_promise(15.0, "cuda")
    assert throughput.print_promise(0.1, "cpu")
    assert "BROKEN" not in capsys.readouterr().out


def test_too_few_videos_raise():
    snapshots = [Snapshot(1.0, 0, 1, 0, 0, 0), Snapshot(2.0, 3, 1, 0, 0, 0)]
    with pytest.raises(RuntimeError, match="pass more --videos"):
        throughput.describe_rate("cores", snapshots)


def test_a_gpu_that_reports_no_load_of_its_decoder_is_measured_without(monkeypatch):
    shown = type("Shown", (), {"stdout": "37, [N/A], 1024\n"})
    monkeypatch.setattr(throughput.subprocess, "run", lambda *arguments, **options: shown)
    gpu, nvdec, memory = throughput.query_gpu()
    assert (gpu, memory) == (37, 2**30)
    assert nvdec != nvdec
