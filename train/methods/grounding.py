"""Grounding pre-training: a backbone learns which sound belongs to which picture before it is asked anything.

It answers no question: what it trains is where a run that answers starts from (`--start-from`). It runs on stored maps.
Source: Li et al., "Learning to Answer Questions in Dynamic Audio-Visual Scenarios", CVPR 2022, section 4.1 and release.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from pipeline.errors import UserError
from train.data.batch import Batch
from train.interfaces import Backbone, Matches, SupportsMatching


class GroundingPretraining(nn.Module):
    """Train a backbone's match head on one pair of sound and picture a step, and one with another video's picture.

    A video counts once, however many questions are asked about it.
    Source: `grounding_gen` of the release. Differs from the released code: positives are all the steps that the
    backbone reads, not the first ten seconds; the videos are those of the split, so that validation is not training;
    the frozen trunk cannot drift, as its maps are stored; negatives are drawn from every step of other videos.
    Raises `UserError` for a backbone that has nothing to tell them apart with.
    """

    selection_scenarios: tuple[str, ...] = ()
    sees = "nothing"
    trains_on = "videos"

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        if not isinstance(backbone, SupportsMatching):
            raise UserError("objective 'grounding' needs a backbone that matches sound and picture: take avst")
        self.backbone: Backbone = backbone

    def training_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return "total", the mean cross-entropy over both kinds of pairs (scalar)."""
        return {"total": self._matches(batch).loss()}

    def predict(self, batch: Batch) -> Tensor:
        """Raise TypeError: nothing is answered here."""
        raise TypeError("grounding pre-training answers no question: start a run from it")

    @torch.no_grad()
    def score(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Return {"pairs": percent of pairs told rightly}, over complete batches with negatives."""
        right = pairs = 0
        for batch in batches:
            matches = self._matches(batch)
            right += matches.count_correct()
            pairs += 2 * int(matches.mask.sum())
        return {"pairs": 100 * right / max(pairs, 1)}

    def _matches(self, batch: Batch) -> Matches:
        entered = self.backbone.encode(batch)
        if entered.negatives is None:
            raise UserError("grounding pre-training needs pictures of other videos: the split has only one")
        assert isinstance(self.backbone, SupportsMatching)
        return self.backbone.match(entered)
