"""An existing Dask cluster: workers that are killed or hang, what is refused, and that the bytes are a local run's."""

import logging
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import toy_extractors
from cluster_processes import Processes, scheduler, wait_until
from distributed import Scheduler, SpecCluster, Worker, get_worker
from run_toys import contents, run_toys

from pipeline.cluster import ClusterOptions, ask_first, connect, offers_label, stream
from pipeline.failure import UserError
from pipeline.manifest import load_manifest, save_manifest
from pipeline.store.reader import open_store
from pipeline.verify import verify_store


@pytest.fixture(scope="module")
def wide_manifest(toy_manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toys three times over, 60 videos: more partitions than workers."""
    folder = tmp_path_factory.mktemp("wide") / "wide"
    toys = load_manifest(toy_manifest)
    videos = tuple(replace(v, video_id=f"{v.video_id}-{copy}") for copy in range(3) for v in toys.videos)
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
        assert summary.extracted == 60
        assert processes.running["killed"].poll() == -signal.SIGKILL
        assert processes.is_stopped("hung")
        assert contents(store) == contents(local)
        before = written_at(store)
        os.kill(processes.running["hung"].pid, signal.SIGCONT)
        wait_until(lambda: all((tmp_path / f).exists() for f in toy_extractors.TABLE), "no late writes")
        late = {path.relative_to(store).parts[1] for path, when in written_at(store).items() if when != before[path]}
        assert late == set(toy_extractors.TABLE)
        assert contents(store) == contents(local)
    assert verify_store(open_store(store)) == []


def written_at(store: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in (store / "features").glob("*/values/c.*")}


def wait_for_workers(processes: Processes, number: int) -> None:
    from distributed import Client

    with Client(processes.address) as client:
        client.wait_for_workers(number, timeout=60)


@contextmanager
def cluster_here(**labels: float) -> Iterator[SpecCluster]:
    """A scheduler that listens on a port of this machine, with a worker of four threads for each name and its GPUs."""
    workers = {
        name: {"cls": Worker, "options": {"nthreads": 4, "resources": {"GPU": gpus} if gpus else {}}}
        for name, gpus in labels.items()
    }
    scheduler = {"cls": Scheduler, "options": {"port": 0, "host": "127.0.0.1", "dashboard": False}}
    with SpecCluster(workers, scheduler, silence_logs=logging.CRITICAL) as cluster:
        yield cluster


def fail_to_load() -> None:
    raise ModuleNotFoundError("No module named 'pipeline'")


def where_and_when(item: int) -> tuple[str, float, float]:
    began = time.monotonic()
    time.sleep(0.02)
    return str(get_worker().name), began, time.monotonic()


def test_a_task_runs_where_the_label_is_offered_and_alone_in_its_process() -> None:
    with cluster_here(bare=0, one=1, two=2) as cluster:
        assert offers_label(cluster.scheduler_address, "GPU")
        options = ClusterOptions(scheduler=cluster.scheduler_address, label="GPU")
        with connect(options) as workers:
            assert ask_first(workers, partial(where_and_when, 0))[0] in ("one", "two")
            done = list(stream(workers, where_and_when, iter(range(20))))
        with connect(replace(options, label="")) as workers:
            anywhere = list(stream(workers, where_and_when, iter(range(20))))
    assert {name for name, _, _ in done} == {"one", "two"}
    assert {name for name, _, _ in anywhere} == {"bare", "one", "two"}
    spans = sorted((began, ended) for _, began, ended in done)
    assert all(ended <= begins for (_, ended), (begins, _) in pairwise(spans))


def test_a_cluster_that_cannot_do_the_work_is_refused_with_what_to_start() -> None:
    with cluster_here(bare=0) as cluster:
        assert not offers_label(cluster.scheduler_address, "GPU")
        options = ClusterOptions(scheduler=cluster.scheduler_address, label="GPU")
        with pytest.raises(UserError, match=r'offers the resource GPU: .* --resources "GPU=1"'), connect(options):
            pass
    with cluster_here() as cluster:
        options = ClusterOptions(scheduler=cluster.scheduler_address, wait_seconds=0.1)
        with pytest.raises(UserError, match="has no workers: start some with 'dask worker tcp://"), connect(options):
            pass
    with (
        dask.config.set({"distributed.scheduler.worker-ttl": None}),
        cluster_here(bare=0) as cluster,
        pytest.raises(UserError, match="never gives up a worker that hangs"),
        connect(ClusterOptions(scheduler=cluster.scheduler_address)),
    ):
        pass
    with pytest.raises(UserError, match="no Dask scheduler answers"), connect(ClusterOptions(scheduler="there:x")):
        pass


def test_a_scheduler_that_goes_away_and_workers_without_mavqa_are_told_in_one_line() -> None:
    with cluster_here(one=0) as cluster, connect(ClusterOptions(scheduler=cluster.scheduler_address)) as workers:
        with pytest.raises(UserError, match=r"cannot load mavqa \(No module named 'pipeline'\): install it there"):
            ask_first(workers, fail_to_load)
        outcomes = stream(workers, where_and_when, iter(range(500)))
        next(outcomes)
        cluster.close()
        with pytest.raises(UserError, match="the Dask scheduler went away: start it, and run again"):
            list(outcomes)


@pytest.mark.parametrize("what", ["videos folder", "store"])
def test_a_worker_that_does_not_see_what_all_must_share_is_refused(
    what: str, toy_manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, store = tmp_path / "toys", tmp_path / "store.zarr"
    shutil.copytree(toy_manifest, folder)
    hidden = folder / "videos" if what == "videos folder" else store

    def ask_elsewhere(client: None, question: Callable[[], Any]) -> Any:
        hidden.rename(tmp_path / "hidden")
        return question()

    monkeypatch.setattr("run_toys.ask_first", ask_elsewhere)
    with pytest.raises(UserError, match=f"sees no {what} at {hidden}: give one that every worker sees"):
        run_toys(folder, store)


def test_a_worker_that_makes_other_numbers_is_refused_and_stores_none(
    toy_manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = iter([1, 2])
    monkeypatch.setattr(toy_extractors.ToySound, "constants", lambda self: {"version": next(versions)})
    with pytest.raises(UserError, match=r"makes toy-sound differently: extractor.version is 1 in the store, 2 here"):
        run_toys(toy_manifest, tmp_path / "store.zarr", features=("toy-sound",))
    assert np.isnan(open_store(tmp_path / "store.zarr").values("toy-sound")[:]).all()
