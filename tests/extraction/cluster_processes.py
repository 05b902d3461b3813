"""A Dask scheduler and workers in separate processes, as in a cluster. It is not a test."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
TIMEOUT_SECONDS = 60


@dataclass
class Processes:
    """The address of a scheduler on this machine, and its processes by name."""

    folder: Path
    environment: dict[str, str]
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    address: str = ""

    def start(self, name: str, *arguments: str, **environment: str) -> None:
        self.running[name] = subprocess.Popen(
            [sys.executable, "-m", "dask", *arguments],
            env={**os.environ, **self.environment, **environment},
            stderr=(self.folder / f"{name}.log").open("wb"),
            cwd=self.folder,
        )

    def start_worker(self, name: str, *arguments: str, **environment: str) -> None:
        """Start a worker that knows the toy extractors; it fails as the environment says (`worker_toys`)."""
        fixed = ["--name", name, "--nthreads", "1", "--no-nanny", "--no-dashboard", "--host", "127.0.0.1"]
        paths = ["--preload", str(HERE / "worker_toys.py"), "--local-directory", str(self.folder)]
        self.start(name, "worker", self.address, *fixed, *paths, *arguments, **environment)

    def is_stopped(self, name: str) -> bool:
        """Return whether the process is stopped, as by SIGSTOP."""
        return Path(f"/proc/{self.running[name].pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T"


def wait_until(condition: Callable[[], bool], message: str) -> None:
    """Wait until `condition` is true; fail with `message` after a minute."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, message
        time.sleep(0.05)


@contextmanager
def scheduler(folder: Path, worker_ttl: str = "4 s") -> Iterator[Processes]:
    """Start a scheduler on a free port that drops a silent worker after `worker_ttl`; kill all processes at the end."""
    environment = {
        "DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": worker_ttl,
        "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[1])]),
        "MAVQA_TOY_WRITTEN": str(folder),
        "OMP_NUM_THREADS": "1",
    }
    processes = Processes(folder, environment)
    file = folder / "scheduler.json"
    options = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(file)]
    try:
        processes.start("scheduler", "scheduler", *options)
        wait_until(lambda: file.exists() and file.read_text().rstrip().endswith("}"), "the scheduler does not start")
        processes.address = json.loads(file.read_text())["address"]
        yield processes
    finally:
        for process in processes.running.values():
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()
