"""One feature of a store at the time steps that a model reads, with maps pooled."""

import hashlib
import json
from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.errors import UserError
from pipeline.store.reader import read_steps, reporting_damage
from pipeline.store.schema import State
from train.data.prefetch import compute_ahead

if TYPE_CHECKING:
    from pipeline.store.reader import FeatureStore


class SelectedFeature:
    """The feature `name` of the complete videos of `store` at `steps`.

    `map_size`: maps are average-pooled to this many cells per side; None keeps them as stored.

    - `videos` int64 [kept]: the complete rows of the store, ascending.
    - `index` int64 [video of the store]: their positions in `videos`, -1 for the others.
    - `shape`: of all values, [kept, step, ...]; `dtype`: the stored one; `nbytes`.
    """

    def __init__(self, store: "FeatureStore", name: str, steps: tuple[int, ...], map_size: int | None) -> None:
        self.store, self.name, self.steps, self.map_size = store, name, steps, map_size
        self._path, self._array = f"features/{name}/values", store.values(name)
        modality = store.spec(name).modality
        self._firsts, self._stops = store.first_steps(modality), store.steps(modality)
        self.videos = np.flatnonzero(store.state(name) == State.COMPLETE)
        self.index = np.full(len(store.video_ids), -1)
        self.index[self.videos] = np.arange(len(self.videos))
        self.dtype = np.dtype(self._array.dtype)
        self.shape = (len(self.videos), len(steps), *stored_shape(tuple(store.spec(name).shape), map_size))
        self.nbytes = int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    @cached_property
    def key(self) -> str:
        """The SHA-256 of what the values depend on: videos and digests of their rows, specs, steps and pooling."""
        digests = self.store.digests(self.name)
        rows = [(self.store.video_ids[video], digests[video]) for video in self.videos]
        specs = [spec.fingerprint for spec in self.store.specs(self.name)]
        parts = [self.name, specs, rows, self.steps, self.map_size, self.dtype.str]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def read(self, videos: np.ndarray, positions: np.ndarray) -> Tensor:
        """Return [video, position, ...] of complete videos (ascending) at `positions` of the selected steps.

        All rows from the first video to the last are read, so `videos` should be those of one chunk.
        Raises `UserError` if the store cannot be read or has no values for a complete video.
        """
        first, steps = int(videos[0]), np.asarray(self.steps)[positions]
        with reporting_damage(self.store.path, self._path):
            rows = read_steps(self._array, slice(first, int(videos[-1]) + 1), steps)
        values = torch.from_numpy(np.ascontiguousarray(rows[videos - first]))
        if self.map_size is not None:
            pooled = F.adaptive_avg_pool2d(values.flatten(0, 1).float(), self.map_size)
            values = pooled.to(values.dtype).unflatten(0, values.shape[:2])
        is_available = (self._firsts[videos, None] <= steps) & (steps < self._stops[videos, None])
        is_missing = values.flatten(2).isnan().any(2).numpy() & is_available
        if is_missing.any():
            video_id = self.store.video_ids[videos[is_missing.any(1)][0]]
            raise UserError(
                f"store {self.store.path}: {self._path} has missing values for {video_id!r}, which is marked as "
                f"complete: the store is corrupt ('mavqa-inspect {self.store.path} --verify' lists what is missing), "
                "extract it again"
            )
        return values

    def read_all(self, workers: int) -> Iterator[np.ndarray]:
        """Yield the values of all kept videos, [video, step, ...] per chunk of the store, read by `workers` threads."""
        all_positions = np.arange(len(self.steps))
        yield from compute_ahead(lambda videos: self.read(videos, all_positions).numpy(), self._chunks(), workers)

    def _chunks(self) -> list[np.ndarray]:
        """Return the kept videos grouped by chunk: reading one video decompresses the whole chunk."""
        chunks = self.videos // self._array.chunks[0]
        return np.split(self.videos, np.flatnonzero(np.diff(chunks)) + 1) if len(self.videos) else []


def pooled_size(store: "FeatureStore", feature: str, map_size: int | None) -> int | None:
    """Return the cells per side to which `feature` is pooled, None if it is no map or `map_size` is None.

    Raises `UserError` if the stored maps are smaller.
    """
    shape = store.spec(feature).shape
    if map_size is None or len(shape) != 3:
        return None
    if map_size > min(shape[1:]):
        raise UserError(f"map size {map_size} exceeds the stored maps {shape[1:]} of {feature}: use a smaller one")
    return map_size


def strided_steps(seconds: int, time_steps: int) -> tuple[int, ...]:
    """Return the seconds that a model reads: floor(i * seconds / T) with T = min(`time_steps`, `seconds`)."""
    count = min(time_steps, seconds)
    return tuple(position * seconds // count for position in range(count))


def stored_shape(shape: tuple[int, ...], map_size: int | None) -> tuple[int, ...]:
    """Return the shape of one step of a feature; maps (three axes) are pooled to `map_size`."""
    return (shape[0], map_size, map_size) if map_size is not None and len(shape) == 3 else shape
