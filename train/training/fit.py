"""The only training loop: Adam with a stepped rate over the questions of one split, resumable epoch by epoch.

It prints nothing: progress goes to a callback. Every epoch seeds torch and its order by (seed, epoch) anew, so that
weights and the optimiser's moments are all that a resume needs.
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

from pipeline.errors import UserError
from pipeline.manifests.manifest import Manifest
from pipeline.store.schema import MODALITIES
from train.backbones.registry import needs_of
from train.backbones.sizes import ModelSizes
from train.data.batch import Batch
from train.data.dataset import QuestionDataset, input_shapes
from train.data.feature_bank import FeatureBank
from train.data.scenarios import NATURAL, draw_masks, hidden_in, save_masks
from train.evaluation.predict import percent_correct, predict, questions_of
from train.interfaces import (
    MissingModalityMethod,
    Stage,
    SupportsPreparation,
    SupportsScoring,
    SupportsStages,
    inputs_of,
)
from train.runs.config import TrainConfig
from train.runs.folder import (
    CHECKPOINT,
    LAST,
    build_method,
    describe_environment,
    is_finished,
    load_run,
    read_tensors,
    write_start,
    write_tensors,
)
from train.runs.log import write_metrics, write_time
from train.training.ema import WeightAverage
from train.training.initialise import start_from, whiten_inputs

__all__ = ["Progress", "fit", "load_run"]

EVALUATION_BATCH = 128


@dataclass(frozen=True)
class Progress:
    """What the loop says of itself: `step` of `steps` in `epoch` of `epochs` (both from 1), and mean losses so far.

    `validation`: {scenario: accuracy in percent} at an epoch's end, None before.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    losses: dict[str, float] = field(default_factory=dict)
    validation: dict[str, float] | None = None


def fit(
    config: TrainConfig,
    manifest: Manifest,
    bank: FeatureBank,
    run: Path,
    *,
    resume: bool = False,
    report: Callable[[Progress], None] | None = None,
) -> tuple[MissingModalityMethod, TrainConfig]:
    """Train what `config` describes on the train split and keep the best epoch in `run`; return it, loaded.

    Best is, within the last stage, the last epoch whose validation accuracy, averaged over the method's selection
    scenarios on the naturally complete questions of the val split, is not below any earlier one; without a val split,
    the last epoch. Where no video of that split is naturally complete, the naturally incomplete ones are asked.
    Where the configuration has an `ema_decay`, the averaged weights are what is validated, kept and returned.
    With `resume` a started run goes on after its last whole epoch and ends in the weights of an uninterrupted one.

    Raises `UserError` where `run` holds another run, or one and `resume` is False, where the store does not serve the
    manifest, where nothing is left to train on or to choose an epoch on, or where the loss is no longer finite.
    """
    device = choose_device(config.device)
    config = config.model_copy(update={"sizes": measure_sizes(config, manifest, bank)})
    finished = is_finished(run, config)
    if finished and resume:
        return load_run(run, str(device))
    if not resume and (run / "config.json").exists():
        raise UserError(f"{run} already holds a run: give --resume to go on with it, or another --out")
    torch.manual_seed(config.seed)
    method = build_method(config)
    loop = _Loop(config, method, manifest, bank, run, device)
    if config.start_from:
        start_from(loop.module, run.parent / config.start_from)
    elif config.whiten:
        whiten_inputs(method.backbone, loop.train, loop.masks)
    write_start(run, config, manifest.vocabulary, describe_environment(device, *loop.provenance()))
    loop.run_epochs(report or (lambda progress: None))
    return load_run(run, str(device))


