"""The training cache: decoded rows of a store's features in files that are mapped into memory.

A file is built once, under a staging name, and is shared by all runs and processes through the page cache. Its name has
a hash of everything that its values depend on, so that a file of an extended or changed store is never taken for one of
the present store.
"""

import errno
import io
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import filelock
import numpy as np

from pipeline.errors import UserError, describe_error, reporting_full_disks
from pipeline.files import make_folder
from train.data.selected_feature import SelectedFeature, strided_steps

if TYPE_CHECKING:
    from pipeline.store.reader import FeatureStore

KEY_LENGTH = 16
_NAME = re.compile(
    r"(?P<feature>.+)-(?P<steps>\d+)s(-(?P<map>\d+)x\d+)?-(?P<key>[0-9a-f]{16})\.npy(?P<partial>\.partial)?"
)

# Called with the number of videos that are done.
OnVideos = Callable[[int], None]


@dataclass(frozen=True)
class CachedFeature:
    """A file of the training cache: what it has of which feature, and whether the present store has the same rows.

    `map_size`: maps are pooled to this many cells per side, None as stored. `nbytes`: its size on disk. `used`: seconds
    since the epoch. `state`: "current"; "outdated", of other rows than the store has; or "incomplete", of a builder
    that was killed or is at work.
    """

    path: Path
    feature: str
    time_steps: int
    map_size: int | None
    nbytes: int
    used: float
    state: str


def cache_folder(store: str, folder: Path | None = None) -> Path:
    """Return the folder for the cache of `store`: STORE.cache, in `folder` or beside the store.

    Raises `UserError` without a `folder` if the store is not on this machine.
    """
    name = f"{Path(store).name}.cache"
    if folder is not None:
        return folder / name
    if "://" in store:
        raise UserError(f"store {store} is not on this machine: pass a folder for its training cache (--cache-dir)")
    return Path(store).with_name(name)


def is_cached(feature: SelectedFeature, folder: Path) -> bool:
    """Return whether `folder` has the file of `feature`."""
    return _path(feature, folder).exists()


def free_bytes(folder: Path) -> int:
    """Return the free bytes on the disk that `folder`, which may be missing, is on."""
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    return shutil.disk_usage(existing).free


def open_cached(feature: SelectedFeature, folder: Path, workers: int, on_videos: OnVideos) -> np.memmap:
    """Return the values of `feature`, [kept video, step, ...], mapped from its file in `folder`; build it if needed.

    A process waits for another one that is building a file of the folder. Raises `UserError` if the disk is full, the
    folder cannot be written, or what was built is removed.
    """
    path = _path(feature, folder)
    if (values := _open(path, feature)) is not None:
        return values
    try:
        make_folder(folder)
        with _lock(folder):
            if (values := _open(path, feature)) is None:
                _build(feature, path, workers, on_videos)
                values = _open(path, feature)
    except FileNotFoundError:
        values = None
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        raise UserError(f"{describe_error(error)}: pass another folder for the training cache (--cache-dir)") from None
    if values is None:
        raise UserError(f"{path} was removed while it was built: leave its folder in place, and start again")
    return values


def list_cached(store: "FeatureStore", folder: Path) -> list[CachedFeature]:
    """Return the files of `folder`, in the order of their names."""
    return list(_find(store, folder)) if folder.is_dir() else []


def remove_cached(files: Sequence[CachedFeature], folder: Path) -> int:
    """Remove `files` of `folder` and return the bytes that this frees.

    A process that has mapped a removed file keeps its values until it ends. Raises `UserError` if a builder is at work
    in the folder.
    """
    if not files:
        return 0
    try:
        with _lock(folder).acquire(timeout=0):
            for file in files:
                file.path.unlink(missing_ok=True)
    except filelock.Timeout:
        raise UserError(f"{folder} is in use: a process is building a file of it, wait for it") from None
    return sum(file.nbytes for file in files)


def _lock(folder: Path) -> filelock.FileLock:
    # The lock's file stays: one that is removed and created again could have two owners.
    return filelock.FileLock(folder / ".lock")


def _path(feature: SelectedFeature, folder: Path) -> Path:
    maps = f"-{feature.map_size}x{feature.map_size}" if feature.map_size is not None else ""
    return folder / f"{feature.name}-{len(feature.steps)}s{maps}-{feature.key[:KEY_LENGTH]}.npy"


def _header(feature: SelectedFeature) -> bytes:
    header = io.BytesIO()
    facts = {"descr": feature.dtype.str, "fortran_order": False, "shape": feature.shape}
    np.lib.format.write_array_header_1_0(header, facts)
    return header.getvalue()


def _open(path: Path, feature: SelectedFeature) -> np.memmap | None:
    """Return the mapped values; None if the file is missing, or has not the header and size of `feature`."""
    expected = _header(feature)
    try:
        with path.open("rb") as file:
            is_whole = file.read(len(expected)) == expected
            is_whole &= os.fstat(file.fileno()).st_size == len(expected) + feature.nbytes
    except FileNotFoundError:
        return None
    if not is_whole:
        return None
    with suppress(OSError):
        os.utime(path)  # the time of its last use
    return np.memmap(path, feature.dtype, "r", len(expected), feature.shape)


def _build(feature: SelectedFeature, path: Path, workers: int, on_videos: OnVideos) -> None:
    staging = path.with_name(f"{path.name}.partial")
    staging.unlink(missing_ok=True)  # of a killed builder; its bytes are free
    free = free_bytes(path.parent)
    if feature.nbytes > free:
        raise UserError(
            f"{path.parent} has {free / 1e9:.1f} GB free, the training cache of {feature.name} needs "
            f"{feature.nbytes / 1e9:.1f} GB: free some, pass another --cache-dir, or --cache none"
        )
    try:
        # Not through a mapping: on a full disk the kernel kills who writes to one.
        with reporting_full_disks(path), staging.open("wb") as file:
            file.write(_header(feature))
            done = 0
            for values in feature.read_all(workers):
                file.write(np.ascontiguousarray(values).data)
                done += len(values)
                on_videos(done)
            file.flush()
            os.fsync(file.fileno())
        staging.replace(path)
    finally:
        staging.unlink(missing_ok=True)


def _find(store: "FeatureStore", folder: Path) -> Iterator[CachedFeature]:
    keys: dict[tuple[str, int, int | None], str] = {}
    for path in sorted(folder.iterdir()):
        parts = _NAME.fullmatch(path.name)
        if parts is None:
            continue
        selection = parts["feature"], int(parts["steps"]), int(parts["map"]) if parts["map"] else None
        if selection not in keys and parts["feature"] in store.feature_names:
            name, time_steps, map_size = selection
            keys[selection] = SelectedFeature(store, name, strided_steps(store.seconds, time_steps), map_size).key
        try:
            facts = path.stat()
        except FileNotFoundError:  # its builder has just given it its name
            continue
        is_current = keys.get(selection, "")[:KEY_LENGTH] == parts["key"]
        state = "incomplete" if parts["partial"] else "current" if is_current else "outdated"
        yield CachedFeature(path, *selection, facts.st_size, facts.st_mtime, state)
