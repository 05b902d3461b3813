"""The plain backbone: trained on complete data; a missing modality is filled with zeros, noise or the training mean.

It is the baseline that sees no missing modality in training; `train.methods.modality_dropout` does.
Source: the rows of the ECCV 2024 paper without its method; the paper does not say how they present a missing input.
"""

from torch import Tensor, nn

from train.data.batch import Batch
from train.interfaces import Backbone, Representation
from train.methods.filling import Fill, Filling, complete_losses
from train.methods.losses import with_total


class ZeroFill(nn.Module):
    """Fill the stored features of a missing modality before the backbone's stem.

    `missing_fill`: "zeros" (primary), "randn" (standard normal, fixed per question) or "mean" (of the training steps).
    Trained on complete questions only: L = the backbone's answer losses.
    Differs from the released code: that adds noise to the real features, which are then not missing.
    """

    selection_scenarios = ("complete",)
    sees = "nothing"
    trains_on = "complete"

    def __init__(self, backbone: Backbone, *, missing_fill: Fill = "zeros") -> None:
        super().__init__()
        self.backbone = backbone
        self.filling = Filling(backbone, missing_fill)

    def training_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return "answer", the backbone's own losses and "total" of a complete batch."""
        self.filling.update_mean(batch)
        return with_total(complete_losses(self.backbone, batch))

    def predict(self, batch: Batch) -> Tensor:
        """Return logits [batch, answer]; a missing modality is filled."""
        return self.backbone.answer(self.complete(batch)).logits

    def complete(self, batch: Batch) -> Representation:
        """Return the features of both modalities; a missing one is filled before the stem."""
        return self.backbone.encode(self.filling.fill_missing(batch))


def mean_fill(backbone: Backbone) -> ZeroFill:
    """Return the method that fills a missing modality with the mean of its stored features over the training steps.

    Source: mean imputation, a standard control that the ECCV 2024 paper does not report.
    """
    return ZeroFill(backbone, missing_fill="mean")
