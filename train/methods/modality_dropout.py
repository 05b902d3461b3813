"""Modality dropout: the plain backbone, trained with modalities taken away at random and filled with zeros.

Source: Neverova et al., "ModDrop: Adaptive Multi-modal Gesture Recognition", TPAMI 2016; the thirds are this project's.
"""

from torch import Tensor, nn

from train.data.batch import Batch
from train.interfaces import Backbone, Representation
from train.methods.filling import Fill, Filling, complete_losses
from train.methods.losses import mean_over_parts


class ModalityDropout(nn.Module):
    """Draw for every complete training question one of complete, audio missing, visual missing, with equal chances.

    Questions that lack a modality by nature are used as they are. The match loss is taken of complete ones alone.
    Differs from the released code: ModDrop drops each modality by itself; here at most one goes.
    """

    selection_scenarios = ("audio-missing", "visual-missing")
    sees = "thirds"
    trains_on = "all"

    def __init__(self, backbone: Backbone, *, missing_fill: Fill = "zeros") -> None:
        super().__init__()
        self.backbone = backbone
        self.filling = Filling(backbone, missing_fill)

    def training_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return "answer", the backbone's losses and "total", over what the draw left of the batch."""
        self.filling.learn(batch)
        filled = [self.filling.complete(part) for _, part in batch.sample_missing()]
        return mean_over_parts([(len(part), complete_losses(self.backbone, part)) for part in filled])

    def predict(self, batch: Batch) -> Tensor:
        """Return logits [batch, answer]; a missing modality is filled."""
        return self.backbone.answer(self.complete(batch)).logits

    def complete(self, batch: Batch) -> Representation:
        """Return the features of both modalities; a missing one is filled before the stem."""
        return self.backbone.encode(self.filling.complete(batch))
