"""The recovery error: how far the imputed features of a missing modality are from the real ones."""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from pipeline.store.schema import MODALITIES
from train.data.dataset import QuestionDataset
from train.data.scenarios import SCENARIO_OF
from train.interfaces import MissingModalityMethod, SupportsImputation
from train.runs.precision import gpu_products


@dataclass
class _Sums:
    """Sums over the steps [row, element] of one modality, in double precision."""

    rows: int = 0
    errors: float = 0.0
    squares: float = 0.0
    total: Tensor = field(default_factory=lambda: torch.zeros(()))

    def add(self, imputed: Tensor, real: Tensor) -> None:
        imputed, real = imputed.flatten(1).double(), real.flatten(1).double()
        self.rows += len(real)
        self.errors += float((imputed - real).square().sum())
        self.squares += float(real.square().sum())
        self.total = self.total.to(real.device) + real.sum(0)

    def relative_error(self) -> float | None:
        """Return the squared errors over the squared deviations from the mean step; None if no step deviates."""
        deviations = self.squares - float(self.total.square().sum()) / max(self.rows, 1)
        return self.errors / deviations if deviations > 1e-9 * self.squares else None


def measure_recovery(
    method: MissingModalityMethod,
    dataset: QuestionDataset,
    rows: np.ndarray,
    batch_size: int,
    device: torch.device | str,
) -> dict[str, float]:
    """Return {scenario: recovery error} over the complete questions `rows`; {} if the method does not impute features.

    The error of a scenario with one missing modality is the squared difference between the imputed features and the
    backbone's features of the real modality, divided by the squared deviation of the latter from their mean step: 0 is
    perfect, 1 is the error of imputing the mean step of these questions. Only steps with both modalities are compared.
    The method is left in evaluation mode.
    """
    if not isinstance(method, SupportsImputation):
        return {}
    sums = {modality: _Sums() for modality in MODALITIES}
    method.eval()  # type: ignore[attr-defined]  # a method is a Module
    with torch.inference_mode(), gpu_products("float32"):
        for cpu_batch in dataset.batches(batch_size, rows=rows):
            batch = cpu_batch.to(device)
            real = method.backbone.encode(batch)
            both = batch.audio_mask & batch.visual_mask
            for modality in MODALITIES:
                imputed = method.complete(batch.without(modality))
                sums[modality].add(imputed.features[modality][both], real.features[modality][both])
    errors = {SCENARIO_OF[modality,]: modality_sums.relative_error() for modality, modality_sums in sums.items()}
    return {scenario: error for scenario, error in errors.items() if error is not None}
