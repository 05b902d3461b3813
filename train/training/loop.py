"""The training loop: Adam with a stepped learning rate over the questions of one split, resumable at each epoch.

Every epoch seeds torch and its sample order from (seed, epoch). A resume therefore needs only the weights and the
optimiser's moments. Progress is reported to a callback.
Source: optimiser and schedule of the AVST release; selection on missing-modality scenarios is this project's.
"""

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.errors import UserError, one_line
from pipeline.manifests.manifest import Manifest
from pipeline.store.schema import MODALITIES
from train.data.batch import Batch
from train.data.dataset import QuestionDataset
from train.data.feature_bank import FeatureBank
from train.data.scenarios import NATURAL, hidden_in, sample_masks, save_masks
from train.evaluation.predict import percent_correct, predict, questions_of
from train.interfaces import (
    MissingModalityMethod,
    Stage,
    SupportsPreparation,
    SupportsScoring,
    SupportsStages,
    inputs_of,
    uses_negatives,
)
from train.runs.config import TrainConfig
from train.runs.features import read_specs, weights_hash
from train.runs.folder import (
    LAST,
    read_tensors,
    write_tensors,
)
from train.runs.identity import CHECKPOINT, run_id
from train.runs.log import write_metrics, write_time
from train.training.ema import WeightAverage

EVALUATION_BATCH = 128


