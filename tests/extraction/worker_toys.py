"""What a Dask worker of the cluster tests loads first (`dask worker --preload`): the toys, and its own fate.

MAVQA_TOY_FATE names a signal that the worker sends itself just before the first values that it writes. A worker that
was stopped and goes on leaves a file named by each feature in MAVQA_TOY_WRITTEN once values of it are written.
MAVQA_TOY_LACKS names a function of `pipeline.run.worker` that the worker's mavqa, as if of another version, does
not have.
"""

import os
import signal
from pathlib import Path
from typing import Any

import toy_extractors
from run_toys import kill_at

import pipeline.extractors.registry
import pipeline.run.worker


def dask_setup(worker: Any) -> None:
    pipeline.extractors.registry.EXTRACTORS.update({**toy_extractors.TABLE, **toy_extractors.MORE})
    if lacking := os.environ.get("MAVQA_TOY_LACKS"):
        delattr(pipeline.run.worker, lacking)
    fate = os.environ.get("MAVQA_TOY_FATE")
    if fate is None:
        return
    write = pipeline.run.worker.write_rows

    def write_and_tell(store: str, feature: str, *rest: Any) -> None:
        write(store, feature, *rest)
        (Path(os.environ["MAVQA_TOY_WRITTEN"]) / feature).touch()

    pipeline.run.worker.write_rows = write_and_tell
    kill_at("values", "before", 1, signal.Signals[fate])
