"""Local workers and those of a Dask cluster: killed, hung and late workers, refused clusters, equal bytes."""

import errno
import importlib.metadata
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import count, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dask
import numpy as np
import psutil
import pytest
import toy_extractors
from cluster_processes import Processes, scheduler, wait_until
from distributed import KilledWorker, Scheduler, SpecCluster, Worker, get_worker
from run_toys import contents, run_toys

import pipeline.run.worker
from pipeline.errors import UserError
from pipeline.inspection.verify import verify_store
from pipeline.manifests.manifest import load_manifest, save_manifest
from pipeline.run.cluster import ClusterOptions, _worker_environments, connect, offers_label, query_workers, stream
from pipeline.store.reader import open_store


@pytest.fixture(scope="module")
def wide_manifest(toy_manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three copies of the toys, 60 videos: more partitions than workers."""
    folder = tmp_path_factory.mktemp("wide") / "wide"
    toys = load_manifest(toy_manifest)
    videos = tuple(replace(v, video_id=f"{v.video_id}-{copy}") for copy in range(3) for v in toys.videos)
    save_manifest(replace(toys, videos=videos, questions={}), folder)
    (folder / "videos").symlink_to(toy_manifest / "videos")
    return folder


def test_a_run_with_a_killed_and_a_hung_worker_gives_the_bytes_of_a_local_run(
    wide_manifest: Path, tmp_path: Path
) -> None:
    local, store = tmp_path / "local.zarr", tmp_path / "store.zarr"
    assert run_toys(wide_manifest, local).is_complete
    with scheduler(tmp_path) as processes:
        processes.start_worker("healthy")
        processes.start_worker("killed", MAVQA_TOY_SIGNAL="SIGKILL")
        processes.start_worker("hung", MAVQA_TOY_SIGNAL="SIGSTOP")
        wait_for_workers(processes, 3)
        summary = run_toys(wide_manifest, store, scheduler=processes.address)
        assert summary.is_complete
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
def cluster_in_process(**labels: float) -> Iterator[SpecCluster]:
    """Yield a scheduler in this process and, for each name, a worker with four threads and that number of GPUs."""
    workers = {
        name: {"cls": Worker, "options": {"nthreads": 4, "resources": {"GPU": gpus} if gpus else {}}}
        for name, gpus in labels.items()
    }
    late = {"cls": Worker, "options": {"nthreads": 4}}
    scheduler = {"cls": Scheduler, "options": {"port": 0, "host": "127.0.0.1", "dashboard": False}}
    with SpecCluster(workers, scheduler, late, silence_logs=logging.CRITICAL) as cluster:
        yield cluster


def worker_and_times(item: int) -> tuple[str, float, float]:
    began = time.monotonic()
    time.sleep(0.02)
    return str(get_worker().name), began, time.monotonic()


def test_tasks_run_on_workers_with_the_label_and_one_at_a_time_in_a_process() -> None:
    with cluster_in_process(bare=0, one=1, two=2) as cluster:
        assert offers_label(cluster.scheduler_address, "GPU")
        options = ClusterOptions(scheduler=cluster.scheduler_address, label="GPU")
        with connect(options) as workers:
            assert query_workers(workers, partial(worker_and_times, 0))[0] in ("one", "two")
            done = list(stream(workers, worker_and_times, iter(range(20))))
        with connect(replace(options, label="")) as workers:
            anywhere = list(stream(workers, worker_and_times, iter(range(20))))
    assert {name for name, _, _ in done} == {"one", "two"}
    assert {name for name, _, _ in anywhere} == {"bare", "one", "two"}
    spans = sorted((began, ended) for _, began, ended in done)
    assert all(ended <= begins for (_, ended), (begins, _) in pairwise(spans))


def test_an_unsuitable_cluster_is_refused_with_the_command_to_start() -> None:
    with cluster_in_process(bare=0) as cluster:
        assert not offers_label(cluster.scheduler_address, "GPU")
        options = ClusterOptions(scheduler=cluster.scheduler_address, label="GPU")
        with pytest.raises(UserError, match=r'offers the resource GPU: .* --resources "GPU=1"'), connect(options):
            pass
    with cluster_in_process() as cluster:
        options = ClusterOptions(scheduler=cluster.scheduler_address, wait_seconds=0.1)
        with pytest.raises(UserError, match="has no workers: start some with 'dask worker tcp://"), connect(options):
            pass
    with (
        dask.config.set({"distributed.scheduler.worker-ttl": None}),
        cluster_in_process(bare=0) as cluster,
        pytest.raises(UserError, match="never drops a worker that hangs"),
        connect(ClusterOptions(scheduler=cluster.scheduler_address)),
    ):
        pass
    with pytest.raises(UserError, match="no Dask scheduler answers"), connect(ClusterOptions(scheduler="nowhere:x")):
        pass


def test_a_lost_scheduler_is_a_one_line_error() -> None:
    with cluster_in_process(one=0) as cluster, connect(ClusterOptions(scheduler=cluster.scheduler_address)) as workers:
        outcomes = stream(workers, worker_and_times, iter(range(500)))
        next(outcomes)
        cluster.close()
        with pytest.raises(UserError, match="the Dask scheduler disappeared: start it, and run again"):
            list(outcomes)


def die(deaths: Path, times: int) -> dict[str, str]:
    """Kill this process as an out-of-memory killer does, `times` times; then return its environment."""
    died = len(list(deaths.iterdir()))
    if died < times:
        (deaths / str(died)).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return dict(os.environ)


def test_a_local_worker_that_dies_before_answering_is_replaced_a_few_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.run.cluster.LOST_BEFORE_ANSWER", 2)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_", raising=False)
    with connect(ClusterOptions(workers=1, gpus=("GPU-1",))) as workers:
        environment = query_workers(workers, partial(die, tmp_path, times=1))
        assert len(list(tmp_path.iterdir())) == 1
        assert environment["OMP_NUM_THREADS"] == "1"
        assert environment["CUDA_VISIBLE_DEVICES"] == "GPU-1"
        assert "MALLOC_TRIM_THRESHOLD_" not in environment
        with pytest.raises(UserError, match="no worker answers, 2 died before answering: give each more memory"):
            query_workers(workers, partial(die, tmp_path, times=100))


def test_local_workers_share_the_gpus_in_turn() -> None:
    found = _worker_environments(ClusterOptions(workers=3, gpus=("2", "5")))
    assert [environment["CUDA_VISIBLE_DEVICES"] for environment in found] == ["2", "5", "2"]
    assert _worker_environments(ClusterOptions(workers=2)) == [{}, {}]


KILLED_RUN = """
import os, signal, sys
from pipeline.run.cluster import ClusterOptions, query_workers, connect
if __name__ == "__main__":
    with connect(ClusterOptions(workers=1)) as workers:
        print(query_workers(workers, os.getpid), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_temporary_files_of_a_killed_run_are_removed_by_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run.py").write_text(KILLED_RUN)
    left = tmp_path / "temporary"
    left.mkdir()
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    monkeypatch.setenv("TMPDIR", str(left))
    monkeypatch.setattr("tempfile.tempdir", None)
    run = subprocess.run([sys.executable, str(tmp_path / "run.py")], stdout=subprocess.PIPE, check=False)
    assert run.returncode == -signal.SIGKILL
    wait_until(lambda: has_ended(int(run.stdout)), "the worker of the killed run does not end")
    assert list(left.rglob("worker-*"))
    with connect(ClusterOptions(workers=1)):
        pass
    assert {path.name for path in left.rglob("*") if path.suffix != ".lock"} == {"dask-scratch-space"}


def has_ended(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_local_worker_that_does_not_start_is_a_one_line_error(tmp_path: Path) -> None:
    deadly = tmp_path / "deadly.py"
    deadly.write_text("import os\n\nos._exit(1)\n")
    with (
        dask.config.set({"distributed.worker.preload": [str(deadly)]}),
        pytest.raises(UserError, match=r"the 1 local workers do not start \(.*Nanny failed.*\): .* fewer --workers"),
        connect(ClusterOptions(workers=1)),
    ):
        pass


def test_a_worker_that_cannot_load_the_tasks_ends_the_run_after_a_while(
    toy_manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.run.cluster.SECONDS_WITHOUT_WORKERS", 1.0)
    with scheduler(tmp_path) as processes:
        processes.start_worker("old", MAVQA_TOY_MISSING="describe_on_worker")
        with pytest.raises(UserError, match=r"no worker answers, 1 died .* the same version of mavqa everywhere"):
            run_toys(toy_manifest, tmp_path / "store.zarr", scheduler=processes.address)


@pytest.mark.parametrize("where", ["a worker", "the scheduler at tcp://.*"])
@pytest.mark.parametrize("versions", [[], ["0.0.1"]], ids=["no mavqa", "another version"])
def test_a_cluster_with_another_version_of_mavqa_is_refused_before_any_task(
    where: str, versions: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = count(1 if where == "a worker" else 2)

    def find_installed(name: str) -> Iterator[SimpleNamespace]:
        """Return what is installed: the first call is the scheduler's, the second one the worker's."""
        found = versions if next(calls) == 2 else [importlib.metadata.version(name)]
        return (SimpleNamespace(version=version) for version in found)

    with cluster_in_process(one=0) as cluster, monkeypatch.context() as patch:
        patch.setattr("importlib.metadata.distributions", find_installed)
        needed = f"{where} runs without mavqa {importlib.metadata.version('mavqa')}: install the same version"
        with (
            pytest.raises(UserError, match=needed),
            connect(ClusterOptions(scheduler=cluster.scheduler_address)) as workers,
        ):
            query_workers(workers, partial(fail, AssertionError("the task runs")))


def fail(error: Exception, item: int = 0) -> None:
    raise error


def test_killed_workers_are_a_user_error_and_bugs_are_not() -> None:
    with cluster_in_process(one=0) as cluster, connect(ClusterOptions(scheduler=cluster.scheduler_address)) as workers:
        with pytest.raises(UserError, match="no worker answers, 1 died"):
            query_workers(workers, partial(fail, KilledWorker("ask", SimpleNamespace(address="nowhere"), 3)))
        for error in (AttributeError("no attribute"), RuntimeError("ours"), ImportError("cannot import name")):
            with pytest.raises(type(error), match=str(error)):
                query_workers(workers, partial(fail, error))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_system_errors_of_a_worker_reach_the_run_unchanged(code: int) -> None:
    with cluster_in_process(one=0) as cluster, connect(ClusterOptions(scheduler=cluster.scheduler_address)) as workers:
        with pytest.raises(OSError, match="store") as refused:
            list(stream(workers, partial(fail, OSError(code, os.strerror(code), "store")), iter([1])))
        assert refused.value.errno == code


def test_two_items_per_worker_are_in_flight_also_for_workers_that_join_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pipeline.run.cluster.REFRESH_SECONDS", 0.1)
    submitted = received = most = 0

    def items() -> Iterator[int]:
        nonlocal submitted, most
        for item in count():
            submitted, most = submitted + 1, max(most, submitted + 1 - received)
            assert most <= 2 * connected
            yield item

    with cluster_in_process(one=0) as cluster, connect(ClusterOptions(scheduler=cluster.scheduler_address)) as workers:
        connected = 1
        outcomes = stream(workers, worker_and_times, items())
        while received < 20:
            next(outcomes)
            received += 1
        assert most == 2
        connected = 5
        cluster.scale(connected)
        cluster.wait_for_workers(connected)
        names = set()
        while received < 300 and (most < 10 or len(names) < 5):
            names.add(next(outcomes)[0])
            received += 1
        assert most == 10
        assert len(names) == 5


@pytest.mark.parametrize("what", ["videos folder", "store"])
def test_a_worker_that_does_not_see_the_shared_folders_is_refused(
    what: str, toy_manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, store = tmp_path / "toys", tmp_path / "store.zarr"
    shutil.copytree(toy_manifest, folder)
    run_toys(folder, store, features=("toy-audio",))
    hidden = folder / "videos" if what == "videos folder" else store

    def ask_elsewhere(client: None, question: Callable[[], Any]) -> Any:
        hidden.rename(tmp_path / "hidden")
        return question()

    monkeypatch.setattr("run_toys.query_workers", ask_elsewhere)
    with pytest.raises(UserError, match=f"sees no {what} at {hidden}: use one that every worker sees"):
        run_toys(folder, store)


def test_a_worker_that_computes_other_values_is_refused_and_stores_none(
    toy_manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = iter([1, 2])
    monkeypatch.setattr(toy_extractors.ToyAudio, "constants", lambda self: {"version": next(versions)})

    def stream_elsewhere(client: None, task: Callable[[Any], Any], items: Iterator[Any]) -> Iterator[Any]:
        pipeline.run.worker._tools.cache_clear()
        return map(task, items)

    monkeypatch.setattr("run_toys.stream", stream_elsewhere)
    with pytest.raises(UserError, match=r"computes toy-audio differently: extractor.version is 1 in the store, 2 here"):
        run_toys(toy_manifest, tmp_path / "store.zarr", features=("toy-audio",))
    assert np.isnan(open_store(tmp_path / "store.zarr").values("toy-audio")[:]).all()
