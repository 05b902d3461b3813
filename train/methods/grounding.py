"""Grounding pre-training: train the backbone to match audio and frames before it answers questions.

It answers no questions; a run that does starts from its weights (`--start-from`). It reads stored maps.
Source: Li et al., "Learning to Answer Questions in Dynamic Audio-Visual Scenarios", CVPR 2022, and its release.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from pipeline.errors import UserError
from train.data.batch import Batch
from train.interfaces import Backbone, Matches, SupportsMatching


class GroundingPretraining(nn.Module):
    """Train the match head of a backbone on one matching and one mismatching pair of audio and frame per time step.

    The frame of a mismatching pair is of another video. Each video counts once, whatever its number of questions.
    L = mean cross-entropy over both kinds of pairs. Raises `UserError` if the backbone has no match head.
    Source: `grounding_gen` of the release. Differs from the released code: positives are all steps that the backbone
    reads, not the first ten seconds; the videos are those of the split, so that validation videos are not trained on;
    the frozen image network cannot change, because its maps are stored; negatives are sampled from all steps of other
    videos.
    """

    selection_scenarios: tuple[str, ...] = ()
    sees = "nothing"
    trains_on = "videos"

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        if not isinstance(backbone, SupportsMatching):
            raise UserError("objective 'grounding' needs a backbone that matches audio and frames: choose avst")
        self.backbone: Backbone = backbone

    def training_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return "total", the mean cross-entropy over both kinds of pairs (scalar)."""
        return {"total": self._matches(batch).loss()}

    def predict(self, batch: Batch) -> Tensor:
        """Raise TypeError: pre-training answers no questions."""
        raise TypeError("grounding pre-training answers no questions: start a run from it")

    @torch.no_grad()
    def score(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Return {"pairs": percentage of correctly classified pairs} over complete batches with negatives."""
        correct = pairs = 0
        for batch in batches:
            matches = self._matches(batch)
            correct += matches.count_correct()
            pairs += 2 * int(matches.mask.sum())
        return {"pairs": 100 * correct / max(pairs, 1)}

    def _matches(self, batch: Batch) -> Matches:
        representation = self.backbone.encode(batch)
        if representation.negatives is None:
            raise UserError("grounding pre-training needs frames of other videos: the split has only one video")
        assert isinstance(self.backbone, SupportsMatching)
        return self.backbone.match(representation)
