"""Videos to partitions: which rows one task owns.

A partition is `VIDEOS_PER_PARTITION` aligned rows, so that it owns whole chunks and shards of every feature.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

from pipeline.store.schema import VIDEOS_PER_PARTITION


@dataclass(frozen=True, slots=True)
class VideoTask:
    """One video to decode: its row, its file, its expected SHA-256 ("" for any), the features it is missing."""

    row: int
    video_id: str
    path: str
    sha256: str
    features: tuple[str, ...]


@dataclass(frozen=True)
class Partition:
    """The tasks of one aligned block of rows; no two partitions of a run share a row block."""

    first_row: int
    videos: tuple[VideoTask, ...]


def plan_partitions(tasks: Iterable[VideoTask]) -> Iterator[Partition]:
    """Yield the partitions of `tasks`, which are ordered by row; linear in time, constant in memory."""
    for block, videos in groupby(tasks, key=lambda task: task.row // VIDEOS_PER_PARTITION):
        yield Partition(block * VIDEOS_PER_PARTITION, tuple(videos))
