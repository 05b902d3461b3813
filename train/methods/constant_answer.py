"""Answers about videos of which no modality is available, from learned constants."""

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
    """Answer a question about a video of which nothing is there, from learned constants at the pooled level.

    Only the constants learn: the backbone, and the question's encoding, get no gradient from here, so that the
    objective of the method stays as it is for everything else.
    Source: ours; the paper says nothing of questions with both modalities missing.
    Differs from the released code, which adds noise to both real features and reads them.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.constants = LearnedConstants(backbone)

    def loss(self, backbone: Backbone, representation: Representation, answer: Tensor) -> Tensor:
        """Return the scalar cross-entropy; only the question of `representation` is read."""
        with frozen(backbone):
            return cross_entropy(self.logits(backbone, representation.detached()), answer)

    def logits(self, backbone: Backbone, representation: Representation) -> Tensor:
        """Return logits [batch, answer]; only the question of `representation` is read."""
        pooled = self.constants(MODALITIES, len(representation.question))
        return backbone.answer(replace(representation.question_alone(), pooled=pooled)).logits


def encode_question(backbone: Backbone, batch: Batch) -> Representation:
    """Return the question as `backbone` reads it; no modality is touched."""
    return backbone.encode(batch.without(*MODALITIES))


@contextmanager
def frozen(backbone: Backbone) -> Iterator[None]:
    """Let a graph built inside give no gradient to the parameters of `backbone`."""
    assert isinstance(backbone, nn.Module)
    learning = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
