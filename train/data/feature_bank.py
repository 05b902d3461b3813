"""The stored features that models read, cached in memory, on a device or on disk.

Every dataset, method and run that shares a `FeatureBank` is served by one pass over the store.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from pipeline.errors import UserError
from pipeline.machine import available_cores
from pipeline.store.schema import MODALITIES
from train.data.cache_files import cache_folder, is_cached, open_cached
from train.data.loading import Cache, LoadingSettings
from train.data.rows import ArrayRows, DeviceRows, FeatureRows, MappedRows, StoreRows
from train.data.selected_feature import SelectedFeature, pooled_size, strided_steps

if TYPE_CHECKING:
    from pipeline.store.reader import FeatureStore

# Called with a feature, the place and size of its cache, the videos that are done and their total: first with 0 videos.
OnCaching = Callable[[str, str, int, int], None]


class FeatureBank:
    """The features of one store, for all datasets that share it. They keep their stored dtype (maps: float16).

    `device`: where the models are. `on_caching`: called while rows are cached, to show the progress.
    """

    def __init__(self, store: "FeatureStore", settings: LoadingSettings | None = None, device: str = "cpu") -> None:
        self.store, self.settings = store, (settings or LoadingSettings()).shared_by(1)
        self.on_caching: OnCaching = lambda feature, place, done, total: None
        self._device = torch.device(device)
        self._free_bytes = self.settings.memory_bytes or 0
        self._kept: dict[tuple[str, tuple[int, ...], int | None], FeatureRows] = {}

    @property
    def is_on_gpu(self) -> bool:
        """Whether the models that read the features are on a GPU."""
        return self._device.type == "cuda"

    def shared_by(self, processes: int, gpus: int = 1) -> "FeatureBank":
        """Return an empty bank of the same store, with the settings that each of `processes` with such a bank has."""
        bank = FeatureBank(self.store, self.settings.shared_by(processes, gpus), str(self._device))
        bank.on_caching = self.on_caching
        return bank

    def rows(self, feature: str, steps: tuple[int, ...], map_size: int | None) -> FeatureRows:
        """Return the rows of `feature` at `steps` (seconds of the time axis), cached at the first call.

        `map_size`: average-pool maps [channel, height, width] to `map_size` x `map_size`; None keeps them as stored.
        Raises `UserError` if the chosen cache has no room for them.
        """
        key = (feature, steps, pooled_size(self.store, feature, map_size))
        if key not in self._kept:
            self._kept[key] = self._open(SelectedFeature(self.store, *key))
        return self._kept[key]

    def prepare_on_disk(self, needs: Mapping[str, Sequence[str]], time_steps: int, map_size: int | None) -> None:
        """Build the files of the audio and visual features in `needs`, for processes with banks of their own.

        What is not cached on disk is left to them.
        """
        steps = strided_steps(self.store.seconds, time_steps)
        for name in (name for modality in MODALITIES for name in needs[modality]):
            feature = SelectedFeature(self.store, name, steps, pooled_size(self.store, name, map_size))
            if self._choose(feature) == "disk":
                self.rows(name, steps, map_size)

    def _open(self, feature: SelectedFeature) -> FeatureRows:
        cache = self._choose(feature)
        if cache == "none":
            return StoreRows(feature)
        if cache == "memory":
            if feature.nbytes > self._free_bytes:
                raise UserError(
                    f"{feature.name} needs {feature.nbytes / 1e9:.1f} GB, {self._free_bytes / 1e9:.1f} GB are left for "
                    "cached features: pass --cache disk, or a larger --memory-limit"
                )
            self._free_bytes -= feature.nbytes
        folder = cache_folder(self.store.path, self.settings.folder) if cache == "disk" else None
        place = f"{cache}, {feature.nbytes / 1e9:.1f} GB" + (f", in {folder}" if folder else "")
        report = partial(self._report, feature, place)
        if folder is None or not is_cached(feature, folder):
            report(0)
        if folder is not None:
            return MappedRows(open_cached(feature, folder, available_cores(), report), feature.index)
        if cache == "device":
            return DeviceRows(_read_all(feature, report, self._device), feature.index)
        return ArrayRows(_read_all(feature, report, torch.device("cpu")).numpy(), feature.index)

    def _choose(self, feature: SelectedFeature) -> Cache:
        """Return the cache of the settings; for "auto" the fastest that surely has room for `feature`, else disk."""
        if not feature.nbytes:
            return "memory"  # a file without values cannot be mapped
        if self.settings.cache != "auto":
            return self.settings.cache
        if self.is_on_gpu and feature.nbytes <= self.settings.device_share * torch.cuda.mem_get_info(self._device)[0]:
            return "device"
        return "memory" if feature.nbytes <= self._free_bytes else "disk"

    def _report(self, feature: SelectedFeature, place: str, done: int) -> None:
        self.on_caching(feature.name, place, done, len(feature.videos))


def _read_all(feature: SelectedFeature, on_videos: Callable[[int], None], device: torch.device) -> torch.Tensor:
    """Return all values of `feature` on `device`, to which they are copied block by block."""
    dtype = torch.from_numpy(np.empty(0, feature.dtype)).dtype
    values = torch.empty(feature.shape, dtype=dtype, device=device)
    done = 0
    for block in feature.read_all(available_cores()):
        values[done : done + len(block)] = torch.from_numpy(block)
        done += len(block)
        on_videos(done)
    return values
