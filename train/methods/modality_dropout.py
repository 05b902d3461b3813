"""Modality dropout: the plain backbone, trained with randomly removed modalities that are filled with zeros.

Source: Neverova et al., "ModDrop: Adaptive Multi-modal Gesture Recognition", TPAMI 2016; the probabilities are ours.
"""

from torch import Tensor, nn

from train.data.batch import Batch
from train.interfaces import Backbone, Representation
from train.methods.filling import Fill, Filling, complete_losses
from train.methods.losses import sampled_losses


class ModalityDropout(nn.Module):
    """Fill a missing modality as `ZeroFill` does, and train with sampled missing modalities.

    Training samples one of complete, audio missing and visual missing for each complete question, a third each, and
    uses questions that have only one modality in the data as they are: L = the backbone's answer losses; the match loss
    is computed on complete questions only. `missing_fill`: see `Filling`.
    Differs from the released code: ModDrop drops each modality independently; here at most one is dropped.
    """

    selection_scenarios = ("audio-missing", "visual-missing")
    sees = "thirds"
    trains_on = "all"

    def __init__(self, backbone: Backbone, *, missing_fill: Fill = "zeros") -> None:
        super().__init__()
        self.backbone = backbone
        self.filling = Filling(backbone, missing_fill)

    def training_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return "answer", the backbone's own losses and "total"."""
        self.filling.update_mean(batch)
        return sampled_losses(batch, lambda part: complete_losses(self.backbone, self.filling.fill_missing(part)))

    def predict(self, batch: Batch) -> Tensor:
        """Return logits [batch, answer]; a missing modality is filled."""
        return self.backbone.answer(self.complete(batch)).logits

    def complete(self, batch: Batch) -> Representation:
        """Return the features of both modalities; a missing one is filled before the stem."""
        return self.backbone.encode(self.filling.fill_missing(batch))
