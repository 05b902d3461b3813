"""Time the parts of a training: the loader, the loop of `mavqa-train` with and without it, and the validation."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch
from cost import kernel_seconds, now

from pipeline.manifests.manifest import Manifest
from train import processes
from train.data.batch import Batch
from train.data.dataset import QuestionDataset
from train.data.feature_bank import FeatureBank
from train.data.scenarios import hidden_in
from train.evaluation.predict import predict
from train.runs.config import TrainConfig
from train.training.fit import fit
from train.training.loop import Progress
from train.training.validation import BATCH_SIZE

# Steps before the timed ones, by the type of the device.
WARM_UP = {"cpu": 2, "cuda": 20}
PROFILED_STEPS = 3


def time_loading(
    questions: QuestionDataset, batch_size: int, batches: int, device: torch.device
) -> tuple[float, Batch, int]:
    """Return the seconds a batch of loading, the last batch, and the number of batches of an epoch."""
    generator = torch.Generator().manual_seed(0)
    parts = questions.partition(batch_size, generator)
    warm_up = WARM_UP[device.type]
    batches = min(batches, len(parts) - warm_up)
    started = 0.0
    for number, batch in enumerate(questions.load(parts[: warm_up + batches], generator), start=1):
        moved = batch.to(device)  # the one before is kept meanwhile, as in training
        if number == warm_up:
            started = now(device)
    return (now(device) - started) / batches, moved, len(parts)


class Meter:
    """Takes the time of the timed steps of each epoch. Called by the training loop with its progress.

    `is_profiled`: on a GPU, some steps of the last epoch are profiled after the timed ones.
    """

    def __init__(self, steps: int, device: torch.device, is_profiled: bool = False) -> None:
        self.steps, self.device = steps, device
        self.first, self.last = WARM_UP[device.type], WARM_UP[device.type] + steps
        self.profile = torch.profiler.profile() if is_profiled and device.type == "cuda" else None
        self.times: list[float] = []

    @property
    def all_steps(self) -> int:
        """The number of steps that an epoch must have."""
        return self.last + (PROFILED_STEPS if self.profile else 0)

    def __call__(self, progress: Progress) -> None:
        """Take the time if the step that was just finished is the last one before the timed ones, or of them."""
        if progress.validation is not None:
            return
        if progress.step in (self.first, self.last):
            self.times.append(now(self.device))
        if self.profile and progress.epoch == progress.epochs:
            if progress.step == self.last:
                self.profile.start()
            elif progress.step == self.all_steps:
                now(self.device)
                self.profile.stop()

    @property
    def seconds(self) -> list[float]:
        """The mean seconds a step of each epoch."""
        return [(last - first) / self.steps for first, last in zip(self.times[::2], self.times[1::2], strict=True)]

    @property
    def kernel_seconds(self) -> float:
        """The seconds a profiled step in which the GPU has kernels."""
        assert self.profile is not None
        return kernel_seconds(self.profile) / PROFILED_STEPS


def time_training(
    config: TrainConfig, manifest: Manifest, bank: FeatureBank, meter: Meter, repeats_batch: bool = False
) -> tuple[Meter, Any]:
    """Train epochs of as many steps as `meter` takes; return it and the trained method.

    `repeats_batch`: all steps train on the same batch, which is on the device.
    """
    questions = {"train": manifest.questions["train"]}  # validation is timed by itself
    repeating = repeated_batches(meter.device) if repeats_batch else nullcontext()
    with TemporaryDirectory() as own, first_parts(meter.all_steps), repeating:
        run = Path(processes.collect(own)[0]) / "run"
        method, _ = fit(config, replace(manifest, questions=questions), bank, run, report=meter)
        processes.wait()  # before the first one removes the run
    return meter, method


@contextmanager
def first_parts(count: int) -> Iterator[None]:
    """Let epochs have only the first `count` of their batches."""
    partition = QuestionDataset.partition

    def first(self: QuestionDataset, *given: Any, **named: Any) -> Any:
        return partition(self, *given, **named)[:count]

    with patch.object(QuestionDataset, "partition", first):
        yield


@contextmanager
def repeated_batches(device: torch.device) -> Iterator[None]:
    """Let batches be loaded once for each size and each kind of missing modalities, and stay on `device`."""
    load, loaded = QuestionDataset.load, {}

    def repeat(
        self: QuestionDataset, parts: Any, generator: Any = None, masks: Any = None, *of_epoch: Any
    ) -> Iterator[Batch]:
        for rows in parts:
            kind = len(rows), generator is None, id(masks)
            if kind not in loaded:
                (batch,) = load(self, [rows], generator, masks)
                loaded[kind] = batch.to(device), masks  # kept, so that no other masks have their id
            yield loaded[kind][0]

    with patch.object(QuestionDataset, "load", repeat):
        yield


def time_validation(method: Any, validation: QuestionDataset, count: int, device: torch.device) -> float:
    """Return the seconds to answer `count` of the validation questions in all scenarios that select the best epoch."""
    rows = torch.arange(count).numpy()
    started = 0.0
    for chosen in (rows[:1], rows):  # the first answer warms up
        started = now(device)
        for scenario in method.selection_scenarios:
            masks = dict.fromkeys((question.question_id for question in validation.questions), hidden_in(scenario))
            predict(method, validation, chosen, masks, BATCH_SIZE, device)
    return now(device) - started