def choose_device(name: str) -> torch.device:
    """Return the device of that name; "auto" is CUDA where there is one.

    Raises `UserError` where CUDA is asked for and not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device {name!r} is unknown: give auto, cpu or cuda") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device {name!r} is not available on this machine: give --device cpu")
    return device


def measure_sizes(config: TrainConfig, manifest: Manifest, bank: FeatureBank) -> ModelSizes:
    """Return the sizes of the model that `config` describes on this vocabulary and this store."""
    needs = needs_of(config.backbone)
    return ModelSizes(
        words=len(manifest.vocabulary.tokens),
        answers=len(manifest.vocabulary.answers),
        input_shapes=input_shapes(bank.store, needs, config.map_size),
        question_shapes={n: tuple(bank.store.question_spec(n).shape) for n in needs["question"] if n != "tokens"},
        channels=config.channels,
        heads=config.heads,
        dropout=config.dropout,
        time_steps=config.time_steps,
        question_length=manifest.vocabulary.question_length,
    )


def plan_stages(method: MissingModalityMethod, training: str, epochs: int) -> list[tuple[Stage, range]]:
    """Return each stage with its epochs (from 0); one stage where training is joint or the method offers none."""
    if training == "joint" or not isinstance(method, SupportsStages):
        return [(Stage("joint", 1.0), range(epochs))]
    plan, share, first = [], 0.0, 0
    for stage in method.stages():
        share += stage.share
        last = round(share * epochs)
        plan.append((stage, range(first, last)))
        first = last
    return plan


def measure_accuracy(
    method: MissingModalityMethod, dataset: QuestionDataset, scenario: str, device: torch.device
) -> float:
    """Return the percentage of right answers under `scenario`, over the questions that `evaluate` asks in it.

    Raises `ValueError` where the split has none of them: no accuracy is not an accuracy of zero.
    """
    rows = questions_of(dataset, scenario)
    if not len(rows):
        raise ValueError(f"no question belongs to the scenario {scenario!r}")
    masks = dict.fromkeys((question.question_id for question in dataset.questions), hidden_in(scenario))
    return percent_correct(dataset, rows, predict(method, dataset, rows, masks, EVALUATION_BATCH, device))


class _Loop:
    """One training: its data, its model, and where it stands."""

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
        self.scenarios = self._scenarios()
        self.plan = plan_stages(method, config.training, config.epochs)
        drawn = draw_masks(self.train.questions, config.missing_rates, config.seed, config.unit)
        self.masks = drawn.absent
        self.rows = self._training_rows()
        if config.missing_rates:
            run.mkdir(parents=True, exist_ok=True)
            save_masks(drawn, run / "masks-train.json")
        self.metrics: list[dict[str, Any]] = []
        self.steps = 0
        self.best = -math.inf
        self.average: WeightAverage | None = None

    @property
    def module(self) -> nn.Module:
        """The method as the torch module that it is."""
        assert isinstance(self.method, nn.Module)
        return self.method

    @property
    def judged(self) -> Any:
        """The method that is validated and kept: with averaged weights where the run asks for them."""
        return self.average.module if self.average else self.method

    def provenance(self) -> tuple[dict[str, str], dict[str, str]]:
        """Return the fingerprints, and the hashes of the weights, of the stored features that the backbone reads."""
        names = [name for modality in MODALITIES for name in self.method.backbone.needs[modality]]
        weights = {name: self.bank.store.spec(name).constants.get("weights", {}).get("sha256", "") for name in names}
        return {name: self.bank.store.fingerprint(name) for name in names}, weights

    def run_epochs(self, report: Callable[[Progress], None]) -> None:
        """Train from where the run folder stands to the last epoch."""
        stored = self._restore()
        if not self.metrics and isinstance(self.method, SupportsPreparation):
            self.method.prepare(*self._whole_split())
        optimiser: torch.optim.Adam | None = None
        for stage, epochs in self.plan:
            for epoch in epochs[max(0, len(self.metrics) - epochs.start) :]:
                if optimiser is None or epoch == epochs.start:
                    optimiser = self._enter(stage)
                    if epoch > epochs.start:
                        self._load_moments(optimiser, _under("adam/", stored))
                        self._begin_average(stored)
                    else:  # what a later stage trains was random in every epoch before it
                        self.best = -math.inf
                        self._begin_average({})
                rate = self._set_rate(optimiser, epoch - epochs.start)
                began = time.perf_counter()
                losses = self._train_epoch(epoch, optimiser, report)
                write_time(self.run, epoch + 1, time.perf_counter() - began)
                self._finish_epoch(epoch, stage, rate, losses, optimiser, report)
        write_metrics(self.run, self.metrics)

    def _begin_average(self, stored: dict[str, Tensor]) -> None:
        if self.config.ema_decay:
            self.average = WeightAverage(self.module, self.config.ema_decay)
            if stored:
                self.average.restore(_under("average/", stored))

    def _whole_split(self) -> tuple[Iterator[Batch], Iterator[Batch]]:
        """Return the training videos, one complete row each, and every question that is trained on, without a video."""
        masked = np.array([question.question_id in self.masks for question in self.train.questions], dtype=bool)
        videos = _one_a_video(self.train, ~masked)
        hidden = dict.fromkeys((question.question_id for question in self.train.questions), MODALITIES)
        whole = self.train.batches(EVALUATION_BATCH, None, None, videos)
        asked = self.train.batches(EVALUATION_BATCH, None, hidden, self.rows)
        return (batch.to(self.device) for batch in whole), (batch.to(self.device) for batch in asked)

    def _dataset(self, manifest: Manifest, split: str) -> QuestionDataset:
        return QuestionDataset(self.bank, manifest, split, inputs_of(self.method.backbone, self.config.map_size))

    def _training_rows(self) -> np.ndarray:
        wanted = self.train.answers.numpy() >= 0
        if self.method.trains_on == "videos":
            return _one_a_video(self.train)
        if self.method.trains_on == "complete":
            masked = np.array([question.question_id in self.masks for question in self.train.questions], dtype=bool)
            wanted &= self.train.naturally_complete & ~masked
        if not wanted.any():
            raise UserError(f"no training question is left for method {self.config.method!r}: lower --missing-rate")
        return np.flatnonzero(wanted)

    def _enter(self, stage: Stage) -> torch.optim.Adam:
        """Begin a stage: tell the method, free the stage's parameters alone, and start a new optimiser."""
        if isinstance(self.method, SupportsStages) and stage.name != "joint":
            self.method.enter(stage.name)
        for name, parameter in self.module.named_parameters():
            parameter.requires_grad_(name.startswith(stage.trains))
        learning = [parameter for parameter in self.module.parameters() if parameter.requires_grad]
        return torch.optim.Adam(learning, lr=self.config.learning_rate, fused=True)

    def _set_rate(self, optimiser: torch.optim.Adam, epoch_of_stage: int) -> float:
        decays = epoch_of_stage // self.config.decay_epochs
        rate = self.config.learning_rate * self.config.decay_factor**decays
        for group in optimiser.param_groups:
            group["lr"] = rate
        return rate

    def _train_epoch(
        self, epoch: int, optimiser: torch.optim.Adam, report: Callable[[Progress], None]
    ) -> dict[str, float]:
        """Return the mean losses over one pass."""
        torch.manual_seed(_seed(self.config.seed, epoch, "model"))
        order = torch.Generator().manual_seed(_seed(self.config.seed, epoch, "order"))
        self.module.train()
        parts = self.train.partition(self.config.batch_size, order, self.masks, self.rows)
        self.steps = len(parts)
        sums: dict[str, float] = {}
        seen = 0
        for step, rows in enumerate(parts, start=1):
            batch = self.train.batch(rows, order, self.masks)
            losses = self._train_step(batch.to(self.device), optimiser)
            seen += len(batch)
            for name, loss in losses.items():
                sums[name] = sums.get(name, 0.0) + loss * len(batch)
            if not math.isfinite(losses["total"]):
                raise UserError(f"the loss of epoch {epoch + 1}, step {step} is not finite: lower the learning rate")
            means = {name: value / seen for name, value in sums.items()}
            report(Progress(epoch + 1, self.config.epochs, step, self.steps, means))
        return {name: value / seen for name, value in sums.items()}

    def _train_step(self, batch: Batch, optimiser: torch.optim.Adam) -> dict[str, float]:
        """Take one step on a homogeneous batch; return its losses."""
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
        """Validate, keep the weights if they are the best, then write what a resume needs, each file renamed last."""
        self.judged.eval()
        validation = self._validate()
        score = sum(validation.values()) / max(len(validation), 1)
        selected = score >= self.best
        self.best = max(score, self.best)
        row = {"epoch": epoch + 1, "stage": stage.name, "learning_rate": rate, "losses": losses}
        self.metrics.append({**row, "validation": validation, "selected": selected})
        if selected:
            write_tensors(self.run / CHECKPOINT, self.judged.state_dict(), {"epoch": epoch + 1})
        facts = {"metrics": self.metrics, "best": self.best}
        write_tensors(self.run / LAST, self._state(optimiser), facts)
        write_metrics(self.run, self.metrics)
        report(Progress(epoch + 1, self.config.epochs, self.steps, self.steps, losses, validation))

    def _validate(self) -> dict[str, float]:
        if self.val is None:
            return {}
        if isinstance(self.judged, SupportsScoring):
            order = torch.Generator().manual_seed(_seed(self.config.seed, 0, "validation"))
            batches = self.val.batches(EVALUATION_BATCH, order, rows=_one_a_video(self.val))
            return self.judged.score(batch.to(self.device) for batch in batches)
        return {name: measure_accuracy(self.judged, self.val, name, self.device) for name in self.scenarios}

    def _scenarios(self) -> tuple[str, ...]:
        """Return what an epoch is chosen on; raise `UserError`, before any is trained, where there is no question."""
        if self.val is None or isinstance(self.method, SupportsScoring):
            return ()
        if self.val.naturally_complete.any():
            return self.method.selection_scenarios
        if self.val.naturally_incomplete.any():
            return (NATURAL,)
        raise UserError("no video of the val split could be extracted, so that no epoch can be chosen: extract them")

    def _state(self, optimiser: torch.optim.Adam) -> dict[str, Tensor]:
        state = {f"model/{name}": values for name, values in self.module.state_dict().items()}
        for name, parameter in self.module.named_parameters():
            for key, values in optimiser.state.get(parameter, {}).items():
                state[f"adam/{name}/{key}"] = values
        averaged = self.average.state() if self.average else {}
        return state | {f"average/{name}": values for name, values in averaged.items()}

    def _restore(self) -> dict[str, Tensor]:
        """Load the last whole epoch, if there is one; return all that was stored of it, by name."""
        if not (self.run / LAST).exists():
            return {}
        tensors, facts = read_tensors(self.run / LAST)
        self.module.load_state_dict(_under("model/", tensors))
        self.metrics, self.best = facts["metrics"], facts["best"]
        return tensors

    def _load_moments(self, optimiser: torch.optim.Adam, moments: dict[str, Tensor]) -> None:
        for name, parameter in self.module.named_parameters():
            for key in ("step", "exp_avg", "exp_avg_sq"):
                if f"{name}/{key}" in moments:
                    optimiser.state[parameter][key] = moments[f"{name}/{key}"].to(self.device)


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): values for name, values in tensors.items() if name.startswith(prefix)}


def _one_a_video(dataset: QuestionDataset, allowed: np.ndarray | bool = True) -> np.ndarray:
    """Return the first question of each complete video, among those that `allowed` [question] says."""
    rows = np.flatnonzero(dataset.naturally_complete & allowed)
    _, first = np.unique([dataset.questions[row].video_id for row in rows], return_index=True)
    return rows[np.sort(first)]


def _seed(seed: int, epoch: int, purpose: str) -> int:
    digest = hashlib.sha256(f"{seed}:{epoch}:{purpose}".encode()).digest()
    return int.from_bytes(digest[:7], "big")
