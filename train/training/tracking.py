"""Trackers by name: where a training records its steps.

A new one is one class and one line here, or an entry point `mavqa.trackers`.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.errors import one_line
from pipeline.plugins import load_plugin, with_installed

if TYPE_CHECKING:
    from train.runs.config import TrainConfig
    from train.training.loop import Progress

TRACKERS = with_installed(
    "mavqa.trackers",
    {
        # The file steps.csv in the run folder.
        "csv": "train.runs.steps:StepsFile",
        # Event files in the folder tensorboard of the run folder.
        "tensorboard": "train.training.tensorboard:TensorBoard",
    },
)


class Tracker(Protocol):
    """Records the steps of one training; it is built without arguments.

    Steps are counted from 1 over all epochs. If a method raises an exception, it is logged, and the training goes on
    without the tracker.
    """

    def start(self, run: Path, settings: dict[str, Any], first_step: int) -> None:
        """Begin or continue to record the run in the folder `run`, which `settings` describe as JSON values.

        Steps from `first_step` on that an earlier training of the run recorded are trained again: replace them.
        """

    def log_step(self, step: int, values: dict[str, float]) -> None:
        """Record a training step, before what it computed is saved.

        `values`: "epoch", how many have been trained, such as 1.25; "learning_rate"; "loss/total" and the other losses
        of the step's questions; "gradient_norm", before it is clipped.
        """

    def log_epoch(self, step: int, values: dict[str, float]) -> None:
        """Record {"validation/SCENARIO": accuracy in percent} of the epoch that ended with `step`, which is saved.

        There are no values without a val split.
        """

    def close(self) -> None:
        """Write what is not written yet; also if the training fails or is stopped."""


@contextmanager
def tracked(
    names: Iterable[str], config: "TrainConfig", run: Path, report: "Callable[[Progress], None] | None" = None
) -> "Iterator[Callable[[Progress], None]]":
    """Yield a function for `fit(report=...)` that records `run` with the named trackers, and calls `report`.

    They start at the first step, and are closed at the end of the block. One that fails is dropped: an unreachable
    service ends no training of days. Raises `UserError` if a name is unknown or its package is not installed.
    """
    from train import processes  # torch is slow to import

    trackers = {name: make_tracker(name) for name in names}
    if not processes.is_first():
        trackers.clear()
    is_started = False

    def call(method: str, *arguments: Any) -> None:
        for name, tracker in list(trackers.items()):
            try:
                getattr(tracker, method)(*arguments)
            except Exception as error:  # noqa: BLE001  # foreign code may raise anything
                del trackers[name]
                logging.getLogger(__name__).warning(
                    f"tracker {name!r} of {run} failed, the training goes on without it: "
                    f"{type(error).__name__}: {one_line(error)}"
                )

    def track(progress: "Progress") -> None:
        nonlocal is_started
        step = (progress.epoch - 1) * progress.steps + progress.step
        if not is_started:
            is_started = True
            first = step if progress.validation is None else step + 1
            call("start", run, config.model_dump(mode="json", exclude={"sizes"}), first)
        if progress.validation is None:
            values = {"epoch": step / progress.steps, "learning_rate": progress.rate}
            values["gradient_norm"] = progress.gradient_norm
            call("log_step", step, values | _named("loss", progress.step_losses))
        else:
            call("log_epoch", step, _named("validation", progress.validation))
        if report:
            report(progress)

    try:
        yield track
    finally:
        if is_started:
            call("close")


def make_tracker(name: str) -> Tracker:
    """Return a new tracker. Raises `UserError` if the name is unknown, or its package is not installed."""
    tracker: Tracker = load_plugin("tracker", TRACKERS, name)()
    return tracker


def _named(group: str, values: dict[str, float]) -> dict[str, float]:
    return {f"{group}/{name}": value for name, value in values.items()}
