"""Meaningless stand-ins for stored features: what a plain backbone is shown where a modality is missing.

Nothing is generated from the other modality here; that is what methods do.
Source: the ECCV 2024 missing-modality paper leaves open how a missing input is presented; zeros is our primary.
"""

import hashlib
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.store.schema import MODALITIES
from train.data.batch import Batch
from train.interfaces import Backbone

Fill = Literal["zeros", "randn", "mean"]


class Filling(nn.Module):
    """Put zeros, noise or the training mean where a stored feature is missing.

    Noise is drawn anew for each question from a hash of its id, so that no answer depends on its batch. The mean is
    over all steps that were `learn`ed from.
    """

    def __init__(self, backbone: Backbone, fill: Fill = "zeros") -> None:
        super().__init__()
        self.fill = fill
        self.names = {m: backbone.needs[m] for m in MODALITIES}
        self.shapes = backbone.input_shapes
        for name in self._stored():
            self.register_buffer(f"mean_{name}", torch.zeros(self.shapes[name]))
            self.register_buffer(f"steps_{name}", torch.zeros((), dtype=torch.int64))

    def learn(self, batch: Batch) -> None:
        """Take the steps that are there into the mean; needed by the fill "mean" alone."""
        if self.fill != "mean":
            return
        for modality in batch.present:
            for name, values in (batch.features(modality) or {}).items():
                rows = values[batch.mask(modality)].float()
                mean, steps = self.get_buffer(f"mean_{name}"), self.get_buffer(f"steps_{name}")
                steps += len(rows)
                mean += (rows.sum(0) - len(rows) * mean) / steps

    def complete(self, batch: Batch) -> Batch:
        """Return the batch with both modalities there.

        A stand-in has the steps of the other modality, or all steps where both are missing.
        """
        missing = [m for m in MODALITIES if m not in batch.present]
        if not missing:
            return batch
        mask = batch.mask(batch.present[0]) if batch.present else torch.ones_like(batch.audio_mask)
        filled = batch
        for modality in missing:
            filled = filled.filled(modality, self._stand_in(modality, batch, mask), mask)
        return filled

    def _stand_in(self, modality: str, batch: Batch, mask: Tensor) -> dict[str, Tensor]:
        values = {}
        for name in self.names[modality]:
            shape = (*mask.shape, *self.shapes[name])
            if self.fill == "randn":
                values[name] = torch.stack([_noise(shape[1:], name + key) for key in batch.question_id]).to(mask.device)
            else:
                mean = self.get_buffer(f"mean_{name}")
                values[name] = (mean if self.fill == "mean" else torch.zeros_like(mean)).expand(shape)
        return values

    def _stored(self) -> list[str]:
        return [name for modality in MODALITIES for name in self.names[modality]]


def complete_losses(backbone: Backbone, batch: Batch) -> dict[str, Tensor]:
    """Return the scalar losses of answering `batch`, which has both modalities: "answer", the backbone's, "total"."""
    answer = backbone.answer(backbone.encode(batch))
    losses = {"answer": F.cross_entropy(answer.logits, batch.answer), **answer.losses}
    return losses | {"total": torch.stack(list(losses.values())).sum()}


def _noise(shape: tuple[int, ...], key: str) -> Tensor:
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big")
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
