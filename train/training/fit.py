"""A training from its settings to its best epoch: what is refused, decided and written before the first epoch.

`train.training.loop` trains the epochs.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import UserError
from pipeline.files import locked
from pipeline.manifests.manifest import Manifest
from train.backbones.registry import needs_of
from train.backbones.sizes import ModelSizes
from train.data.dataset import input_shapes
from train.data.feature_bank import FeatureBank
from train.interfaces import MissingModalityMethod
from train.runs.claim import check_data, describe_data, read_data
from train.runs.config import TrainConfig
from train.runs.device import choose_device
from train.runs.folder import (
    LAST,
    build_method,
    describe_environment,
    is_finished,
    load_run,
    write_start,
)
from train.runs.identity import is_run_folder
from train.training.initialise import check_start, start_from, whiten_inputs
from train.training.loop import Loop, Progress, plan_stages


def fit(
    config: TrainConfig,
    manifest: Manifest,
    bank: FeatureBank,
    run: Path,
    *,
    resume: bool = False,
    keep_state: bool = False,
    report: Callable[[Progress], None] | None = None,
) -> tuple[MissingModalityMethod, TrainConfig]:
    """Train a run on the train split and return its best epoch, loaded from the checkpoint.

    Keeps the checkpoint of the final stage with the highest mean validation accuracy (ties: the latest). The mean is
    over the method's selection scenarios, on the questions of the val split with naturally complete videos; if there
    are none, on those with naturally incomplete videos. Without a val split the last epoch is kept. With an `ema_decay`
    the averaged weights are validated, saved and returned. `resume` continues a started run after its last complete
    epoch and gives the weights of an uninterrupted run. `keep_state`: keep `last.safetensors` of
    a finished run.

    Raises `UserError` if `run` contains a different run, or any run without `resume`; if another process uses it; if
    the store does not contain the manifest's data; if there are no questions to train on or to select an epoch on; if
    the loss is not finite. Nothing is written before all but the last are known.
    """
    device = choose_device(config.device)
    config = config.model_copy(update={"sizes": measure_sizes(config, manifest, bank)})
    data = describe_data(run, config, manifest, bank)
    if not _has_finished(run, config, data, resume):
        torch.manual_seed(config.seed)
        method = build_method(config)
        check_start(config, method, run)
        loop = Loop(config, method, manifest, bank, run, device)
        # A stopped run has its weights and whitening; what it started from may be gone.
        is_stopped = (run / LAST).exists()
        if config.start_from and not is_stopped:
            loop.trained = start_from(loop.module, run.parent / config.start_from, config.whiten)
        elif config.whiten and not is_stopped:
            whiten_inputs(method.backbone, loop.train, loop.masks)
        with locked(run, "another training or evaluation"):
            if not _has_finished(run, config, data, resume):
                write_start(
                    run,
                    config,
                    manifest.vocabulary,
                    describe_environment(device, *loop.provenance()),
                    read_data(run) or data,
                )
                loop.run_epochs(report or (lambda progress: None))
    if not keep_state:
        (run / LAST).unlink(missing_ok=True)
    return load_run(run, str(device))


def _has_finished(run: Path, config: TrainConfig, data: dict[str, Any], resume: bool) -> bool:
    """Return whether the training in `run` has finished. Raises `UserError` if `run` cannot be trained or resumed."""
    check_data(run, config, data)
    if not resume and is_run_folder(run):
        raise UserError(f"{run} already contains a run: pass --resume to resume it, or another --out")
    return is_finished(run, config)


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
