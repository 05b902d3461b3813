"""The training loop: the epochs of each stage over the questions of one split, resumable at every step.

Each of several processes takes its part of every batch, and the first one writes (`train.processes`).

Every epoch seeds torch and its sample order from (seed, epoch). What a stopped training needs to go on is written at
the end of an epoch, every few minutes inside it, and when it is stopped (`train.training.state`).
Source: optimiser and schedule of the AVST release; selection on missing-modality scenarios is this project's.
"""

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.errors import Stopped, UserError
from pipeline.manifests.manifest import Manifest
from pipeline.store.schema import MODALITIES
from train import processes
from train.data.batch import Batch
from train.data.dataset import QuestionDataset
from train.data.feature_bank import FeatureBank
from train.data.scenarios import sample_masks, save_masks
from train.interfaces import (
    MissingModalityMethod,
    Stage,
    SupportsPreparation,
    SupportsStages,
    inputs_of,
    uses_negatives,
)
from train.runs.config import TrainConfig
from train.runs.folder import describe_settings, write_tensors
from train.runs.identity import CHECKPOINT, run_id
from train.runs.log import write_metrics, write_time
from train.runs.precision import gpu_products
from train.training.ema import WeightAverage
from train.training.optimisation import make_optimiser, set_rate, take_step
from train.training.rows import one_per_video, training_rows
from train.training.state import (
    History,
    Place,
    collect_random,
    read_state,
    restore_moments,
    restore_random,
    select,
    write_state,
)
from train.training.stopping import StopSignal
from train.training.validation import BATCH_SIZE, Validation


