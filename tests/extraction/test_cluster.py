"""An existing Dask cluster: workers that are killed or hang, what is refused, and that the bytes are a local run's."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import toy_extractors
from cluster_processes import Processes, scheduler, wait_for
from run_toys import contents, run_toys

from pipeline.cluster import ClusterOptions
from pipeline.manifest import load_manifest, save_manifest
from pipeline.store.reader import open_store
from pipeline.verify import verify_store


@pytest.fixture(scope="module")
def wide_manifest(toy_manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toys four times over, 80 videos: more partitions than workers."""
    folder = tmp_path_factory.mktemp("wide") / "wide"
    toys = load_manifest(toy_manifest)
    videos = tuple(replace(v, video_id=f"{v.video_id}-{copy}") for copy in range(4) for v in toys.videos)
    save_manifest(replace(toys, videos=videos, questions={}), folder)
    (folder / "videos").symlink_to(toy_manifest / "videos")
    return folder


def test_one_worker_killed_and_one_hung_in_mid_run_leave_the_bytes_of_a_local_run(
    wide_manifest: Path, tmp_path: Path
) -> None:
    local, store = tmp_path / "local.zarr", tmp_path / "store.zarr"
    assert run_toys(wide_manifest, local).is_whole
    with scheduler(tmp_path) as processes:
        processes.start_worker("well")
        processes.start_worker("killed", MAVQA_TOY_FATE="SIGKILL")
        processes.start_worker("hung", MAVQA_TOY_FATE="SIGSTOP")
        wait_for_workers(processes, 3)
        summary = run_toys(wide_manifest, store, cluster=ClusterOptions(scheduler=processes.address))
        assert summary.is_whole
        assert summary.extracted == 80
        assert processes.running["killed"].poll() == -signal.SIGKILL
        assert processes.is_stopped("hung")
        assert contents(store) == contents(local)
        before = written_at(store)
        os.kill(processes.running["hung"].pid, signal.SIGCONT)
        for feature in toy_extractors.TABLE:
            wait_for(tmp_path / feature)
        late = {path.relative_to(store).parts[1] for path, when in written_at(store).items() if when != before[path]}
        assert late == set(toy_extractors.TABLE)
        assert contents(store) == contents(local)
    assert verify_store(open_store(store)) == []


def written_at(store: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in (store / "features").glob("*/values/c/**/*") if path.is_file()}


def wait_for_workers(processes: Processes, number: int) -> None:
    from distributed import Client

    with Client(processes.address) as client:
        client.wait_for_workers(number, timeout=60)
