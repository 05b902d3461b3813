"""The stored features that models read, kept in memory if they fit.

Every dataset, method and run that shares a `FeatureBank` is served by one pass over the store.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.errors import UserError
from pipeline.store.reader import read_steps, reporting_damage
from pipeline.store.schema import State

if TYPE_CHECKING:
    from pipeline.store.reader import FeatureStore


class FeatureRows(Protocol):
    """Selected steps of one feature, for all videos of a store."""

    def gather(self, videos: np.ndarray, positions: np.ndarray) -> Tensor:
        """Return [row, ...]: for each video (row of the store), the step at that position of the selected steps."""
        ...


@dataclass(frozen=True)
class MemoryRows:
    """Rows in memory: `values` [kept video, step, ...] and `index` [video of the store] into them, -1 if not kept."""

    values: np.ndarray
    index: np.ndarray

    def gather(self, videos: np.ndarray, positions: np.ndarray) -> Tensor:
        """Return [row, ...] from memory."""
        steps = self.values.reshape(-1, *self.values.shape[2:])
        # NumPy requests huge pages and torch does not: a new batch of maps takes a sixth of the time of index_select.
        return torch.from_numpy(steps.take(self.index[videos] * self.values.shape[1] + positions, axis=0))


@dataclass(frozen=True)
class StoreRows:
    """Rows read from the store at each call, each video once, for features that do not fit into memory."""

    stored: "StoredFeature"
    steps: tuple[int, ...]
    map_size: int | None

    def gather(self, videos: np.ndarray, positions: np.ndarray) -> Tensor:
        """Return [row, ...], read from the store."""
        parts: list[Tensor] = []
        order: list[np.ndarray] = []
        for video in np.unique(videos):
            rows = np.flatnonzero(videos == video)
            unique, position_of_row = np.unique(positions[rows], return_inverse=True)
            (values,) = self.stored.read(np.array([video]), np.asarray(self.steps)[unique], self.map_size)
            parts.append(values[torch.from_numpy(position_of_row)])
            order.append(rows)
        gathered = torch.cat(parts)
        return torch.empty_like(gathered).index_copy_(0, torch.from_numpy(np.concatenate(order)), gathered)


class StoredFeature:
    """One feature of a store: its array, and the steps that each video must have."""

    def __init__(self, store: "FeatureStore", name: str) -> None:
        self._store, self._path = store, f"features/{name}/values"
        self._array = store.values(name)
        modality = store.spec(name).modality
        self._firsts, self._stops = store.first_steps(modality), store.steps(modality)
        self.dtype = np.dtype(self._array.dtype)

    def read(self, videos: np.ndarray, steps: np.ndarray, map_size: int | None) -> Tensor:
        """Return [video, step, ...] of complete videos (ascending), with maps pooled to `map_size`.

        All rows from the first video to the last are read, so `videos` should be those of one chunk.
        Raises `UserError` if the store cannot be read or has no values for a complete video.
        """
        first = int(videos[0])
        with reporting_damage(self._store.path, self._path):
            rows = read_steps(self._array, slice(first, int(videos[-1]) + 1), steps)
        values = torch.from_numpy(np.ascontiguousarray(rows[videos - first]))
        if map_size is not None:
            pooled = F.adaptive_avg_pool2d(values.flatten(0, 1).float(), map_size)
            values = pooled.to(values.dtype).unflatten(0, values.shape[:2])
        is_available = (self._firsts[videos, None] <= steps) & (steps < self._stops[videos, None])
        is_missing = values.flatten(2).isnan().any(2).numpy() & is_available
        if is_missing.any():
            video_id = self._store.video_ids[videos[is_missing.any(1)][0]]
            raise UserError(
                f"store {self._store.path}: {self._path} has missing values for {video_id!r}, which is marked as "
                f"complete: the store is corrupt ('mavqa-inspect {self._store.path} --verify' lists what is missing), "
                "extract it again"
            )
        return values

    def group_by_chunk(self, videos: np.ndarray) -> list[np.ndarray]:
        """Return `videos` (ascending) grouped by chunk: reading one video decompresses the whole chunk."""
        chunks = videos // self._array.chunks[0]
        return np.split(videos, np.flatnonzero(np.diff(chunks)) + 1)


class FeatureBank:
    """The features of one store, for all datasets that share it.

    Features are kept in memory as long as they fit into `memory_bytes` in total; the rest is read when needed. They
    keep their stored dtype (maps: float16).
    """

    def __init__(self, store: "FeatureStore", memory_bytes: int = 8_000_000_000) -> None:
        self.store = store
        self._free_bytes = memory_bytes
        self._kept: dict[tuple[Any, ...], FeatureRows] = {}

    def rows(self, feature: str, steps: tuple[int, ...], map_size: int | None) -> FeatureRows:
        """Return the rows of `feature` at `steps` (seconds of the time axis), read at the first call.

        `map_size`: average-pool maps [channel, height, width] to `map_size` x `map_size`; None keeps them as stored.
        """
        key = (feature, steps, map_size)
        if key not in self._kept:
            self._kept[key] = self._open(*key)
        return self._kept[key]

    def _open(self, feature: str, steps: tuple[int, ...], map_size: int | None) -> FeatureRows:
        stored = StoredFeature(self.store, feature)
        videos = np.flatnonzero(self.store.state(feature) == State.COMPLETE)
        shape = stored_shape(tuple(self.store.spec(feature).shape), map_size)
        needed_bytes = len(videos) * len(steps) * int(np.prod(shape)) * stored.dtype.itemsize
        if needed_bytes > self._free_bytes:
            return StoreRows(stored, steps, map_size)
        self._free_bytes -= needed_bytes
        values = np.empty((len(videos), len(steps), *shape), dtype=stored.dtype)
        index = np.full(len(self.store.video_ids), -1)
        index[videos] = np.arange(len(videos))
        for group in stored.group_by_chunk(videos) if len(videos) else []:
            values[index[group]] = stored.read(group, np.asarray(steps), map_size).numpy()
        return MemoryRows(values, index)


def strided_steps(seconds: int, time_steps: int) -> tuple[int, ...]:
    """Return the seconds that a model reads: floor(i * seconds / T) with T = min(`time_steps`, `seconds`)."""
    count = min(time_steps, seconds)
    return tuple(position * seconds // count for position in range(count))


def stored_shape(shape: tuple[int, ...], map_size: int | None) -> tuple[int, ...]:
    """Return the shape of one step of a feature; maps (three axes) are pooled to `map_size`."""
    return (shape[0], map_size, map_size) if map_size is not None and len(shape) == 3 else shape
