"""Answers to questions with both modalities missing, from learned constants."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from torch import Tensor, nn

from pipeline.store.schema import MODALITIES
from train.data.batch import Batch
from train.interfaces import Backbone, Representation
from train.methods.losses import cross_entropy
from train.networks.layers import LearnedConstants


class ConstantAnswer(nn.Module):
    """Answer from the question and one learned constant per modality at the pooled level.

    `loss` trains the constants only: it gives no gradient to the backbone or the question's encoding, so that the
    method's objective for all other parameters is unchanged.
    Source: ours; the paper does not cover questions with both modalities missing.
    Differs from the released code: that adds noise to the real features of both modalities and reads them.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.constants = LearnedConstants(backbone)

    def loss(self, backbone: Backbone, representation: Representation, answer: Tensor) -> Tensor:
        """Return the scalar cross-entropy of `logits`; only the question of `representation` is read."""
        with frozen(backbone):
            return cross_entropy(self.logits(backbone, representation.detached()), answer)

    def logits(self, backbone: Backbone, representation: Representation) -> Tensor:
        """Return logits [batch, answer]; only the question of `representation` is read."""
        pooled = self.constants(MODALITIES, len(representation.question))
        return backbone.answer(replace(representation.question_alone(), pooled=pooled)).logits

    def predict(self, backbone: Backbone, batch: Batch) -> Tensor:
        """Return logits [batch, answer]; only the question of `batch` is read."""
        return self.logits(backbone, encode_question(backbone, batch))


def encode_question(backbone: Backbone, batch: Batch) -> Representation:
    """Return the question as encoded by `backbone`, without audio and visual features."""
    return backbone.encode(batch.without(*MODALITIES))


@contextmanager
def frozen(backbone: Backbone) -> Iterator[None]:
    """Freeze the parameters of `backbone`: what is computed inside the block gives them no gradient."""
    assert isinstance(backbone, nn.Module)
    trained = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
