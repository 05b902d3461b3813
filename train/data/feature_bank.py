"""The rows of one store that models read, in memory where they fit. It knows no questions and no batches.

One pass over the store serves every dataset, method and run that shares a `FeatureBank`.
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
    """The chosen steps of one feature, video by video."""

    def gather(self, videos: np.ndarray, positions: np.ndarray) -> Tensor:
        """Return [row, ...]: of each video (row of the store) the step at that position of the chosen steps."""
        ...


@dataclass(frozen=True)
class MemoryRows:
    """Rows in memory: `values` [kept video, step, ...], `place` [video of the store] -> kept video, or -1."""

    values: np.ndarray
    place: np.ndarray

    def gather(self, videos: np.ndarray, positions: np.ndarray) -> Tensor:
        """Return [row, ...] without touching the disk."""
        steps = self.values.reshape(-1, *self.values.shape[2:])
        # NumPy asks for huge pages where torch does not: a fresh batch of maps costs a sixth of index_select.
        return torch.from_numpy(steps.take(self.place[videos] * self.values.shape[1] + positions, axis=0))


@dataclass(frozen=True)
class StoreRows:
    """Rows read from the store when asked for, each video once a call, for what does not fit into memory."""

    stored: "StoredFeature"
    steps: tuple[int, ...]
    map_size: int | None

    def gather(self, videos: np.ndarray, positions: np.ndarray) -> Tensor:
        """Return [row, ...] read from the store."""
        parts: list[Tensor] = []
        order: list[np.ndarray] = []
        for video in np.unique(videos):
            rows = np.flatnonzero(videos == video)
            wanted, back = np.unique(positions[rows], return_inverse=True)
            (values,) = self.stored.read(np.array([video]), np.asarray(self.steps)[wanted], self.map_size)
            parts.append(values[torch.from_numpy(back)])
            order.append(rows)
        gathered = torch.cat(parts)
        return torch.empty_like(gathered).index_copy_(0, torch.from_numpy(np.concatenate(order)), gathered)


class StoredFeature:
    """One feature of a store: its array, and how many steps of each video should be there."""

    def __init__(self, store: "FeatureStore", name: str) -> None:
        self._store, self._path = store, f"features/{name}/values"
        self._array = store.values(name)
        self._step_counts = store.steps(store.spec(name).modality)
        self.dtype = np.dtype(self._array.dtype)

    def read(self, videos: np.ndarray, steps: np.ndarray, map_size: int | None) -> Tensor:
        """Return [video, step, ...] of videos (ascending) that are complete, maps pooled to `map_size`.

        Every row between the first video and the last is read: ask for those of one chunk.
        Raises `UserError` where the store cannot be read, or holds no numbers after all.
        """
        first = int(videos[0])
        with reporting_damage(self._store.path, self._path):
            rows = read_steps(self._array, slice(first, int(videos[-1]) + 1), steps)
        values = torch.from_numpy(np.ascontiguousarray(rows[videos - first]))
        if map_size is not None:
            pooled = F.adaptive_avg_pool2d(values.flatten(0, 1).float(), map_size)
            values = pooled.to(values.dtype).unflatten(0, values.shape[:2])
        holes = values.flatten(2).isnan().any(2).numpy() & (steps < self._step_counts[videos, None])
        if holes.any():
            damaged = self._store.video_ids[videos[holes.any(1)][0]]
            raise UserError(
                f"store {self._store.path}: {self._path} lacks numbers of {damaged!r}, which "
                f"counts as complete: the store is damaged ('mavqa-inspect {self._store.path} --verify' lists what is "
                "lost), extract it anew"
            )
        return values

    def by_chunk(self, videos: np.ndarray) -> list[np.ndarray]:
        """Return `videos` (ascending) in groups that are stored together: to read one is to decompress all."""
        chunks = videos // self._array.chunks[0]
        return np.split(videos, np.flatnonzero(np.diff(chunks)) + 1)


class FeatureBank:
    """The feature rows of one store, for all the datasets that share it; kept in memory where they fit.

    `memory_bytes` bounds all that is kept. Maps [time, channel, height, width] are pooled by average to
    `map_size` x `map_size` where one is given; every feature keeps the type it is stored in (maps: float16).
    """

    def __init__(self, store: "FeatureStore", memory_bytes: int = 8_000_000_000) -> None:
        self.store = store
        self._free_bytes = memory_bytes
        self._kept: dict[tuple[Any, ...], FeatureRows] = {}

    def rows(self, feature: str, steps: tuple[int, ...], map_size: int | None) -> FeatureRows:
        """Return the rows of `feature` at `steps` (seconds of the time axis), read at the first call."""
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
        place = np.full(len(self.store.video_ids), -1)
        place[videos] = np.arange(len(videos))
        for group in stored.by_chunk(videos) if len(videos) else []:
            values[place[group]] = stored.read(group, np.asarray(steps), map_size).numpy()
        return MemoryRows(values, place)


def strided_steps(seconds: int, time_steps: int) -> tuple[int, ...]:
    """Return the seconds that a model of T `time_steps` reads, T at most `seconds`: floor(i * seconds / T)."""
    count = min(time_steps, seconds)
    return tuple(position * seconds // count for position in range(count))


def stored_shape(shape: tuple[int, ...], map_size: int | None) -> tuple[int, ...]:
    """Return the shape of one step of a feature after maps (three axes) are pooled to `map_size`."""
    return (shape[0], map_size, map_size) if map_size is not None and len(shape) == 3 else shape
