"""A dry run of a grid: every model takes one training step and answers one batch in each scenario; nothing is written.

It finds, before days of training, settings that do not fit the data, and a memory that is too small.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from pipeline.manifests.manifest import Manifest
from pipeline.store.schema import MODALITIES
from train.data.dataset import QuestionDataset
from train.data.feature_bank import FeatureBank
from train.data.scenarios import SCENARIOS
from train.interfaces import MissingModalityMethod, SupportsPreparation, SupportsStages, inputs_of, uses_negatives
from train.runs.config import TrainConfig
from train.runs.device import choose_device
from train.runs.folder import build_method
from train.training.fit import measure_sizes
from train.training.loop import plan_stages
from train.training.optimisation import make_optimiser, take_step
from train.training.rows import training_rows
from train.training.sweep import Cell


@dataclass(frozen=True)
class Tried:
    """A run that was tried: numbers of its parameters, training questions, steps per epoch and epochs; its exposure.

    `failure`: the cause, if it failed; then the numbers are 0.
    """

    run: str
    parameters: int = 0
    questions: int = 0
    steps_per_epoch: int = 0
    epochs: int = 0
    sees: str = ""
    failure: str = ""


def try_cells(
    cells: Iterable[Cell], manifest: Manifest, bank: FeatureBank, report: Callable[[Tried], None] = lambda tried: None
) -> list[Tried]:
    """Try each of `cells` of the first seed, and pass the result to `report` and return it.

    A cell that fails does not stop the others.
    """
    cells, results = list(cells), []
    for cell in (cell for cell in cells if cell.config.seed == cells[0].config.seed):
        try:
            tried = _try_run(cell.name, cell.config, manifest, bank)
        except Exception as error:  # noqa: BLE001  # whatever would end this run must not hide the others
            tried = Tried(cell.name, failure=str(error) or type(error).__name__)
        results.append(tried)
        report(tried)
    return results


def _try_run(name: str, config: TrainConfig, manifest: Manifest, bank: FeatureBank) -> Tried:
    device = choose_device(config.device)
    config = config.model_copy(update={"sizes": measure_sizes(config, manifest, bank)})
    torch.manual_seed(config.seed)
    method = build_method(config)
    assert isinstance(method, nn.Module)
    method.to(device).train()
    dataset = QuestionDataset(bank, manifest, "train", inputs_of(method.backbone, config.map_size))
    rows = training_rows(dataset, np.zeros(len(dataset), dtype=bool), method.trains_on, config.method)
    order = torch.Generator().manual_seed(config.seed)
    parts = dataset.partition(config.batch_size, order, None, rows)
    complete = max(parts, key=lambda part: (dataset.naturally_complete[part[0]], len(part)))
    _prepare(method, dataset, complete, device, plan_stages(method, config.training, config.epochs)[-1][0].name)
    batches = dataset.load([complete], order if uses_negatives(method) else None)
    take_step(method, make_optimiser(config, method), batches, [len(complete)], config, device)
    method.eval()
    if config.objective == "answer":
        batch = next(dataset.load([complete])).to(device)
        with torch.inference_mode():
            for missing in SCENARIOS.values():
                method.predict(batch.without(*missing))
    steps = -(-len(parts) // config.accumulate)
    parameters = sum(parameter.numel() for parameter in method.parameters())
    return Tried(name, parameters, len(rows), steps, config.epochs, method.sees)


def _prepare(
    method: MissingModalityMethod, dataset: QuestionDataset, part: np.ndarray, device: torch.device, stage: str
) -> None:
    """Let `method` learn from the rows `part` what it reads before training, and enter `stage`."""
    if isinstance(method, SupportsPreparation):
        batch = next(dataset.load([part])).to(device)
        method.prepare([batch], [batch.without(*MODALITIES)])
    if isinstance(method, SupportsStages) and stage != "joint":
        method.enter(stage)