@dataclass(frozen=True)
class Progress:
    """The progress of a run: `step` of `steps` in `epoch` of `epochs` (both from 1).

    `losses`: {name: mean over the epoch so far}. `rate`: learning rate of the step. `validation`: {scenario: accuracy
    in percent} at the end of an epoch, else None. `step_losses`: {name: mean over the questions of the step}.
    `gradient_norm`: of the step, before clipping.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    losses: dict[str, float] = field(default_factory=dict)
    rate: float = 0.0
    validation: dict[str, float] | None = None
    step_losses: dict[str, float] = field(default_factory=dict)
    gradient_norm: float = 0.0


def plan_stages(method: MissingModalityMethod, training: str, epochs: int) -> list[tuple[Stage, range]]:
    """Return each stage with its epochs (from 0); a single one if training is joint or the method has no stages.

    Raises `UserError` if there are fewer epochs than stages need.
    """
    if training == "joint" or not isinstance(method, SupportsStages):
        return [(Stage("joint", 1.0), range(epochs))]
    plan, share, first = [], 0.0, 0
    for stage in method.stages():
        share += stage.share
        last = round(share * epochs)
        if last == first:
            raise UserError(f"epochs = {epochs} leaves no epoch for the stage {stage.name!r}: train more epochs")
        plan.append((stage, range(first, last)))
        first = last
    return plan


class Loop:
    """The state of one training: its data, model, optimiser and history.

    `save_seconds`: time between two writes of the state inside an epoch. `stop`: the signal that ends the training.
    """

    def __init__(
        self,
        config: TrainConfig,
        method: MissingModalityMethod,
        manifest: Manifest,
        bank: FeatureBank,
        run: Path,
        device: torch.device,
        save_seconds: float,
        stop: StopSignal,
    ) -> None:
        self.config, self.method, self.run, self.device = config, method, run, device
        self.save_seconds, self.stop = save_seconds, stop
        self.module.to(device)
        self.bank = bank
        self.train = self._dataset(manifest, "train")
        val = self._dataset(manifest, "val") if "val" in manifest.questions else None
        self.validation = Validation(method, val, _seed(config.seed, 0, "validation"), device)
        self.plan = plan_stages(method, config.training, config.epochs)
        self.sampled = sample_masks(self.train.questions, config.missing_rates, config.seed, config.unit)
        self.masks = self.sampled.absent
        self.is_masked = np.array([q.question_id in self.masks for q in self.train.questions], dtype=bool)
        self.rows = training_rows(self.train, self.is_masked, method.trains_on, config.method)
        self.history = History()
        self.optimiser: torch.optim.AdamW
        self.average: WeightAverage | None = None
        self.random: dict[str, Tensor] = {}  # states of torch's generators at the place where the training was stopped

    @property
    def module(self) -> nn.Module:
        """The method, as a torch module."""
        assert isinstance(self.method, nn.Module)
        return self.method

    @property
    def validated_method(self) -> Any:
        """The method to validate and save: with averaged weights if the run averages them."""
        return self.average.module if self.average else self.method

    def run_epochs(self, report: Callable[[Progress], None]) -> None:
        """Train from the state of the run folder, if it has one, to the last epoch of the configuration.

        Raises `Stopped`, when the state has been written, if the signal to stop arrives.
        """
        if self.config.missing_rates and processes.is_first():
            save_masks(self.sampled, self.run / "masks-train.json")
        trained_before = self.history.trained
        self.history, stored = read_state(self.run, self.module, self.config.variant)
        self.random = select("random/", stored)
        self.history.trained |= trained_before
        with gpu_products(self.config.precision):
            if not stored and isinstance(self.method, SupportsPreparation):
                self.method.prepare(*self._preparation_batches())
            for stage, epochs in self.plan:
                for epoch in epochs[max(0, len(self.history.metrics) - epochs.start) :]:
                    if epoch == epochs.start or stored:
                        self._start_stage(stage)
                        is_begun = epoch > epochs.start or self.history.place is not None
                        self._start_optimiser(stored if is_begun else {})
                        stored = {}
                    self._run_epoch(epoch, epoch - epochs.start, stage, report)
        self._write_metrics()

    def _run_epoch(self, epoch: int, epoch_of_stage: int, stage: Stage, report: Callable[[Progress], None]) -> None:
        """Train and validate one epoch, from its place on if it has begun."""
        self.history.place = self.history.place or Place()
        try:
            with self.stop.deferred():
                rate = self._train_epoch(epoch, epoch_of_stage, self.history.place, report)
            validation = self._validate()
        except Stopped:  # after a step, or in the validation, which changes nothing
            self._save()
            raise
        place = self.history.place
        with self.stop.deferred():
            self._finish_epoch(epoch, stage, rate, place, validation)
            report(Progress(epoch + 1, self.config.epochs, place.steps, place.steps, place.means(), rate, validation))

    def _preparation_batches(self) -> tuple[Iterator[Batch], Iterator[Batch]]:
        """Return a complete row of each training video, and all training questions with both modalities missing."""
        videos = one_per_video(self.train, ~self.is_masked)
        both_hidden = dict.fromkeys((question.question_id for question in self.train.questions), MODALITIES)
        complete = self.train.batches(BATCH_SIZE, None, None, videos)
        questions = self.train.batches(BATCH_SIZE, None, both_hidden, self.rows)
        return (batch.to(self.device) for batch in complete), (batch.to(self.device) for batch in questions)

    def _dataset(self, manifest: Manifest, split: str) -> QuestionDataset:
        return QuestionDataset(self.bank, manifest, split, inputs_of(self.method.backbone, self.config.map_size))

    def _start_stage(self, stage: Stage) -> None:
        """Notify the method, and unfreeze only the stage's parameters."""
        if isinstance(self.method, SupportsStages) and stage.name != "joint":
            self.method.enter(stage.name)
        for name, parameter in self.module.named_parameters():
            parameter.requires_grad_(name.startswith(stage.trains))

    def _start_optimiser(self, stored: dict[str, Tensor]) -> None:
        """Set up the optimiser and the average of a stage, as they are in the `stored` state if the stage has begun."""
        self.optimiser = make_optimiser(self.config, self.module)
        restore_moments(self.module, self.optimiser, stored)
        if self.config.ema_decay:
            self.average = WeightAverage(self.module, self.config.ema_decay)
            if averages := select("average/", stored):
                self.average.restore(averages)

    def _train_epoch(self, epoch: int, epoch_of_stage: int, place: Place, report: Callable[[Progress], None]) -> float:
        """Train the steps of the epoch that `place` does not have yet, and add them to it; return the last rate."""
        torch.manual_seed(_seed(self.config.seed, epoch, f"model{processes.rank() or ''}"))
        order = torch.Generator().manual_seed(_seed(self.config.seed, epoch, "order"))
        self.module.train()
        parts = self.train.partition(self.config.batch_size, order, self.masks, self.rows)
        groups = [parts[i : i + self.config.accumulate] for i in range(0, len(parts), self.config.accumulate)]
        negatives = order if uses_negatives(self.method) else None
        first = place.steps * self.config.accumulate
        batches = self.train.load(parts, negatives, self.masks, first, processes.own_part)
        place.total = len(groups)
        if place.is_inside:
            restore_random(self.random, self.device)
        rate = set_rate(self.optimiser, self.config, epoch_of_stage, place.steps / len(groups))
        saved = time.perf_counter()
        for group in groups[place.steps :]:
            started = time.perf_counter()
            rate = set_rate(self.optimiser, self.config, epoch_of_stage, (place.steps + 1) / len(groups))
            own, sizes, of_step = islice(batches, len(group)), list(map(len, group)), Place()
            taken, norm = take_step(self.method, self.optimiser, own, sizes, self.config, self.device)
            for batch in taken:
                place.add(batch.losses, batch.questions)
                of_step.add(batch.losses, batch.questions)
            if self.average:
                self.average.update()
            place.steps += 1
            place.seconds += time.perf_counter() - started
            progress = Progress(epoch + 1, self.config.epochs, place.steps, len(groups), place.means(), rate)
            report(replace(progress, step_losses=of_step.means(), gradient_norm=norm))
            # All processes stop, or write the state, after the same step.
            wishes = processes.collect((self.stop.is_set, time.perf_counter() - saved >= self.save_seconds))
            if any(is_stopping for is_stopping, _ in wishes):
                self.stop.is_set = True
                break
            if any(is_due for _, is_due in wishes):
                self._save()
                saved = time.perf_counter()
        return rate

    def _validate(self) -> dict[str, float]:
        self.validated_method.eval()
        return self.validation.score(self.validated_method)

    def _finish_epoch(self, epoch: int, stage: Stage, rate: float, place: Place, validation: dict[str, float]) -> None:
        """Record the epoch, save the weights if they are the best of the stage so far, and write the state."""
        # Scores of earlier stages do not count: the parameters of this one were untrained.
        scores = [_mean(row["validation"]) for row in self.history.metrics if row["stage"] == stage.name]
        selected = _mean(validation) >= max(scores, default=0.0)
        row = {"epoch": epoch + 1, "stage": stage.name, "learning_rate": rate, "losses": place.means()}
        self.history.metrics.append({**row, "validation": validation, "selected": selected})
        # AdamW has moments of exactly the parameters that got a gradient.
        self.history.trained |= {name for name, of in self.module.named_parameters() if self.optimiser.state.get(of)}
        self.history.place = None
        if processes.is_first():
            write_time(self.run, epoch + 1, place.seconds)
        if selected and processes.is_first():
            facts = {"epoch": epoch + 1, "trained": sorted(self.history.trained), "run": run_id(self.run)}
            facts["settings"] = describe_settings(self.module)
            write_tensors(self.run / CHECKPOINT, self.validated_method.state_dict(), facts)
        self._save()
        self._write_metrics()

    def _write_metrics(self) -> None:
        if processes.is_first():
            write_metrics(self.run, self.history.metrics)

    def _save(self) -> None:
        """Write the state; inside an epoch, all processes have to be here."""
        is_inside = self.history.place is not None and self.history.place.is_inside
        random = collect_random(self.device) if is_inside else {}
        if processes.is_first():
            write_state(self.run, self.history, self.module, self.optimiser, self.average, random)


def _mean(scores: dict[str, float]) -> float:
    return sum(scores.values()) / max(len(scores), 1)


def _seed(seed: int, epoch: int, purpose: str) -> int:
    digest = hashlib.sha256(f"{seed}:{epoch}:{purpose}".encode()).digest()
    return int.from_bytes(digest[:7], "big")
