"""What is pending in a store: the videos to decode, and the features whose state is known without decoding."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from pipeline.manifests.manifest import Video
from pipeline.run.partitions import VideoTask
from pipeline.store.schema import MODALITIES, State
from pipeline.store.writer import FeatureRecord, StoreWriter


def find_pending(
    writer: StoreWriter,
    videos: Sequence[Video],
    rows: Mapping[str, int],
    modalities: Mapping[str, str],
    retry_failed: bool = False,
) -> tuple[list[VideoTask], list[FeatureRecord]]:
    """Return the videos to decode, in the order of their rows, and the records of features that need no decoding.

    `rows`: {video id: row}, also of videos that the store does not have yet. `modalities`: {feature: its modality}, of
    the requested features. A feature needs no decoding if its video is decoded, but without its modality. Paths are
    relative to the videos folder.
    """
    pending = list(_list_pending(writer, videos, rows, list(modalities), retry_failed))
    if not pending:
        return [], []
    total = len(rows)
    presence = {name: _read(writer, f"videos/{name}", total) for name in MODALITIES}
    reasons = {name: _read(writer, f"videos/{name}_reason", total) for name in MODALITIES}
    sources = _read(writer, "videos/source_sha256", total)
    # A video without any recorded feature is decoded: a run may have been killed while it recorded the video.
    is_recorded = has_any_in_state(writer, total, (State.COMPLETE, State.ABSENT, State.FAILED))
    # Other features of a video need the same file.
    is_fixed = has_any_in_state(writer, total, (State.COMPLETE, State.ABSENT))
    final = (State.ABSENT,) if retry_failed else (State.ABSENT, State.FAILED)
    tasks, records = [], []
    for task in pending:
        row = task.row
        known = [name for name in task.features if is_recorded[row] and presence[modalities[name]][row] in final]
        for name in known:
            modality = modalities[name]
            records.append(FeatureRecord(row, name, State(presence[modality][row]), str(reasons[modality][row])))
        features = tuple(name for name in task.features if name not in known)
        if features:
            sha256 = task.sha256 or (str(sources[row]) if is_fixed[row] else "")
            tasks.append(replace(task, sha256=sha256, features=features))
    return tasks, records


def _list_pending(
    writer: StoreWriter,
    videos: Sequence[Video],
    rows: Mapping[str, int],
    features: Sequence[str],
    retry_failed: bool,
) -> Iterator[VideoTask]:
    """Yield a task of each video with a pending feature, in the order of the rows."""
    wanted = (State.PENDING, State.FAILED) if retry_failed else (State.PENDING,)
    is_pending = {name: _is_in_state(writer, name, len(rows), wanted) for name in features}
    for video in sorted(videos, key=lambda video: rows[video.video_id]):
        row = rows[video.video_id]
        missing = tuple(name for name in features if is_pending[name][row])
        if missing:
            yield VideoTask(row, video.video_id, video.path, video.sha256, missing)


def has_any_in_state(writer: StoreWriter, total: int, wanted: Collection[State]) -> np.ndarray:
    """Return whether some stored feature has one of the states `wanted`, bool [video] for `total` videos."""
    found = np.zeros(total, dtype=bool)
    for name in writer.feature_names():
        found |= _is_in_state(writer, name, total, wanted)
    return found


def _is_in_state(writer: StoreWriter, name: str, total: int, wanted: Collection[State]) -> np.ndarray:
    """Return whether the feature `name` has one of the states `wanted`, bool [video] for `total` videos."""
    if name not in writer.feature_names():
        return np.full(total, State.PENDING in wanted)
    return np.isin(_read(writer, f"features/{name}/state", total), list(wanted))


def _read(writer: StoreWriter, path: str, total: int) -> np.ndarray:
    """Return an index array for `total` videos: the rows that the store does not have yet are empty."""
    stored = writer.read_index(path)[:total]
    values = np.full(total, "" if stored.dtype.kind not in "iu" else 0, stored.dtype)
    values[: len(stored)] = stored
    return values
