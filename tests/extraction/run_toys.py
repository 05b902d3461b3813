"""Run an extraction with the toy extractors in this process; as a program, it can kill itself at a named step.

    python run_toys.py MANIFEST STORE [STEP WHEN COUNT]

The process gets SIGKILL before or after (WHEN) the COUNTth call of STEP, one of STEPS.
"""

import hashlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import toy_extractors

import pipeline.extractors.registry
import pipeline.run.coordinator
import pipeline.run.worker
import pipeline.store.writer as writer
from pipeline.extractors.weights import WeightsSource
from pipeline.manifests.manifest import load_manifest
from pipeline.run.cluster import ClusterOptions
from pipeline.run.coordinator import Progress, Summary, extract
from pipeline.run.request import Request

SECONDS = 4
STEPS = {
    "values": (pipeline.run.worker, "write_rows"),
    "videos": (writer.StoreWriter, "record_videos"),
    "state": (writer.StoreWriter, "record_features"),
    "index": (writer, "_scatter"),
    "resize": (writer, "_resize"),
    "create": (writer, "_create_values"),
    "questions": (writer.StoreWriter, "write_questions"),
    "consolidate": (writer.StoreWriter, "consolidate"),
}


@contextmanager
def connect(options: ClusterOptions) -> Iterator[None]:
    """Run in this process, without Dask: tests that kill dozens of runs need fast ones."""
    yield


def query_workers(client: None, question: Callable[[], Any]) -> Any:
    return question()


def stream(client: None, task: Callable[[Any], Any], items: Iterator[Any]) -> Iterator[Any]:
    return map(task, items)


def run_toys(
    manifest: Path,
    store: Path | str,
    features: tuple[str, ...] = tuple(toy_extractors.TABLE),
    on_progress: Callable[[Progress], None] = lambda progress: None,
    **options: Any,
) -> Summary:
    """Extract the toy features of `manifest` into `store`, in this process or on the cluster of the option `scheduler`.

    `options`: those of `Request`; `weights` as their source; `limits` of decoding; `question_features`.
    """
    weights = options.pop("weights", WeightsSource("seeded"))
    limits = options.pop("limits", None)
    names = (*features, *options.pop("question_features", ("tokens",)))
    in_process = patch.multiple(pipeline.run.coordinator, connect=connect, query_workers=query_workers, stream=stream)
    request = Request(features=names, device="cpu", **{"seconds": SECONDS, **options})
    with (
        patch.dict(pipeline.extractors.registry.EXTRACTORS, {**toy_extractors.TABLE, **toy_extractors.OPTIONAL}),
        patch("pipeline.run.plan.parse_weights", lambda text, cache: weights),
        patch.object(Request, "limits", limits) if limits else nullcontext(),
        nullcontext() if "scheduler" in options else in_process,
    ):
        return extract(load_manifest(manifest), manifest / "videos", str(store), request, on_progress)


def contents(store: Path) -> dict[str, str]:
    """Return {key: digest} of a store's files, except partial ones."""
    files = (path for path in store.rglob("*") if path.is_file() and path.suffix != ".partial")
    return {str(path.relative_to(store)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def kill_at(step: str, when: str, count: int, with_signal: int = signal.SIGKILL) -> None:
    """Send this process a signal before or after the `count`th call of `step`."""
    owner, name = STEPS[step]
    original = getattr(owner, name)
    calls = 0

    def call(*arguments: Any, **keywords: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count and when == "before":
            os.kill(os.getpid(), with_signal)
        result = original(*arguments, **keywords)
        if calls == count and when == "after":
            os.kill(os.getpid(), with_signal)
        return result

    setattr(owner, name, call)


if __name__ == "__main__":
    if len(sys.argv) > 3:
        kill_at(sys.argv[3], sys.argv[4], int(sys.argv[5]))
    run_toys(Path(sys.argv[1]), sys.argv[2])
