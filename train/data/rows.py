"""The rows of a selected feature, wherever they are: in host memory or a mapped file, on a device, or in the store."""

import mmap
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from train.data.selected_feature import SelectedFeature


class FeatureRows(Protocol):
    """Selected steps of one feature, for the complete videos of a store."""

    def gather(self, videos: np.ndarray, positions: np.ndarray) -> Tensor:
        """Return [row, ...]: for each video (row of the store), the step at that position of the selected steps."""
        ...


@dataclass(frozen=True)
class ArrayRows:
    """Rows of an array in memory: `values` [kept video, step, ...], `index` [video of the store]."""

    values: np.ndarray
    index: np.ndarray

    def gather(self, videos: np.ndarray, positions: np.ndarray) -> Tensor:
        """Return [row, ...] on the CPU."""
        return self._take(self.index[videos] * self.values.shape[1] + positions)

    def _take(self, rows: np.ndarray) -> Tensor:
        steps = self.values.reshape(-1, *self.values.shape[2:])
        # NumPy requests huge pages and torch does not: a new batch of maps takes a sixth of the time of index_select.
        return torch.from_numpy(steps.take(rows, axis=0))


@dataclass(frozen=True)
class MappedRows(ArrayRows):
    """Rows of a file that is mapped into memory; `values` is a `numpy.memmap` of all of it."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Return what another process needs to map the file again, instead of its content."""
        values: Any = self.values
        return _map_again, (values.filename, values.dtype, values.offset, values.shape, self.index)

    def _take(self, rows: np.ndarray) -> Tensor:
        self._read_ahead(np.sort(rows))
        return super()._take(rows)

    def _read_ahead(self, rows: np.ndarray) -> None:
        """Have the system read `rows` (sorted) into memory at once.

        Otherwise it reads them page by page, as they are used, which takes ten times as long.
        """
        values: Any = self.values
        row_bytes, offset = values.strides[1], values.offset % mmap.ALLOCATIONGRANULARITY
        gaps = np.flatnonzero(np.diff(rows) > 1)
        starts = (offset + rows[np.append(0, gaps + 1)] * row_bytes) // mmap.PAGESIZE * mmap.PAGESIZE
        stops = offset + (rows[np.append(gaps, -1)] + 1) * row_bytes
        for start, length in zip(starts.tolist(), (stops - starts).tolist(), strict=True):
            values.base.madvise(mmap.MADV_WILLNEED, start, length)


def _map_again(path: Any, dtype: np.dtype, offset: int, shape: tuple[int, ...], index: np.ndarray) -> MappedRows:
    return MappedRows(np.memmap(path, dtype, "r", offset, shape), index)


@dataclass(frozen=True)
class DeviceRows:
    """Rows on a device: `values` [kept video, step, ...], `index` [video of the store] on the CPU."""

    values: Tensor
    index: np.ndarray

    def gather(self, videos: np.ndarray, positions: np.ndarray) -> Tensor:
        """Return [row, ...] on the device."""
        rows = torch.from_numpy(self.index[videos] * self.values.shape[1] + positions)
        return self.values.flatten(0, 1).index_select(0, rows.to(self.values.device))


@dataclass(frozen=True)
class StoreRows:
    """Rows read from the store at each call, each video once."""

    feature: SelectedFeature

    def gather(self, videos: np.ndarray, positions: np.ndarray) -> Tensor:
        """Return [row, ...], read from the store."""
        parts: list[Tensor] = []
        order: list[np.ndarray] = []
        for video in np.unique(videos):
            rows = np.flatnonzero(videos == video)
            unique, position_of_row = np.unique(positions[rows], return_inverse=True)
            (values,) = self.feature.read(np.array([video]), unique)
            parts.append(values[torch.from_numpy(position_of_row)])
            order.append(rows)
        gathered = torch.cat(parts)
        return torch.empty_like(gathered).index_copy_(0, torch.from_numpy(np.concatenate(order)), gathered)
