"""How near what stands in for a missing modality comes to the features that were taken away. It answers nothing."""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from pipeline.store.schema import MODALITIES
from train.data.dataset import QuestionDataset
from train.interfaces import MissingModalityMethod, SupportsImputation

SCENARIO_OF = {modality: f"{modality}-missing" for modality in MODALITIES}


@dataclass
class _Sums:
    """Running sums over the steps [row, element] of one modality, in double precision."""

    rows: int = 0
    errors: float = 0.0
    squares: float = 0.0
    total: Tensor = field(default_factory=lambda: torch.zeros(()))

    def add(self, made: Tensor, real: Tensor) -> None:
        made, real = made.flatten(1).double(), real.flatten(1).double()
        self.rows += len(real)
        self.errors += float((made - real).square().sum())
        self.squares += float(real.square().sum())
        self.total = self.total.to(real.device) + real.sum(0)

    def share(self) -> float | None:
        """Return the errors over the squared deviations from the mean step; None where nothing deviates."""
        deviations = self.squares - float(self.total.square().sum()) / max(self.rows, 1)
        return self.errors / deviations if deviations > 1e-9 * self.squares else None


def measure_recovery(
    method: MissingModalityMethod,
    dataset: QuestionDataset,
    rows: np.ndarray,
    batch_size: int,
    device: torch.device | str,
) -> dict[str, float]:
    """Return {scenario: recovery error} of a method with stand-ins, over the complete questions `rows`; {} for others.

    The error of a scenario that takes one modality is the squared difference between its stand-in features and the
    backbone's own features of what was taken, over their squared deviation from the mean step: 0 is perfect, 1 what
    the mean step of these very questions would reach. Only steps that both modalities have count. The method is left in
    evaluation mode.
    """
    if not isinstance(method, SupportsImputation):
        return {}
    sums = {modality: _Sums() for modality in MODALITIES}
    method.eval()  # type: ignore[attr-defined]  # a method is a Module
    with torch.inference_mode():
        for whole in dataset.batches(batch_size, rows=rows):
            batch = whole.to(device)
            real = method.backbone.encode(batch)
            both = batch.audio_mask & batch.visual_mask
            for modality in MODALITIES:
                made = method.complete(batch.without(modality))
                sums[modality].add(made.features[modality][both], real.features[modality][both])
    shares = {SCENARIO_OF[modality]: found.share() for modality, found in sums.items()}
    return {scenario: share for scenario, share in shares.items() if share is not None}
