"""Batches: questions with the features of the modalities that their videos have.

Missing modalities are removed here, before any model: in a homogeneous batch a missing modality has no tensor.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from pipeline.store.schema import MODALITIES
from train.data.scenarios import SAMPLED_MISSING


@dataclass(frozen=True)
class Batch:
    """Questions and the features of their videos. A batch is homogeneous if all its rows have the same modalities.

    - `question` {feature: [batch, ...]}.
    - `audio`, `visual` {feature: [batch, time, ...]}: NaN at missing steps; None if no row has the modality.
    - `audio_mask`, `visual_mask` bool [batch, time]: True for available steps. All False: the modality is missing.
    - `answer` int64 [batch]: the index in the frozen list of answers, -1 for an answer outside it.
    - `type`, `question_id`, `video_id`: one text per row.
    - `negatives`: like `visual`, frames of other videos; None outside training.
    - `choices` bool [batch, answer]: True for the answers that a question offers, for all answers if it offers none;
      None if no question of the batch is multiple choice. Only evaluation reads them.
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

    @classmethod
    def concatenate(cls, batches: Sequence["Batch"]) -> "Batch":
        """Return the rows of `batches` as one batch. The rows of a batch without a modality are NaN in its features."""

        rows = [len(batch) for batch in batches]

        def join(values: Sequence[Any], fill: float) -> Any:
            example = next((value for value in values if value is not None), None)
            if example is None:
                return None
            if isinstance(example, tuple):
                return tuple(text for texts in values for text in texts)
            if isinstance(example, dict):
                return {name: join([value and value[name] for value in values], fill) for name in example}
            return torch.cat(
                [
                    example.new_full((count, *example.shape[1:]), fill) if value is None else value
                    for count, value in zip(rows, values, strict=True)
                ]
            )

        fills = {field.name: 1.0 if field.name == "choices" else torch.nan for field in fields(cls)}
        return cls(**{name: join([getattr(batch, name) for batch in batches], fill) for name, fill in fills.items()})

    def __len__(self) -> int:
        return len(self.question_id)

    def mask(self, modality: str) -> Tensor:
        """Return the mask of `modality`, bool [batch, time]."""
        return self.audio_mask if modality == "audio" else self.visual_mask

    def features(self, modality: str) -> dict[str, Tensor] | None:
        """Return the features of `modality`, None if it is missing."""
        return self.audio if modality == "audio" else self.visual

    @property
    def available(self) -> tuple[str, ...]:
        """The available modalities of this (homogeneous) batch."""
        return tuple(m for m in MODALITIES if self.features(m) is not None)

    def without(self, *modalities: str) -> "Batch":
        """Return the batch as if `modalities` had never been recorded: without their features, steps and negatives."""
        changes: dict[str, Any] = {}
        for modality in modalities:
            changes[modality] = None
            changes[f"{modality}_mask"] = torch.zeros_like(self.mask(modality))
        if "visual" in modalities:
            changes["negatives"] = None
        return replace(self, **changes)

    def sample_missing(self) -> list[tuple[Tensor, "Batch"]]:
        """Return (rows int64 [row], part) for each sampled state: complete, audio missing, visual missing.

        Each question of a complete (homogeneous) batch is in one of the three states with equal probability, sampled
        from torch's default generator. A batch in which a modality is missing already is returned as one part.
        Source: ours; the ECCV 2024 paper does not say whether the compared methods saw missing modalities in training.
        """
        if len(self.available) < len(MODALITIES):
            return [(torch.arange(len(self)), self)]
        sampled = torch.randint(len(SAMPLED_MISSING), (len(self),))
        rows = [(sampled == state).nonzero().squeeze(1) for state in range(len(SAMPLED_MISSING))]
        parts = zip(rows, SAMPLED_MISSING, strict=True)
        return [(own, self.select(own).without(*missing)) for own, missing in parts if len(own)]

    def filled(self, modality: str, features: dict[str, Tensor], mask: Tensor) -> "Batch":
        """Return the batch with `features` {feature: [batch, time, ...]} as those of `modality`.

        `mask` bool [batch, time]: the steps that then count as available. Negatives are dropped, because the match loss
        needs real pairs.
        """
        changes: dict[str, Any] = {modality: features, f"{modality}_mask": mask}
        return replace(self, negatives=None, **changes)

    def select(self, rows: Tensor) -> "Batch":
        """Return the batch of the given row indices, int64 [row]."""
        return self._map(
            lambda tensor: tensor[rows.to(tensor.device)], lambda texts: tuple(texts[i] for i in rows.tolist())
        )

    def to(self, device: torch.device | str) -> "Batch":
        """Return the batch with every tensor on `device`."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True), lambda texts: texts)

    def pin_memory(self) -> "Batch":
        """Return the batch with every tensor of the CPU in pinned memory, from which a GPU copies asynchronously."""
        return self._map(lambda tensor: tensor if tensor.is_cuda else tensor.pin_memory(), lambda texts: texts)

    def split_by_presence(self) -> Iterator[tuple[Tensor, "Batch"]]:
        """Yield (rows int64 [row], homogeneous batch) for each combination of available modalities that occurs.

        A missing modality is None in its part, so that no model can read the values at its place.
        """
        codes = self.audio_mask.any(1).long() + 2 * self.visual_mask.any(1).long()
        for code in codes.unique().tolist():
            rows = (codes == code).nonzero().squeeze(1)
            part = self if len(rows) == len(self) else self.select(rows)
            yield rows, part.without(*(m for bit, m in enumerate(MODALITIES) if not code >> bit & 1))

    def predict_by_presence(self, predict: Callable[["Batch"], Tensor]) -> Tensor:
        """Return [batch, answer]: the outputs of `predict` for each homogeneous part, in the order of the rows."""
        parts = [(rows, predict(part)) for rows, part in self.split_by_presence()]
        predictions = torch.cat([output for _, output in parts])
        order = torch.cat([rows for rows, _ in parts]).to(predictions.device)
        return torch.empty_like(predictions).index_copy_(0, order, predictions)

    def _map(self, on_tensor: Any, on_texts: Any) -> "Batch":
        def convert(value: Any) -> Any:
            if isinstance(value, Tensor):
                return on_tensor(value)
            if isinstance(value, dict):
                return {key: on_tensor(tensor) for key, tensor in value.items()}
            return None if value is None else on_texts(value)

        return Batch(**{f.name: convert(getattr(self, f.name)) for f in fields(self)})
