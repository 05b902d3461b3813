"""How features are read for training and evaluation. Loads no torch."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from pipeline.errors import unknown_name
from pipeline.machine import available_memory

Cache = Literal["auto", "none", "disk", "memory", "device"]
CACHES: tuple[str, ...] = get_args(Cache)
# The share of the free memory, of the machine or of a GPU, that cached features may take; the rest is for training.
CACHED_SHARE = 0.5
# Decoding this many bytes takes seconds.
LARGEST_DECODED_AGAIN = 500_000_000


@dataclass(frozen=True)
class LoadingSettings:
    """How features are read; the values that models get do not depend on it. Raises `UserError` for an unknown cache.

    - `cache`: "memory" and "device" keep decoded rows there, "disk" in files that are mapped into memory, "none" reads
      the store in every step. "auto": on a GPU if it has room, else in memory if it has room, else on disk.
    - `memory_bytes`: the limit of what is kept in memory; None: half of what the machine has free then.
    - `device_share`: the share of the free memory of a GPU that "auto" gives to a feature.
    - `folder`: of the files of "disk"; None: beside the store.
    - `workers`: the number of threads that gather batches ahead of their use; 0: none.
    """

    cache: Cache = "auto"
    memory_bytes: int | None = None
    folder: Path | None = None
    workers: int = 1
    device_share: float = CACHED_SHARE

    def __post_init__(self) -> None:
        if self.cache not in CACHES:
            raise unknown_name("cache", self.cache, CACHES)

    def shared_by(self, processes: int, gpus: int = 1) -> "LoadingSettings":
        """Return the settings of each of `processes`, which share the memory, and evenly the `gpus` if they use them.

        Each of several decodes for itself what it keeps in memory, so "auto" leaves large features to the disk.
        """
        limit = int(CACHED_SHARE * available_memory()) if self.memory_bytes is None else self.memory_bytes
        limit //= processes
        is_shared = processes > 1 and self.cache == "auto"
        return replace(
            self,
            memory_bytes=min(limit, LARGEST_DECODED_AGAIN) if is_shared else limit,
            device_share=self.device_share / math.ceil(processes / gpus),
        )
