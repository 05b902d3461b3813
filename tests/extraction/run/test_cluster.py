"""Workers, local or of an existing Dask cluster: killed, hung or late ones, what is refused, a local run's bytes."""

import errno
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
from pipeline.run.cluster import ClusterOptions, ask_workers, connect, offers_label, stream
from pipeline.store.reader import open_store


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
    assert run_toys(wide_manifest, local).is_complete
    with scheduler(tmp_path) as processes:
        processes.start_worker("well")
        processes.start_worker("killed", MAVQA_TOY_FATE="SIGKILL")
        processes.start_worker("hung", MAVQA_TOY_FATE="SIGSTOP")
        wait_for_workers(processes, 3)
        summary = run_toys(wide_manifest, store, cluster=ClusterOptions(scheduler=processes.address))
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
def cluster_here(**labels: float) -> Iterator[SpecCluster]:
    """A scheduler that listens on a port of this machine, with a worker of four threads for each name and its GPUs."""
    workers = {
        name: {"cls": Worker, "options": {"nthreads": 4, "resources": {"GPU": gpus} if gpus else {}}}
        for name, gpus in labels.items()
    }
    late = {"cls": Worker, "options": {"nthreads": 4}}
    scheduler = {"cls": Scheduler, "options": {"port": 0, "host": "127.0.0.1", "dashboard": False}}
    with SpecCluster(workers, scheduler, late, silence_logs=logging.CRITICAL) as cluster:
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
            assert ask_workers(workers, partial(where_and_when, 0))[0] in ("one", "two")
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
        pytest.raises(UserError, match="never drops a worker that hangs"),
        connect(ClusterOptions(scheduler=cluster.scheduler_address)),
    ):
        pass
    with pytest.raises(UserError, match="no Dask scheduler answers"), connect(ClusterOptions(scheduler="there:x")):
        pass


def test_a_scheduler_that_goes_away_and_workers_without_mavqa_are_told_in_one_line() -> None:
    with cluster_here(one=0) as cluster, connect(ClusterOptions(scheduler=cluster.scheduler_address)) as workers:
        with pytest.raises(UserError, match=r"cannot load mavqa \(No module named 'pipeline'\): install it there"):
            ask_workers(workers, fail_to_load)
        outcomes = stream(workers, where_and_when, iter(range(500)))
        next(outcomes)
        cluster.close()
        with pytest.raises(UserError, match="the Dask scheduler disappeared: start it, and run again"):
            list(outcomes)


def die(deaths: Path, times: int) -> dict[str, str]:
    """End this process as want of memory does, so many times; then return its environment."""
    died = len(list(deaths.iterdir()))
    if died < times:
        (deaths / str(died)).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return dict(os.environ)


def test_a_local_worker_that_dies_before_it_answers_is_replaced_but_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.run.cluster.LOST_BEFORE_ANSWER", 2)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_", raising=False)
    with connect(ClusterOptions(workers=1)) as workers:
        environment = ask_workers(workers, partial(die, tmp_path, times=1))
        assert len(list(tmp_path.iterdir())) == 1
        assert environment["OMP_NUM_THREADS"] == "1"
        assert "MALLOC_TRIM_THRESHOLD_" not in environment
        with pytest.raises(UserError, match="no worker answers, 2 died before answering: give each more memory"):
            ask_workers(workers, partial(die, tmp_path, times=100))


