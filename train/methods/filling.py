"""Fill values for the stored features of a missing modality: zeros, noise or the training mean.

They carry no information about the video; methods that impute features are in `train.methods.imputation`.
Source: the ECCV 2024 missing-modality paper does not say how a missing input is presented; zeros is our primary choice.
"""

import hashlib
from typing import Literal

import torch
from torch import Tensor, nn

from pipeline.store.schema import MODALITIES
from train import processes
from train.data.batch import Batch
from train.interfaces import Backbone
from train.methods.losses import answer_losses

Fill = Literal["zeros", "randn", "mean"]


class Filling(nn.Module):
    """Fill the stored features of a missing modality with zeros, noise or the training mean.

    `fill`: "zeros"; "randn", standard normal noise seeded by a hash of the question's id, so that no answer depends on
    its batch; "mean", the mean over all steps passed to `update_mean`.
    """

    def __init__(self, backbone: Backbone, fill: Fill = "zeros") -> None:
        super().__init__()
        self.fill = fill
        self.names = {m: backbone.needs[m] for m in MODALITIES}
        self.shapes = backbone.input_shapes
        for name in (name for modality in MODALITIES for name in self.names[modality]):
            self.register_buffer(f"mean_{name}", torch.zeros(self.shapes[name]))
            self.register_buffer(f"steps_{name}", torch.zeros((), dtype=torch.int64))

    def update_mean(self, batch: Batch) -> None:
        """Update the mean with the available steps of `batch`; no effect unless `fill` is "mean"."""
        if self.fill != "mean":
            return
        for modality in batch.available:
            for name, values in (batch.features(modality) or {}).items():
                rows = values[batch.mask(modality)].float()
                mean, steps = self.get_buffer(f"mean_{name}"), self.get_buffer(f"steps_{name}")
                added = sum(processes.collect(len(rows)))
                steps += added
                mean += (processes.add_up(rows.sum(0)) - added * mean) / steps

    def fill_missing(self, batch: Batch) -> Batch:
        """Return the batch with the missing modalities filled.

        A filled modality has the mask of the available one; if both are missing, all steps are filled.
        """
        missing = [m for m in MODALITIES if m not in batch.available]
        if not missing:
            return batch
        mask = batch.mask(batch.available[0]) if batch.available else torch.ones_like(batch.audio_mask)
        filled = batch
        for modality in missing:
            filled = filled.filled(modality, self._fill_values(modality, batch, mask), mask)
        return filled

    def _fill_values(self, modality: str, batch: Batch, mask: Tensor) -> dict[str, Tensor]:
        """Return {feature: [batch, time, ...]} of `modality`, in the shape of `mask` [batch, time]."""
        values = {}
        for name in self.names[modality]:
            shape = (*mask.shape, *self.shapes[name])
            if self.fill == "randn":
                noise = [_noise(shape[1:], name + question_id) for question_id in batch.question_id]
                values[name] = torch.stack(noise).to(mask.device)
            else:
                mean = self.get_buffer(f"mean_{name}")
                values[name] = (mean if self.fill == "mean" else torch.zeros_like(mean)).expand(shape)
        return values


def complete_losses(backbone: Backbone, batch: Batch) -> dict[str, Tensor]:
    """Return the scalar losses of a batch with both modalities: "answer" and the backbone's own."""
    return answer_losses(backbone, backbone.encode(batch), batch.answer)


def _noise(shape: tuple[int, ...], key: str) -> Tensor:
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big")
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
