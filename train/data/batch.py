"""What a model is given: a batch of questions with whatever modalities are there. It reads no store.

Missingness is applied here, before any model: a modality that is absent has no tensor at all in a homogeneous batch.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from pipeline.store.schema import MODALITIES
from train.data.scenarios import SAMPLED_MISSING


@dataclass(frozen=True)
class Batch:
    """Questions and the features of their videos.

    `question`: {feature name: [batch, ...]}. `audio`, `visual`: {feature name: [batch, time, ...]}, or None where the
    modality is absent from the whole batch; in a mixed batch the rows that lack it are NaN. `audio_mask`,
    `visual_mask`: bool [batch, time], True where that step is really there (all False: the modality is absent).
    `negatives`: like `visual`, maps of other videos, in training only. `answer`: int64 [batch], -1 for an answer
    outside the frozen list. `choices`: bool [batch, answer], the answers that a question offers (all of them where it
    offers none), or None where no question of the batch is multiple choice; only evaluation looks at them.
    """

    question: dict[str, Tensor]
    audio: dict[str, Tensor] | None
    visual: dict[str, Tensor] | None
    audio_mask: Tensor
    visual_mask: Tensor
    answer: Tensor
    type: tuple[str, ...]
    question_id: tuple[str, ...]
    video_id: tuple[str, ...]
    negatives: dict[str, Tensor] | None = None
    choices: Tensor | None = None

    def __len__(self) -> int:
        return len(self.question_id)

    def mask(self, modality: str) -> Tensor:
        """Return bool [batch, time] of `modality`."""
        return self.audio_mask if modality == "audio" else self.visual_mask

    def features(self, modality: str) -> dict[str, Tensor] | None:
        """Return the tensors of `modality`, or None."""
        return self.audio if modality == "audio" else self.visual

    @property
    def present(self) -> tuple[str, ...]:
        """The modalities that this (homogeneous) batch holds."""
        return tuple(m for m in MODALITIES if self.features(m) is not None)

    def without(self, *modalities: str) -> "Batch":
        """Return the batch as if `modalities` had never been recorded: no tensor, no steps, no negatives of them."""
        changes: dict[str, Any] = {}
        for modality in modalities:
            changes[modality] = None
            changes[f"{modality}_mask"] = torch.zeros_like(self.mask(modality))
        if "visual" in modalities:
            changes["negatives"] = None
        return replace(self, **changes)

    def sample_missing(self) -> list[tuple[Tensor, "Batch"]]:
        """Return (rows int64 [row], part) for each state sampled: complete, audio missing, visual missing.

        Each question of a complete (homogeneous) batch takes one of the three with equal chances, from torch's default
        generator; a batch that lacks a modality by nature is one part, as it is.
        Source: ours; the ECCV 2024 paper does not say whether the methods that it compares saw missing modalities.
        """
        if len(self.present) < len(MODALITIES):
            return [(torch.arange(len(self)), self)]
        sampled = torch.randint(len(SAMPLED_MISSING), (len(self),))
        rows = [(sampled == state).nonzero().squeeze(1) for state in range(len(SAMPLED_MISSING))]
        parts = zip(rows, SAMPLED_MISSING, strict=True)
        return [(own, self.select(own).without(*missing)) for own, missing in parts if len(own)]

    def filled(self, modality: str, features: dict[str, Tensor], mask: Tensor) -> "Batch":
        """Return the batch with stand-ins {feature: [batch, time, ...]} for `modality`, there where `mask` is True.

        It carries no negatives: there is nothing for a match loss to match.
        """
        changes: dict[str, Any] = {modality: features, f"{modality}_mask": mask}
        return replace(self, negatives=None, **changes)

    def select(self, rows: Tensor) -> "Batch":
        """Return the batch of the given row indices, int64 [row]."""
        return self._map(
            lambda tensor: tensor[rows.to(tensor.device)], lambda names: tuple(names[i] for i in rows.tolist())
        )

    def to(self, device: torch.device | str) -> "Batch":
        """Return the batch with every tensor on `device`."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True), lambda names: names)

    def split_by_presence(self) -> Iterator[tuple[Tensor, "Batch"]]:
        """Yield (rows int64 [row], homogeneous batch) for each combination of modalities that occurs.

        A modality that these rows lack is None in their batch, so no model can read what stood in its place.
        """
        codes = self.audio_mask.any(1).long() + 2 * self.visual_mask.any(1).long()
        for code in codes.unique().tolist():
            rows = (codes == code).nonzero().squeeze(1)
            part = self if len(rows) == len(self) else self.select(rows)
            yield rows, part.without(*(m for bit, m in enumerate(MODALITIES) if not code >> bit & 1))

    def predict_by_presence(self, predict: Callable[["Batch"], Tensor]) -> Tensor:
        """Return [batch, answer]: what `predict` says of each homogeneous part, put back in the order of the rows."""
        parts = [(rows, predict(part)) for rows, part in self.split_by_presence()]
        answers = torch.cat([answer for _, answer in parts])
        order = torch.cat([rows for rows, _ in parts]).to(answers.device)
        return torch.empty_like(answers).index_copy_(0, order, answers)

    def _map(self, on_tensor: Any, on_names: Any) -> "Batch":
        def convert(value: Any) -> Any:
            if isinstance(value, Tensor):
                return on_tensor(value)
            if isinstance(value, dict):
                return {key: on_tensor(tensor) for key, tensor in value.items()}
            return None if value is None else on_names(value)

        return Batch(**{f.name: convert(getattr(self, f.name)) for f in fields(self)})