KILLED_RUN = """
import os, signal, sys
from pipeline.run.cluster import ClusterOptions, ask_workers, connect
if __name__ == "__main__":
    with connect(ClusterOptions(workers=1)) as workers:
        print(ask_workers(workers, os.getpid), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_run_left_in_the_temporary_folder_is_removed_by_the_next_one(
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
    wait_until(lambda: has_ended(int(run.stdout)), "the worker of the killed run goes on")
    assert list(left.rglob("worker-*"))
    with connect(ClusterOptions(workers=1)):
        pass
    assert {path.name for path in left.rglob("*") if path.suffix != ".lock"} == {"dask-scratch-space"}


def has_ended(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_local_worker_that_does_not_start_is_told_in_one_line(tmp_path: Path) -> None:
    deadly = tmp_path / "deadly.py"
    deadly.write_text("import os\n\nos._exit(1)\n")
    with (
        dask.config.set({"distributed.worker.preload": [str(deadly)]}),
        pytest.raises(UserError, match=r"the 1 local workers do not start \(.*Nanny failed.*\): .* fewer --workers"),
        connect(ClusterOptions(workers=1)),
    ):
        pass


def test_a_worker_of_another_version_is_not_waited_for_for_ever(
    toy_manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.run.cluster.SECONDS_WITHOUT_WORKERS", 1.0)
    with scheduler(tmp_path) as processes:
        processes.start_worker("old", MAVQA_TOY_LACKS="describe_on_worker")
        with pytest.raises(UserError, match=r"no worker answers, 1 died .* the same version of mavqa everywhere"):
            run_toys(toy_manifest, tmp_path / "store.zarr", cluster=ClusterOptions(scheduler=processes.address))


def fail(error: Exception, item: int = 0) -> None:
    raise error


def test_what_a_worker_could_not_load_is_told_in_one_line_and_a_fault_of_ours_is_not() -> None:
    with cluster_here(one=0) as cluster, connect(ClusterOptions(scheduler=cluster.scheduler_address)) as workers:
        with pytest.raises(UserError, match="no worker answers, 1 died"):
            ask_workers(workers, partial(fail, KilledWorker("ask", SimpleNamespace(address="there"), 3)))
        with pytest.raises(UserError, match=r"cannot load mavqa \(Can't get attribute 'f'.*\): install it there"):
            ask_workers(
                workers, partial(fail, AttributeError("Can't get attribute 'f' on <module 'pipeline.run.coordinator'>"))
            )
        for error in (AttributeError("no attribute"), RuntimeError("ours"), ImportError("cannot import name")):
            with pytest.raises(type(error), match=str(error)):
                ask_workers(workers, partial(fail, error))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_what_the_system_refuses_a_worker_reaches_the_run_as_it_is(code: int) -> None:
    with cluster_here(one=0) as cluster, connect(ClusterOptions(scheduler=cluster.scheduler_address)) as workers:
        with pytest.raises(OSError, match="there") as refused:
            list(stream(workers, partial(fail, OSError(code, os.strerror(code), "there")), iter([1])))
        assert refused.value.errno == code


def test_what_is_under_way_is_twice_the_workers_that_are_there_also_of_those_that_come_late(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pipeline.run.cluster.REFRESH_SECONDS", 0.1)
    drawn = received = most = 0

    def items() -> Iterator[int]:
        nonlocal drawn, most
        for item in count():
            drawn, most = drawn + 1, max(most, drawn + 1 - received)
            assert most <= 2 * there
            yield item

    with cluster_here(one=0) as cluster, connect(ClusterOptions(scheduler=cluster.scheduler_address)) as workers:
        there = 1
        outcomes = stream(workers, where_and_when, items())
        while received < 20:
            next(outcomes)
            received += 1
        assert most == 2
        there = 5
        cluster.scale(there)
        cluster.wait_for_workers(there)
        names = set()
        while received < 300 and (most < 10 or len(names) < 5):
            names.add(next(outcomes)[0])
            received += 1
        assert most == 10
        assert len(names) == 5


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

    monkeypatch.setattr("run_toys.ask_workers", ask_elsewhere)
    with pytest.raises(UserError, match=f"sees no {what} at {hidden}: use one that every worker sees"):
        run_toys(folder, store)


def test_a_worker_that_makes_other_numbers_is_refused_and_stores_none(
    toy_manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = iter([1, 2])
    monkeypatch.setattr(toy_extractors.ToySound, "constants", lambda self: {"version": next(versions)})

    def stream_elsewhere(client: None, task: Callable[[Any], Any], items: Iterator[Any]) -> Iterator[Any]:
        pipeline.run.worker._tools.cache_clear()
        return map(task, items)

    monkeypatch.setattr("run_toys.stream", stream_elsewhere)
    with pytest.raises(UserError, match=r"computes toy-sound differently: extractor.version is 1 in the store, 2 here"):
        run_toys(toy_manifest, tmp_path / "store.zarr", features=("toy-sound",))
    assert np.isnan(open_store(tmp_path / "store.zarr").values("toy-sound")[:]).all()
