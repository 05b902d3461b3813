"""Modality dropout: the plain backbone, trained with removed modalities that are filled with zeros.

Source: Neverova et al., "ModDrop: Adaptive Multi-modal Gesture Recognition", TPAMI 2016; the probabilities are ours.
"""

from torch import Tensor, nn

from train.data.batch import Batch
from train.interfaces import Backbone, Representation
from train.methods.exposure import Exposure, exposed_losses
from train.methods.filling import Fill, Filling, complete_losses


class ModalityDropout(nn.Module):
    """Fill a missing modality as `ZeroFill` does, and train with missing modalities.

    Training answers each complete question under the conditions of `exposure`, and questions that have only one
    modality in the data as they are: L = the backbone's answer losses; the match loss is computed on complete questions
    only. `missing_fill`: see `Filling`.
    Differs from the released code: ModDrop drops each modality independently; here at most one is dropped.
    """

    selection_scenarios = ("audio-missing", "visual-missing")
    trains_on = "all"

    def __init__(self, backbone: Backbone, *, missing_fill: Fill = "zeros", exposure: Exposure = "sampled") -> None:
        super().__init__()
        self.backbone, self.sees = backbone, exposure
        self.filling = Filling(backbone, missing_fill)

    def training_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return "answer", the backbone's own losses and "total"."""
        self.filling.update_mean(batch)
        return exposed_losses(
            batch, self.sees, lambda part: complete_losses(self.backbone, self.filling.fill_missing(part))
        )

    def predict(self, batch: Batch) -> Tensor:
        """Return logits [batch, answer]; a missing modality is filled."""
        return self.backbone.answer(self.complete(batch)).logits

    def complete(self, batch: Batch) -> Representation:
        """Return the features of both modalities; a missing one is filled before the stem."""
        return self.backbone.encode(self.filling.fill_missing(batch))
