"""A training from its settings to its best epoch: what is refused, decided and written before the first epoch.

`train.training.loop` trains the epochs.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import UserError, one_line
from pipeline.manifests.manifest import Manifest
from train import processes
from train.backbones.registry import needs_of
from train.backbones.sizes import ModelSizes
from train.data.dataset import input_shapes
from train.data.feature_bank import FeatureBank
from train.interfaces import MissingModalityMethod
from train.runs.claim import check_data, describe_data, read_data
from train.runs.config import TrainConfig
from train.runs.device import choose_device
from train.runs.features import read_specs
from train.runs.folder import (
    LAST,
    build_method,
    describe_environment,
    is_finished,
    load_run,
    read_config,
    read_tensors,
    write_start,
    write_tensors,
)
from train.runs.identity import CHECKPOINT, is_run_folder, run_id
from train.training.initialise import check_start, start_from, whiten_inputs
from train.training.loop import Loop, Progress, plan_stages
from train.training.stopping import StopSignal

SECONDS_PER_MINUTE = 60


def fit(
    config: TrainConfig,
    manifest: Manifest,
    bank: FeatureBank,
    run: Path,
    *,
    resume: bool = False,
    keep_state: bool = False,
    save_minutes: float = 10.0,
    report: Callable[[Progress], None] | None = None,
) -> tuple[MissingModalityMethod, TrainConfig]:
    """Train a run on the train split and return its best epoch, loaded from the checkpoint.

    Keeps the checkpoint of the final stage with the highest mean validation accuracy (ties: the latest). The mean is
    over the method's selection scenarios, on the questions of the val split with naturally complete videos; if there
    are none, on those with naturally incomplete videos. Without a val split the last epoch is kept. With an `ema_decay`
    the averaged weights are validated, saved and returned.

    `resume`: continue a started run from its state, which is written at the end of each epoch, every `save_minutes`
    inside it, and on SIGTERM, and gives the weights of an uninterrupted run; a finished run whose state was kept may
    have more epochs now. `keep_state`: keep `last.safetensors`, the state, at the end of the training.

    Raises `UserError` if `run` contains a different run, or any run without `resume`; if another process uses it; if
    the store does not contain the manifest's data; if there are no questions to train on or to select an epoch on; if
    the loss is not finite, or the device fails. Nothing is written before all but the last two are known. Raises
    `Stopped` on SIGTERM, when the state has been written.
    """
    device = choose_device(config.device)
    config = config.model_copy(update={"sizes": measure_sizes(config, manifest, bank)})
    data = describe_data(run, config, manifest, bank)
    with StopSignal() as stop:
        has_finished = _has_finished(run, config, data, resume)
        processes.wait()  # nothing is written before all processes have looked
        if not has_finished:
            torch.manual_seed(config.seed)
            method = build_method(config)
            check_start(config, method, run)
            loop = Loop(config, method, manifest, bank, run, device, SECONDS_PER_MINUTE * save_minutes, stop)
            # A stopped run has its weights and whitening; what it started from may be gone.
            is_stopped = (run / LAST).exists()
            if config.start_from and not is_stopped:
                loop.history.trained = start_from(loop.module, run.parent / config.start_from, config.whiten)
            elif config.whiten and not is_stopped:
                whiten_inputs(method.backbone, loop.train, loop.masks)
            with processes.locked_by_first(run, "another training or evaluation"):
                if not processes.of_first(lambda: _has_finished(run, config, data, resume)):
                    environment = describe_environment(device, read_specs(config.backbone, bank.store))
                    processes.of_first(lambda: _write_start(run, config, manifest, environment, data))
                    with _named_device(device, run):
                        loop.run_epochs(report or (lambda progress: None))
                    if not keep_state and processes.is_first():
                        (run / LAST).unlink(missing_ok=True)
    return load_run(run, str(device))


@contextmanager
def _named_device(device: torch.device, run: Path) -> Iterator[None]:
    """Turn a failure of the device in the block into one line; what was saved before it is kept."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(f"device {device} has too little memory ({one_line(error)}): lower batch_size") from None
    except torch.AcceleratorError as error:
        raise UserError(f"device {device} failed ({one_line(error)}): resume {run} on another with --resume") from None


def _has_finished(run: Path, config: TrainConfig, data: dict[str, Any], resume: bool) -> bool:
    """Return whether the training in `run` has finished. Raises `UserError` if `run` cannot be trained or resumed."""
    check_data(run, config, data)
    if not resume and is_run_folder(run):
        raise UserError(f"{run} already contains a run: pass --resume to resume it, or another --out")
    is_continued = is_run_folder(run) and read_config(run).epochs < config.epochs
    if is_continued:
        _check_continued(run, config)
    return not is_continued and is_finished(run, config)


def _check_continued(run: Path, config: TrainConfig) -> None:
    """Raise `UserError` unless the training in `run` can go on to the larger number of epochs of `config`."""
    epochs = read_config(run).epochs
    is_done = is_finished(run, config.model_copy(update={"epochs": epochs}))
    if is_done and not (run / LAST).exists():
        raise UserError(
            f"{run} has finished its {epochs} epochs without --keep-state, so that it cannot go on to {config.epochs}: "
            "pass another --out"
        )
    if config.training == "staged" and len(plan_stages(build_method(config), config.training, config.epochs)) > 1:
        raise UserError(
            f"{run} was started with epochs {epochs}, not {config.epochs}, and its stages are shares of them: pass "
            "another --out"
        )


def _write_start(
    run: Path, config: TrainConfig, manifest: Manifest, environment: dict[str, Any], data: dict[str, Any]
) -> None:
    former_id = run_id(run) if is_run_folder(run) else ""
    write_start(run, config, manifest.vocabulary, environment, read_data(run) or data)
    _adopt_checkpoint(run, former_id)


def _adopt_checkpoint(run: Path, former_id: str) -> None:
    """Give the checkpoint of a run that has more epochs now, or was started by an earlier version, the run's new id.

    Only if it has the run's `former_id`, or the id of its state, which it has if this function was interrupted before.
    """
    if (run / LAST).exists() and (run / CHECKPOINT).exists():
        _, of_state = read_tensors(run / LAST)
        tensors, of_checkpoint = read_tensors(run / CHECKPOINT)
        if run_id(run) != of_checkpoint.get("run") in (former_id, of_state.get("run")):
            write_tensors(run / CHECKPOINT, tensors, {**of_checkpoint, "run": run_id(run)})


def check_trainable(config: TrainConfig, manifest: Manifest, bank: FeatureBank, run: Path) -> None:
    """Raise `UserError`, before anything is written, for settings that `fit` refuses on this data."""
    method = build_method(config.model_copy(update={"sizes": measure_sizes(config, manifest, bank)}))
    plan_stages(method, config.training, config.epochs)
    check_start(config, method, run)


def measure_sizes(config: TrainConfig, manifest: Manifest, bank: FeatureBank) -> ModelSizes:
    """Return the sizes of the configured model for the vocabulary of `manifest` and the store of `bank`.

    Shapes are those of one time step, or one question, after pooling maps to `config.map_size`.
    Raises `UserError` if the backbone is unknown, if the store does not contain one of its features, or if `map_size`
    exceeds the stored maps.
    """
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
