"""A bank of training videos and of the questions asked about them, from which other videos borrow features.

It holds stored features, not learned ones, and knows no method.
"""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.store.schema import MODALITIES
from train.data.batch import Batch
from train.interfaces import Backbone
from train.networks.layers import LEAST_DEVIATION, masked_mean


class VideoBank(nn.Module):
    """Remember each training video's features, a vector a second, and lend the mean of the nearest ones.

    Buffers, empty until `fill`: `video` int64 [video], hashes of the ids; `there_<modality>` bool [video, time];
    `values_<feature>` float16 [video, time, channel]; `key_<modality>` float32 [video, channel], of length one; `mean_`
    and `deviation_<feature>` [channel]; `asked` float32 [question, key], of length one; `about` int64 [question], the
    place of its video.
    """

    video: Tensor
    about: Tensor
    asked: Tensor

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.names = {m: backbone.needs[m] for m in MODALITIES}
        self.shapes = backbone.input_shapes
        self.question_name = backbone.needs["question"][0]
        self._keep("video", torch.zeros(0, dtype=torch.int64))
        self._keep("about", torch.zeros(0, dtype=torch.int64))
        self._keep("asked", torch.zeros(0, 0))
        for modality in MODALITIES:
            self._keep(f"there_{modality}", torch.zeros(0, 0, dtype=torch.bool))
            self._keep(f"key_{modality}", torch.zeros(0, 0))
            for name in self.names[modality]:
                self._keep(f"values_{name}", torch.zeros(0, 0, 0, dtype=torch.float16))
                self._keep(f"mean_{name}", torch.zeros(0))
                self._keep(f"deviation_{name}", torch.zeros(0))

    def fill(self, videos: Iterable[Batch], questions: Iterable[Batch]) -> None:
        """Take in `videos`, complete batches of one row a video, and `questions`, of which those on others are left.

        Raises `UserError` where there are not two videos.
        """
        parts = [self._taken(batch) for batch in videos]
        if sum(len(part["video"]) for part in parts) < 2:
            raise UserError("retrieval needs two complete training videos at least: add some, or take another method")
        for name in parts[0]:
            self._keep(name, torch.cat([part[name] for part in parts]))
        for modality in MODALITIES:
            there = self.get_buffer(f"there_{modality}")
            for name in self.names[modality]:
                steps = self.get_buffer(f"values_{name}")[there].double()
                self._keep(f"mean_{name}", steps.mean(0).float())
                self._keep(f"deviation_{name}", steps.std(0, correction=0).clamp_min(LEAST_DEVIATION).float())
            values = {name: self.get_buffer(f"values_{name}").float() for name in self.names[modality]}
            self._keep(f"key_{modality}", self._key(values, there))
        self._fill_questions(questions)

    def lend(self, missing: str, batch: Batch, neighbours: int, question_weight: float) -> dict[str, Tensor]:
        """Return {feature: [batch, time, *shape]} of `missing`, for a batch that holds the other modality.

        The mean over the `neighbours` nearest videos that have the second, zeros where none has. No video is its own
        neighbour. Raises RuntimeError before `fill`.
        """
        (available,) = batch.present
        nearest = self._nearest(available, batch, neighbours, question_weight)
        there = self.get_buffer(f"there_{missing}")[nearest].unsqueeze(-1)
        lent = {}
        for name in self.names[missing]:
            values = self.get_buffer(f"values_{name}")[nearest].float() * there
            mean = values.sum(1) / there.sum(1).clamp_min(1)
            lent[name] = _in_every_place(mean, self.shapes[name])
        return lent

    def _nearest(self, available: str, batch: Batch, neighbours: int, question_weight: float) -> Tensor:
        """Return int64 [batch, neighbour], the places of the nearest videos, nearest first, ties by place."""
        if not len(self.video):
            raise RuntimeError("the bank of videos lends before it was filled")
        stored = batch.features(available) or {}
        values = {name: self._vectors(stored, name) for name in self.names[available]}
        key = self._key(values, batch.mask(available))
        scores = key.double() @ self.get_buffer(f"key_{available}").double().T
        alike = question_keys(batch.question[self.question_name], self.asked.shape[1]).double() @ self.asked.double().T
        best = scores.new_full(scores.shape, -1.0).scatter_reduce(1, self.about.expand(len(alike), -1), alike, "amax")
        scores = scores + question_weight * best
        own = _codes(batch).to(scores.device)[:, None] == self.video
        scores = scores.masked_fill(own, -torch.inf)
        return scores.sort(dim=1, descending=True, stable=True).indices[:, : min(neighbours, len(self.video) - 1)]

    def _taken(self, batch: Batch) -> dict[str, Tensor]:
        taken = {"video": _codes(batch)}
        for modality in MODALITIES:
            mask, stored = batch.mask(modality), batch.features(modality) or {}
            taken[f"there_{modality}"] = mask
            for name in self.names[modality]:
                vectors = self._vectors(stored, name)
                taken[f"values_{name}"] = vectors.masked_fill(~mask.unsqueeze(-1), 0).half()
        return {name: values.cpu() for name, values in taken.items()}

    def _vectors(self, stored: Mapping[str, Tensor], name: str) -> Tensor:
        """Return float32 [row, time, channel] of a stored feature, rounded as the bank's are: twins have one key."""
        return _over_places(stored[name].float(), self.shapes[name]).half().float()

    def _fill_questions(self, questions: Iterable[Batch]) -> None:
        place = {code: number for number, code in enumerate(self.video.tolist())}
        tensors, about = [], []
        for batch in questions:
            known = [row for row, code in enumerate(_codes(batch).tolist()) if code in place]
            about += [place[code] for code in _codes(batch).tolist() if code in place]
            tensors.append(batch.question[self.question_name].cpu()[known])
        values = torch.cat(tensors)
        width = values.shape[-1] if values.is_floating_point() else int(values.max()) + 1
        self._keep("asked", question_keys(values, width))
        self._keep("about", torch.tensor(about))

    def _key(self, values: Mapping[str, Tensor], mask: Tensor) -> Tensor:
        """Return float32 [row, channel], of length one: the standardised mean over time of all features, joined."""
        means = [
            (masked_mean(steps.nan_to_num(), mask) - self.get_buffer(f"mean_{name}"))
            / self.get_buffer(f"deviation_{name}")
            for name, steps in values.items()
        ]
        return F.normalize(torch.cat(means, dim=-1), dim=-1)

    def _keep(self, name: str, values: Tensor) -> None:
        """Make `values` the buffer of that name, where the one before it lay."""
        before = self._buffers.get(name)
        self.register_buffer(name, values if before is None else values.to(before.device))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        """Make room for a bank of any size before torch compares shapes."""
        for name, values in self.named_buffers(recurse=False):
            if prefix + name in state_dict:
                self._keep(name, torch.empty_like(state_dict[prefix + name], device=values.device))
        super()._load_from_state_dict(state_dict, prefix, *arguments)


