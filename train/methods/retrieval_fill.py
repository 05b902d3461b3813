"""Retrieval: the nearest training videos lend their sound or picture where it is missing.

Nothing is learned about how to retrieve; the backbone learns to read what is retrieved.
Source: ours, the simplest form of retrieving in place of generating, which the newest work on AVQA with missing
modalities builds on; a feature store makes it cheap.
"""

from collections.abc import Iterable

from torch import Tensor, nn

from pipeline.store.schema import MODALITIES
from train.data.batch import Batch
from train.data.scenarios import OTHER
from train.interfaces import Backbone, Representation
from train.methods.constant_answer import ConstantAnswer, encode_question
from train.methods.filling import complete_losses
from train.methods.losses import mean_over_parts, weighted_sum
from train.methods.video_bank import VideoBank


class RetrievalFill(nn.Module):
    """Put the mean of the nearest training videos' features, second by second, where a modality is missing.

    Videos are near by the cosine of their mean standardised features of the modality that is there, plus
    `question_weight` times the cosine of the question and the nearest one that training asked about them. Places of a
    picture are not told apart: its mean vector is lent to each. A video never lends to itself, in training or in
    evaluation, though published splits share videos. Training draws for every complete question one of complete, audio
    missing, visual missing with equal chances: L = the answer's cross-entropy and the backbone's own losses.

    The bank holds [video, time, channel] of every stored feature in float16, and is part of the checkpoint.
    Differs from the released code: there is none of this method.
    """

    selection_scenarios = ("audio-missing", "visual-missing")
    sees = "thirds"
    trains_on = "all"

    def __init__(self, backbone: Backbone, *, neighbours: int = 5, question_weight: float = 0.5) -> None:
        super().__init__()
        self.backbone = backbone
        self.neighbours, self.question_weight = neighbours, question_weight
        self.bank = VideoBank(backbone)
        self.unseen = ConstantAnswer(backbone)

    def prepare(self, videos: Iterable[Batch], questions: Iterable[Batch]) -> None:
        """Fill the bank with complete training `videos`, a row each, and the training `questions` on them."""
        self.bank.fill(videos, questions)

    def training_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return "answer", the backbone's losses, "unseen" and "total", over what the draw left of the batch."""
        return mean_over_parts([(len(part), self._losses(part)) for _, part in batch.sample_missing()])

    def predict(self, batch: Batch) -> Tensor:
        """Return logits [batch, answer]; what is missing is borrowed, with nothing there the constants answer."""
        if not batch.present:
            return self.unseen.logits(self.backbone, encode_question(self.backbone, batch))
        return self.backbone.answer(self.complete(batch)).logits

    def complete(self, batch: Batch) -> Representation:
        """Return the features of both modalities of a batch that has one; a missing one is borrowed."""
        return self.backbone.encode(self._completed(batch))

    def _losses(self, batch: Batch) -> dict[str, Tensor]:
        question = encode_question(self.backbone, batch)
        losses = {"unseen": self.unseen.loss(self.backbone, question, batch.answer)}
        if batch.present:
            answered = complete_losses(self.backbone, self._completed(batch))
            losses |= {name: loss for name, loss in answered.items() if name != "total"}
        return losses | {"total": weighted_sum(losses, {})}

    def _completed(self, batch: Batch) -> Batch:
        """Return the batch with both modalities; what is borrowed has the steps of what is there, and no negatives."""
        for missing in set(MODALITIES) - set(batch.present):
            lent = self.bank.lend(missing, batch, self.neighbours, self.question_weight)
            batch = batch.filled(missing, lent, batch.mask(OTHER[missing]))
        return batch
