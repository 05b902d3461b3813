"""Bank of the stored features of training videos and their questions, for retrieval by similarity."""

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
    """Store the features of training videos, one vector per time step, and retrieve the mean of the nearest videos.

    Buffers, empty until `fill`: `video` int64 [video], hashes of the ids; `there_<modality>` bool [video, time], True
    for available steps; `values_<feature>` float16 [video, time, channel]; `mean_<feature>` and `deviation_<feature>`
    float32 [channel]; `key_<modality>` float32 [video, channel] and `asked` float32 [question, key], the unit vectors
    that are compared by their cosine; `about` int64 [question], the index of the question's video.
    """

    video: Tensor
    about: Tensor
    asked: Tensor

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.names = {m: backbone.needs[m] for m in MODALITIES}
        self.shapes = backbone.input_shapes
        self.question_name = backbone.needs["question"][0]
        self._set_buffer("video", torch.zeros(0, dtype=torch.int64))
        self._set_buffer("about", torch.zeros(0, dtype=torch.int64))
        self._set_buffer("asked", torch.zeros(0, 0))
        for modality in MODALITIES:
            self._set_buffer(f"there_{modality}", torch.zeros(0, 0, dtype=torch.bool))
            self._set_buffer(f"key_{modality}", torch.zeros(0, 0))
            for name in self.names[modality]:
                self._set_buffer(f"values_{name}", torch.zeros(0, 0, 0, dtype=torch.float16))
                self._set_buffer(f"mean_{name}", torch.zeros(0))
                self._set_buffer(f"deviation_{name}", torch.zeros(0))

    def fill(self, videos: Iterable[Batch], questions: Iterable[Batch]) -> None:
        """Fill the bank with `videos`, complete batches of one row per video, and the `questions` on these videos.

        Questions on other videos are ignored. Raises `UserError` if there are fewer than two videos.
        """
        parts = [self._read_rows(batch) for batch in videos]
        if sum(len(part["video"]) for part in parts) < 2:
            raise UserError("retrieval needs two complete training videos or more: add some or choose another method")
        for name in parts[0]:
            self._set_buffer(name, torch.cat([part[name] for part in parts]))
        for modality in MODALITIES:
            mask = self.get_buffer(f"there_{modality}")
            for name in self.names[modality]:
                steps = self.get_buffer(f"values_{name}")[mask].double()
                self._set_buffer(f"mean_{name}", steps.mean(0).float())
                self._set_buffer(f"deviation_{name}", steps.std(0, correction=0).clamp_min(LEAST_DEVIATION).float())
            values = {name: self.get_buffer(f"values_{name}").float() for name in self.names[modality]}
            self._set_buffer(f"key_{modality}", self._video_keys(values, mask))
        self._fill_questions(questions)

    def retrieve(self, missing: str, batch: Batch, neighbours: int, question_weight: float) -> dict[str, Tensor]:
        """Return {feature: [batch, time, *shape]} of `missing` for a batch with the other modality only.

        Each step is the mean over those of the `neighbours` nearest videos that have it, zeros if none has. A video is
        never its own neighbour. Raises RuntimeError before `fill`.
        """
        (available,) = batch.available
        nearest = self._nearest(available, batch, neighbours, question_weight)
        mask = self.get_buffer(f"there_{missing}")[nearest].unsqueeze(-1)
        retrieved = {}
        for name in self.names[missing]:
            values = self.get_buffer(f"values_{name}")[nearest].float() * mask
            mean = values.sum(1) / mask.sum(1).clamp_min(1)
            retrieved[name] = _repeat_over_places(mean, self.shapes[name])
        return retrieved

    def _nearest(self, available: str, batch: Batch, neighbours: int, question_weight: float) -> Tensor:
        """Return int64 [batch, neighbour]: the indices of the nearest videos, nearest first, ties by index."""
        if not len(self.video):
            raise RuntimeError("the video bank is empty: call `fill` before `retrieve`")
        stored = batch.features(available) or {}
        values = {name: self._step_vectors(stored, name) for name in self.names[available]}
        keys = self._video_keys(values, batch.mask(available))
        scores = keys.double() @ self.get_buffer(f"key_{available}").double().T
        asked = question_keys(batch.question[self.question_name], self.asked.shape[1])
        cosines = asked.double() @ self.asked.double().T
        index = self.about.expand(len(cosines), -1)
        best = scores.new_full(scores.shape, -1.0).scatter_reduce(1, index, cosines, "amax")
        scores = scores + question_weight * best
        is_own = _hash_video_ids(batch).to(scores.device)[:, None] == self.video
        scores = scores.masked_fill(is_own, -torch.inf)
        return scores.sort(dim=1, descending=True, stable=True).indices[:, : min(neighbours, len(self.video) - 1)]

    def _read_rows(self, batch: Batch) -> dict[str, Tensor]:
        """Return the buffers' rows for a complete batch, on the CPU."""
        rows = {"video": _hash_video_ids(batch)}
        for modality in MODALITIES:
            mask, stored = batch.mask(modality), batch.features(modality) or {}
            rows[f"there_{modality}"] = mask
            for name in self.names[modality]:
                vectors = self._step_vectors(stored, name)
                rows[f"values_{name}"] = vectors.masked_fill(~mask.unsqueeze(-1), 0).half()
        return {name: values.cpu() for name, values in rows.items()}

    def _step_vectors(self, stored: Mapping[str, Tensor], name: str) -> Tensor:
        """Return float32 [row, time, channel] of a stored feature, rounded to float16: equal videos have equal keys."""
        return _mean_over_places(stored[name].float(), self.shapes[name]).half().float()

    def _fill_questions(self, questions: Iterable[Batch]) -> None:
        index_of = {video: index for index, video in enumerate(self.video.tolist())}
        tensors, about = [], []
        for batch in questions:
            videos = _hash_video_ids(batch).tolist()
            known = [row for row, video in enumerate(videos) if video in index_of]
            about += [index_of[videos[row]] for row in known]
            tensors.append(batch.question[self.question_name].cpu()[known])
        values = torch.cat(tensors)
        width = values.shape[-1] if values.is_floating_point() else int(values.max()) + 1
        self._set_buffer("asked", question_keys(values, width))
        self._set_buffer("about", torch.tensor(about))

    def _video_keys(self, values: Mapping[str, Tensor], mask: Tensor) -> Tensor:
        """Return unit vectors float32 [row, channel]: the standardised means of the features over time, joined."""
        means = [
            (masked_mean(steps.nan_to_num(), mask) - self.get_buffer(f"mean_{name}"))
            / self.get_buffer(f"deviation_{name}")
            for name, steps in values.items()
        ]
        return F.normalize(torch.cat(means, dim=-1), dim=-1)

    def _set_buffer(self, name: str, values: Tensor) -> None:
        """Set the buffer `name` to `values`, of any shape, on the device of the previous buffer."""
        previous = self._buffers.get(name)
        self.register_buffer(name, values if previous is None else values.to(previous.device))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        """Resize the buffers to those of the checkpoint before torch compares shapes."""
        for name, values in self.named_buffers(recurse=False):
            if prefix + name in state_dict:
                self._set_buffer(name, torch.empty_like(state_dict[prefix + name], device=values.device))
        super()._load_from_state_dict(state_dict, prefix, *arguments)


