"""The rows of a selected feature, wherever they are: in host memory or a mapped file, on a device, or in the store."""

from dataclasses import dataclass
from typing import Protocol

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
    """Rows of an array, in memory or a mapped file: `values` [kept video, step, ...], `index` [video of the store]."""

    values: np.ndarray
    index: np.ndarray

    def gather(self, videos: np.ndarray, positions: np.ndarray) -> Tensor:
        """Return [row, ...] on the CPU."""
        steps = self.values.reshape(-1, *self.values.shape[2:])
        # NumPy requests huge pages and torch does not: a new batch of maps takes a sixth of the time of index_select.
        return torch.from_numpy(steps.take(self.index[videos] * self.values.shape[1] + positions, axis=0))


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
