"""The plain backbone: trained on complete data, shown zeros (noise, the training mean) where a modality is missing.

It is the baseline that knows nothing of missing modalities, not a method that was told to expect them.
Source: the rows of the ECCV 2024 paper without its method; how they present a missing input is not stated there.
"""

from torch import Tensor, nn

from train.data.batch import Batch
from train.interfaces import Backbone, Representation
from train.methods.filling import Fill, Filling, complete_losses


class ZeroFill(nn.Module):
    """Replace the stored feature of a missing modality before the stem.

    `missing_fill`: zeros (primary), "randn" (standard normal, fixed by question) or "mean" (of the training steps).
    Training questions that lack a modality are not used.
    Differs from the released code: that one adds noise to the real features, which are then not missing.
    """

    selection_scenarios = ("complete",)
    sees = "nothing"
    trains_on = "complete"

    def __init__(self, backbone: Backbone, *, missing_fill: Fill = "zeros") -> None:
        super().__init__()
        self.backbone = backbone
        self.filling = Filling(backbone, missing_fill)

    def training_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return "answer", the backbone's losses and "total" of a complete batch."""
        self.filling.learn(batch)
        return complete_losses(self.backbone, batch)

    def predict(self, batch: Batch) -> Tensor:
        """Return logits [batch, answer]; a missing modality is filled."""
        return self.backbone.answer(self.complete(batch)).logits

    def complete(self, batch: Batch) -> Representation:
        """Return the features of both modalities; a missing one is filled before the stem."""
        return self.backbone.encode(self.filling.complete(batch))


def mean_fill(backbone: Backbone) -> ZeroFill:
    """Return the method that fills a missing modality with the training mean of its stored feature."""
    return ZeroFill(backbone, missing_fill="mean")