@dataclass(frozen=True)
class Progress:
    """The progress of a run: `step` of `steps` in `epoch` of `epochs` (both from 1).

    `losses`: {name: mean over the epoch so far}. `validation`: {scenario: accuracy in percent} at the end of an epoch,
    else None.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    losses: dict[str, float] = field(default_factory=dict)
    validation: dict[str, float] | None = None


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


def measure_accuracy(
    method: MissingModalityMethod, dataset: QuestionDataset, scenario: str, device: torch.device
) -> float:
    """Return the accuracy, in percent, over the questions of `scenario`. Raises ValueError if there are none."""
    rows = questions_of(dataset, scenario)
    if not len(rows):
        raise ValueError(f"the dataset has no questions in scenario {scenario!r}")
    masks = dict.fromkeys((question.question_id for question in dataset.questions), hidden_in(scenario))
    return percent_correct(dataset, rows, predict(method, dataset, rows, masks, EVALUATION_BATCH, device))


class Loop:
    """The state of one training: its data, model, metrics and best score."""

    def __init__(
        self,
        config: TrainConfig,
        method: MissingModalityMethod,
        manifest: Manifest,
        bank: FeatureBank,
        run: Path,
        device: torch.device,
    ) -> None:
        self.config, self.method, self.run, self.device = config, method, run, device
        self.module.to(device)
        self.bank = bank
        self.train = self._dataset(manifest, "train")
        self.val = self._dataset(manifest, "val") if "val" in manifest.questions else None
        self.scenarios = self._selection_scenarios()
        self.plan = plan_stages(method, config.training, config.epochs)
        self.sampled = sample_masks(self.train.questions, config.missing_rates, config.seed, config.unit)
        self.masks = self.sampled.absent
        self.is_masked = np.array([q.question_id in self.masks for q in self.train.questions], dtype=bool)
        self.rows = self._training_rows()
        self.metrics: list[dict[str, Any]] = []
        self.steps = 0
        self.best = -math.inf
        self.average: WeightAverage | None = None
        self.trained: set[str] = set()  # names of the parameters trained so far, here or in the run started from

    @property
    def module(self) -> nn.Module:
        """The method, as a torch module."""
        assert isinstance(self.method, nn.Module)
        return self.method

    @property
    def validated_method(self) -> Any:
        """The method to validate and save: with averaged weights if the run averages them."""
        return self.average.module if self.average else self.method

    def provenance(self) -> tuple[dict[str, str], dict[str, str]]:
        """Return the fingerprints and the weights' SHA-256 of the backbone's stored features, both by name."""
        specs = read_specs(self.config.backbone, self.bank.store)
        return {n: spec.fingerprint for n, spec in specs.items()}, {n: weights_hash(spec) for n, spec in specs.items()}

    def run_epochs(self, report: Callable[[Progress], None]) -> None:
        """Train from the last complete epoch of the run folder to the last epoch of the configuration."""
        if self.config.missing_rates:
            save_masks(self.sampled, self.run / "masks-train.json")
        stored = self._restore()
        if not self.metrics and isinstance(self.method, SupportsPreparation):
            self.method.prepare(*self._preparation_batches())
        optimiser: torch.optim.Adam | None = None
        for stage, epochs in self.plan:
            for epoch in epochs[max(0, len(self.metrics) - epochs.start) :]:
                if optimiser is None or epoch == epochs.start:
                    optimiser = self._start_stage(stage)
                    if epoch > epochs.start:
                        self._restore_moments(optimiser, _select("adam/", stored))
                        self._start_average(stored)
                    else:  # scores of earlier stages do not count: the parameters of this one were untrained
                        self.best = -math.inf
                        self._start_average({})
                rate = self._set_rate(optimiser, epoch - epochs.start)
                started = time.perf_counter()
                losses = self._train_epoch(epoch, optimiser, report)
                write_time(self.run, epoch + 1, time.perf_counter() - started)
                self._finish_epoch(epoch, stage, rate, losses, optimiser, report)
        write_metrics(self.run, self.metrics)

    def _start_average(self, stored: dict[str, Tensor]) -> None:
        if self.config.ema_decay:
            self.average = WeightAverage(self.module, self.config.ema_decay)
            if stored:
                self.average.restore(_select("average/", stored))

    def _preparation_batches(self) -> tuple[Iterator[Batch], Iterator[Batch]]:
        """Return a complete row of each training video, and all training questions with both modalities missing."""
        videos = _one_per_video(self.train, ~self.is_masked)
        both_hidden = dict.fromkeys((question.question_id for question in self.train.questions), MODALITIES)
        complete = self.train.batches(EVALUATION_BATCH, None, None, videos)
        questions = self.train.batches(EVALUATION_BATCH, None, both_hidden, self.rows)
        return (batch.to(self.device) for batch in complete), (batch.to(self.device) for batch in questions)

    def _dataset(self, manifest: Manifest, split: str) -> QuestionDataset:
        return QuestionDataset(self.bank, manifest, split, inputs_of(self.method.backbone, self.config.map_size))

    def _training_rows(self) -> np.ndarray:
        """Return the questions that the method trains on. Raises `UserError`, with the cause, if there are none."""
        train, trains_on = self.train, self.method.trains_on
        is_extracted = train.naturally_complete | train.naturally_incomplete
        conditions = [("no video of the train split was extracted", is_extracted)]
        if trains_on != "all":
            conditions.append(("no video of the train split has both audio and video", train.naturally_complete))
            conditions.append(("every question loses a modality, lower --missing-rate", ~self.is_masked))
        if trains_on != "videos":
            no_answer = "no answer of the train split is in the vocabulary, build the manifest again"
            conditions.append((no_answer, train.answers.numpy() >= 0))
        is_used = np.ones(len(train), dtype=bool)
        for cause, is_met in conditions:
            is_used &= is_met
            if not is_used.any():
                raise UserError(f"method {self.config.method!r} has no questions to train on: {cause}")
        if trains_on != "videos":
            return np.flatnonzero(is_used)
        videos = _one_per_video(train, is_used)
        if len(videos) < 2:
            raise UserError(
                "pre-training needs two training videos with audio and visual, the split has one: lower "
                "--missing-rate, or extract more videos"
            )
        return videos

    def _start_stage(self, stage: Stage) -> torch.optim.Adam:
        """Notify the method, unfreeze only the stage's parameters, and return a new optimiser."""
        if isinstance(self.method, SupportsStages) and stage.name != "joint":
            self.method.enter(stage.name)
        for name, parameter in self.module.named_parameters():
            parameter.requires_grad_(name.startswith(stage.trains))
        trainable = [parameter for parameter in self.module.parameters() if parameter.requires_grad]
        return torch.optim.Adam(trainable, lr=self.config.learning_rate, fused=True)

    def _set_rate(self, optimiser: torch.optim.Adam, epoch_of_stage: int) -> float:
        decays = epoch_of_stage // self.config.decay_epochs
        rate = self.config.learning_rate * self.config.decay_factor**decays
        for group in optimiser.param_groups:
            group["lr"] = rate
        return rate

    def _train_epoch(
        self, epoch: int, optimiser: torch.optim.Adam, report: Callable[[Progress], None]
    ) -> dict[str, float]:
        """Train one pass over the training rows; return its mean losses."""
        torch.manual_seed(_seed(self.config.seed, epoch, "model"))
        order = torch.Generator().manual_seed(_seed(self.config.seed, epoch, "order"))
        self.module.train()
        rows_of_batches = self.train.partition(self.config.batch_size, order, self.masks, self.rows)
        self.steps = len(rows_of_batches)
        sums: dict[str, float] = {}
        count = 0
        negatives = order if uses_negatives(self.method) else None
        batches = self.train.load(rows_of_batches, negatives, self.masks)
        for step, batch in enumerate(batches, start=1):
            losses = self._train_step(batch.to(self.device), optimiser)
            count += len(batch)
            for name, loss in losses.items():
                sums[name] = sums.get(name, 0.0) + loss * len(batch)
            if not math.isfinite(losses["total"]):
                raise UserError(f"the loss of epoch {epoch + 1}, step {step} is not finite: lower the learning rate")
            means = {name: value / count for name, value in sums.items()}
            report(Progress(epoch + 1, self.config.epochs, step, self.steps, means))
        return {name: value / count for name, value in sums.items()}

    def _train_step(self, batch: Batch, optimiser: torch.optim.Adam) -> dict[str, float]:
        """Take one optimiser step on a homogeneous batch; return its losses."""
        optimiser.zero_grad(set_to_none=True)
        losses = self.method.training_loss(batch)
        losses["total"].backward()
        optimiser.step()
        if self.average:
            self.average.update()
        return {name: float(loss.detach()) for name, loss in losses.items()}

    def _finish_epoch(
        self,
        epoch: int,
        stage: Stage,
        rate: float,
        losses: dict[str, float],
        optimiser: torch.optim.Adam,
        report: Callable[[Progress], None],
    ) -> None:
        """Validate, save the weights if they are the best so far, and write the state needed to resume."""
        self.validated_method.eval()
        validation = self._validate()
        score = sum(validation.values()) / max(len(validation), 1)
        selected = score >= self.best
        self.best = max(score, self.best)
        row = {"epoch": epoch + 1, "stage": stage.name, "learning_rate": rate, "losses": losses}
        self.metrics.append({**row, "validation": validation, "selected": selected})
        # Adam has moments of exactly the parameters that got a gradient.
        self.trained |= {name for name, weights in self.module.named_parameters() if optimiser.state.get(weights)}
        trained = sorted(self.trained)
        if selected:
            facts = {"epoch": epoch + 1, "trained": trained, "run": run_id(self.run)}
            write_tensors(self.run / CHECKPOINT, self.validated_method.state_dict(), facts)
        facts = {"metrics": self.metrics, "best": self.best, "trained": trained}
        write_tensors(self.run / LAST, self._resume_state(optimiser), facts)
        write_metrics(self.run, self.metrics)
        report(Progress(epoch + 1, self.config.epochs, self.steps, self.steps, losses, validation))

    def _validate(self) -> dict[str, float]:
        if self.val is None:
            return {}
        method = self.validated_method
        if isinstance(method, SupportsScoring):
            order = torch.Generator().manual_seed(_seed(self.config.seed, 0, "validation"))
            batches = self.val.batches(EVALUATION_BATCH, order, rows=_one_per_video(self.val))
            return method.score(batch.to(self.device) for batch in batches)
        return {scenario: measure_accuracy(method, self.val, scenario, self.device) for scenario in self.scenarios}

    def _selection_scenarios(self) -> tuple[str, ...]:
        """Return the scenarios to select an epoch on. Raises `UserError` if the val split has no usable question."""
        if self.val is None or isinstance(self.method, SupportsScoring):
            return ()
        if self.val.naturally_complete.any():
            return self.method.selection_scenarios
        if self.val.naturally_incomplete.any():
            return (NATURAL,)
        if not len(self.val):
            raise UserError(
                "the val split has no questions, so no epoch can be selected: add some, or remove the split from the "
                "manifest to keep the last epoch"
            )
        raise UserError("no video of the val split was extracted, so no epoch can be selected: extract its videos")

    def _resume_state(self, optimiser: torch.optim.Adam) -> dict[str, Tensor]:
        state = {f"model/{name}": values for name, values in self.module.state_dict().items()}
        for name, parameter in self.module.named_parameters():
            for key, values in optimiser.state.get(parameter, {}).items():
                state[f"adam/{name}/{key}"] = values
        averages = self.average.state() if self.average else {}
        return state | {f"average/{name}": values for name, values in averages.items()}

    def _restore(self) -> dict[str, Tensor]:
        """Load the last complete epoch and return its named tensors; {} if there is none."""
        if not (self.run / LAST).exists():
            return {}
        tensors, facts = read_tensors(self.run / LAST)
        try:
            self.module.load_state_dict(_select("model/", tensors))
            self.metrics, self.best = facts["metrics"], facts["best"]
        except (RuntimeError, KeyError) as error:
            raise UserError(f"{self.run / LAST} does not fit the run ({one_line(error)}): train it again") from None
        self.trained |= set(facts.get("trained", ()))
        return tensors

    def _restore_moments(self, optimiser: torch.optim.Adam, moments: dict[str, Tensor]) -> None:
        for name, parameter in self.module.named_parameters():
            for key in ("step", "exp_avg", "exp_avg_sq"):
                if f"{name}/{key}" in moments:
                    optimiser.state[parameter][key] = moments[f"{name}/{key}"].to(self.device)


def _select(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names start with `prefix`, without it."""
    return {name.removeprefix(prefix): values for name, values in tensors.items() if name.startswith(prefix)}


def _one_per_video(dataset: QuestionDataset, is_allowed: np.ndarray | bool = True) -> np.ndarray:
    """Return the row of the first allowed question (`is_allowed` [question]) of each naturally complete video."""
    rows = np.flatnonzero(dataset.naturally_complete & is_allowed)
    _, first = np.unique([dataset.questions[row].video_id for row in rows], return_index=True)
    return rows[np.sort(first)]


def _seed(seed: int, epoch: int, purpose: str) -> int:
    digest = hashlib.sha256(f"{seed}:{epoch}:{purpose}".encode()).digest()
    return int.from_bytes(digest[:7], "big")
