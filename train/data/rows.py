"""The rows of a selected feature, wherever they are: in host memory or a mapped file, on a device, or in the store."""

import mmap
import os
from dataclasses import dataclass
from functools import cached_property
from io import FileIO
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from train.data.selected_feature import SelectedFeature

# Of Linux; elsewhere the first byte of a row is read.
_WITHOUT_WAITING = getattr(os, "RWF_NOWAIT", 0)


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

    def __post_init__(self) -> None:
        """Open the file, which may be removed while it is in use."""
        assert self._file.readable()

    def __reduce__(self) -> tuple[Any, ...]:
        """Return what another process needs to map the file again, instead of its content."""
        values: Any = self.values
        return _map_again, (values.filename, values.dtype, values.offset, values.shape, self.index)

    def _take(self, rows: np.ndarray) -> Tensor:
        self._read_ahead(rows)
        return super()._take(rows)

    @cached_property
    def _file(self) -> FileIO:
        values: Any = self.values
        return FileIO(values.filename)

    def _read_ahead(self, rows: np.ndarray) -> None:
        """Have the system read those of `rows` into memory at once that are not there.

        Otherwise it reads them page by page, as they are used, which takes ten times as long. Of a row that is there,
        the first byte can be read without waiting; advice for a row takes five times as long as this question.
        """
        values: Any = self.values
        row_bytes, unmapped = values.strides[1], values.offset - values.offset % mmap.ALLOCATIONGRANULARITY
        file, first = self._file.fileno(), [bytearray(1)]
        for start in (values.offset + rows * row_bytes).tolist():
            try:
                os.preadv(file, first, start, _WITHOUT_WAITING)
            except OSError:
                skipped = start % mmap.PAGESIZE
                values.base.madvise(mmap.MADV_WILLNEED, start - skipped - unmapped, row_bytes + skipped)


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