def question_keys(values: Tensor, width: int) -> Tensor:
    """Return float32 [question, width], of length one: how often each word stands there, or the given vectors' mean.

    `values`: int [question, token], where 0 is padding and words from `width` on are left out, or float [question,
    channel] or [question, word, channel] with NaN where no word is (`width` channels).
    """
    if values.is_floating_point():
        return F.normalize(values.float() if values.dim() == 2 else values.float().nanmean(1), dim=-1)
    words = values.long()
    counts = torch.zeros(len(words), width, device=words.device)
    counts.scatter_add_(1, words.clamp_max(width - 1), ((words > 0) & (words < width)).float())
    return F.normalize(counts, dim=-1)


def _codes(batch: Batch) -> Tensor:
    """Return int64 [row]: a hash of each row's video id, the same everywhere."""
    digests = (hashlib.sha256(video_id.encode()).digest() for video_id in batch.video_id)
    return torch.tensor([int.from_bytes(digest[:7], "big") for digest in digests], dtype=torch.int64)


def _over_places(values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return [row, time, channel]: the mean of a map [channel, height, width] or of tokens [token, channel]."""
    if len(shape) == 3:
        return values.mean((-2, -1))
    return values.mean(-2) if len(shape) == 2 else values


def _in_every_place(vectors: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return [row, time, *shape] with the vector [row, time, channel] of a step in each of its places."""
    if len(shape) == 3:
        return vectors[..., None, None].expand(*vectors.shape, *shape[1:])
    return vectors.unsqueeze(-2).expand(*vectors.shape[:2], *shape) if len(shape) == 2 else vectors
