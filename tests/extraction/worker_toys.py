"""Preload module of the Dask workers in the cluster tests (`dask worker --preload`): the toys, and failures.

MAVQA_TOY_SIGNAL is a signal that the worker sends itself just before it writes its first values. A worker that was
stopped and continues creates a file in the folder MAVQA_TOY_WRITTEN, named by the feature, after each write.
MAVQA_TOY_MISSING is a function that is missing from the worker's `pipeline.run.worker`, as in another version.
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
    pipeline.extractors.registry.EXTRACTORS.update({**toy_extractors.TABLE, **toy_extractors.OPTIONAL})
    if missing := os.environ.get("MAVQA_TOY_MISSING"):
        delattr(pipeline.run.worker, missing)
    own_signal = os.environ.get("MAVQA_TOY_SIGNAL")
    if own_signal is None:
        return
    write = pipeline.run.worker.write_rows

    def write_and_report(store: str, feature: str, *rest: Any) -> None:
        write(store, feature, *rest)
        (Path(os.environ["MAVQA_TOY_WRITTEN"]) / feature).touch()

    pipeline.run.worker.write_rows = write_and_report
    kill_at("values", "before", 1, signal.Signals[own_signal])
