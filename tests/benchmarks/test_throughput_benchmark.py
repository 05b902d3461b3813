"""The program that measures a machine's rate: it counts videos as they come, and names what limits."""

import media_maker
import memory
import pytest
import throughput
from throughput import Moment


def test_videos_are_counted_while_they_are_extracted(tmp_path):
    clip = media_maker.write_clip(tmp_path / "clip.mp4", media_maker.steady(6), (0, 6))
    memory.lay_out(clip, tmp_path / "dataset", 3)
    moments = throughput.watch(tmp_path / "dataset", "cpu", 6, ["--workers", "1"])
    counts = [moment.videos for moment in moments]
    assert counts == sorted(counts)
    assert counts[-1] == 3
    assert max(moment.cores_percent for moment in moments) > 0
    with pytest.raises(RuntimeError, match="exit code 2"):
        throughput.watch(tmp_path / "dataset", "cpu", 6, ["--workers", "nobody"])


@pytest.mark.parametrize(
    ("cores", "gpu", "limit"), [(97, 10, "the cores"), (40, 91, "the GPU"), (50, 20, "neither is busy: waiting")]
)
def test_the_rate_is_that_of_the_middle_and_what_limits_is_named(cores, gpu, limit, capsys):
    # Two videos a second from the fifth second on; the last tenth dawdles.
    moments = [Moment(second, max(0, 2 * (second - 5)), cores, gpu, 2e9) for second in range(51)]
    moments += [Moment(200.0, 100, cores, gpu, 2e9)]
    assert not throughput.judge(moments, 100, "cuda")
    shown = capsys.readouterr().out
    assert "2.00 videos a second" in shown
    assert "6.0 s" in shown
    assert limit in shown
    assert "BROKEN" in shown
    assert throughput.judge(moments, 100, "cpu")
    assert "promised" not in capsys.readouterr().out


def test_too_few_videos_are_no_measurement():
    with pytest.raises(RuntimeError, match="give more --videos"):
        throughput.judge([Moment(1.0, 0, 1, 0, 0), Moment(2.0, 3, 1, 0, 0)], 3, "cpu")