def question_keys(values: Tensor, width: int) -> Tensor:
    """Return unit vectors float32 [question, width]: the counts of the words, or the mean of the word vectors.

    `values`: int [question, token], where 0 is padding and words from `width` on are ignored; or float [question,
    channel] or [question, word, channel] with NaN for padding, of `width` channels.
    """
    if values.is_floating_point():
        return F.normalize(values.float() if values.dim() == 2 else values.float().nanmean(1), dim=-1)
    words = values.long()
    counts = torch.zeros(len(words), width, device=words.device)
    counts.scatter_add_(1, words.clamp_max(width - 1), ((words > 0) & (words < width)).float())
    return F.normalize(counts, dim=-1)


def _hash_video_ids(batch: Batch) -> Tensor:
    """Return int64 [row]: a hash of each row's video id, the same on all machines."""
    digests = (hashlib.sha256(video_id.encode()).digest() for video_id in batch.video_id)
    return torch.tensor([int.from_bytes(digest[:7], "big") for digest in digests], dtype=torch.int64)


def _mean_over_places(values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return [row, time, channel]: the spatial mean of maps [channel, height, width] or tokens [token, channel]."""
    if len(shape) == 3:
        return values.mean((-2, -1))
    return values.mean(-2) if len(shape) == 2 else values


def _repeat_over_places(vectors: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return [row, time, *shape]: the vector [row, time, channel] of each step, repeated at every place."""
    if len(shape) == 3:
        return vectors[..., None, None].expand(*vectors.shape, *shape[1:])
    return vectors.unsqueeze(-2).expand(*vectors.shape[:2], *shape) if len(shape) == 2 else vectors
