"""Retrieval: fill a missing modality with the features of the nearest training videos.

The retrieval has no parameters to train; the backbone is trained on the retrieved features.
Source: ours, a control for methods that generate features: nearest neighbours among the training videos.
"""

from collections.abc import Iterable

from pydantic import PositiveInt
from torch import Tensor, nn

from pipeline.store.schema import MODALITIES
from train.data.batch import Batch
from train.data.scenarios import OTHER
from train.interfaces import Backbone, Representation
from train.methods.both_missing import ConstantAnswer, encode_question
from train.methods.exposure import Exposure, exposed_losses
from train.methods.filling import complete_losses
from train.methods.losses import Weight
from train.methods.video_bank import VideoBank


class RetrievalFill(nn.Module):
    """Fill a missing modality with the mean features, per time step, of the `neighbours` nearest training videos.

    The similarity to a training video is the cosine of the mean standardised features of the available modality, plus
    `question_weight` times the largest cosine of the question and a training question on that video. Spatial features
    are retrieved as their mean vector, repeated at every place. A video is never its own neighbour, in
    training or evaluation, although published splits share videos. Training answers each complete question under the
    conditions of `exposure`: L = cross-entropy of the answer ("answer") + the backbone's own losses + "unseen", which
    trains the constants that answer if both modalities are missing.

    The bank of videos stores [video, time, channel] of each feature in float16, and is part of the checkpoint.
    Differs from the released code: it has no such method.
    """

    selection_scenarios = ("audio-missing", "visual-missing")
    trains_on = "all"

    def __init__(
        self,
        backbone: Backbone,
        *,
        neighbours: PositiveInt = 5,
        question_weight: Weight = 0.5,
        exposure: Exposure = "sampled",
    ) -> None:
        super().__init__()
        self.backbone, self.sees = backbone, exposure
        self.neighbours, self.question_weight = neighbours, question_weight
        self.bank = VideoBank(backbone)
        self.unseen = ConstantAnswer(backbone)

    def prepare(self, videos: Iterable[Batch], questions: Iterable[Batch]) -> None:
        """Fill the bank with complete training `videos`, one row each, and the training `questions` on them."""
        self.bank.fill(videos, questions)

    def training_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return "answer", the backbone's own losses, "unseen" and "total"."""
        return exposed_losses(batch, self.sees, self._losses)

    def predict(self, batch: Batch) -> Tensor:
        """Return logits [batch, answer]; a missing modality is retrieved; with both missing, the constants answer."""
        if not batch.available:
            return self.unseen.predict(self.backbone, batch)
        return self.backbone.answer(self.complete(batch)).logits

    def complete(self, batch: Batch) -> Representation:
        """Return the features of both modalities, one of them retrieved if missing; `batch` has at least one."""
        return self.backbone.encode(self._filled(batch))

    def _losses(self, batch: Batch) -> dict[str, Tensor]:
        question = encode_question(self.backbone, batch)
        losses = {"unseen": self.unseen.loss(self.backbone, question, batch.answer)}
        if batch.available:
            losses |= complete_losses(self.backbone, self._filled(batch))
        return losses

    def _filled(self, batch: Batch) -> Batch:
        """Return the batch with both modalities; a retrieved one has the mask of the other, and no negatives."""
        for missing in set(MODALITIES) - set(batch.available):
            retrieved = self.bank.retrieve(missing, batch, self.neighbours, self.question_weight)
            batch = batch.filled(missing, retrieved, batch.mask(OTHER[missing]))
        return batch
