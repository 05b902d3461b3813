"""The throughput benchmark: finished videos are counted, and rate and bottleneck are reported."""

import media_maker
import memory
import pytest
import throughput
from throughput import Snapshot


@pytest.mark.nightly
def test_videos_are_counted_during_extraction(tmp_path):
    clip = media_maker.write_clip(tmp_path / "clip.mp4", media_maker.steady(6), (0, 6))
    memory.create_dataset(clip, tmp_path / "dataset", 3)
    snapshots = throughput.monitor_extraction(tmp_path / "dataset", "cpu", 6, ["--workers", "1"])
    counts = [snapshot.videos for snapshot in snapshots]
    assert counts == sorted(counts)
    assert counts[-1] == 3
    assert max(snapshot.cores_percent for snapshot in snapshots) > 0
    with pytest.raises(RuntimeError, match="exit code 2"):
        throughput.monitor_extraction(tmp_path / "dataset", "cpu", 6, ["--workers", "nobody"])


@pytest.mark.parametrize(
    ("cores", "gpu", "bottleneck"), [(97, 10, "the cores"), (40, 91, "the GPU"), (50, 20, "neither is busy: waiting")]
)
def test_the_rate_excludes_start_and_end_and_the_bottleneck_is_printed(cores, gpu, bottleneck, capsys):
    # Two videos per second from the fifth second on; the last tenth is slow.
    snapshots = [Snapshot(second, max(0, 2 * (second - 5)), cores, gpu, 2e9) for second in range(51)]
    snapshots += [Snapshot(200.0, 100, cores, gpu, 2e9)]
    assert not throughput.print_rate(snapshots, 100, "cuda")
    shown = capsys.readouterr().out
    assert "2.00 videos per second" in shown
    assert "6.0 s" in shown
    assert bottleneck in shown
    assert "BROKEN" in shown
    assert throughput.print_rate(snapshots, 100, "cpu")
    assert "promised" not in capsys.readouterr().out


def test_too_few_videos_raise():
    with pytest.raises(RuntimeError, match="pass more --videos"):
        throughput.print_rate([Snapshot(1.0, 0, 1, 0, 0), Snapshot(2.0, 3, 1, 0, 0)], 3, "cpu")
