"""Reading a feature store: what is there, in which state, and lazy arrays of it. It never writes.

Index arrays (ids, states, steps) are read whole at opening: a store of 9,288 videos opens in well under a second.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from pipeline.errors import UserError, one_line
from pipeline.store.location import locate
from pipeline.store.schema import STORE_FORMAT, FeatureSpec, State

_DAMAGED = (KeyError, ValueError, TypeError, OSError)
# What zarr and its codecs raise over chunks that are cut short or altered.
_DAMAGED_VALUES = (RuntimeError, ValueError)


def open_store(path: str | Path) -> "FeatureStore":
    """Open the feature store at `path`, a folder or a URL, for reading.

    Raises `UserError` where there is no store, one of another format, or one whose metadata are damaged.
    """
    return FeatureStore(open_group(path, mode="r"), str(path))


def open_group(path: str | Path, mode: Any) -> zarr.Group:
    """Open the root group of the store at `path`, checked for its format; readers trust consolidated metadata."""
    try:
        store = locate(path).zarr_store()
        root = zarr.open_group(store, mode=mode, zarr_format=3, use_consolidated=None if mode == "r" else False)
    except FileNotFoundError:
        raise UserError(
            f"no feature store at {path}: make one with 'mavqa-extract --store {path}', or name another with --store"
        ) from None
    except _DAMAGED as error:
        raise UserError(
            f"store {path} cannot be read ({one_line(error)}): it is damaged or not a feature store"
        ) from None
    found = root.attrs.get("mavqa_format")
    if found != STORE_FORMAT:
        raise UserError(f"store {path} has format {found!r}, this program reads {STORE_FORMAT}: extract it anew")
    return root


@contextmanager
def reporting_damage(store: str | Path, path: str) -> Iterator[None]:
    """Raise a `UserError` that names `path` in `store` where reading stored values inside the block fails."""
    try:
        yield
    except UserError:
        raise
    except _DAMAGED_VALUES as error:
        raise UserError(
            f"store {store}: {path} cannot be read ({one_line(error)}): the store is damaged, extract it anew"
        ) from None


def read_steps(array: Any, videos: slice, steps: np.ndarray) -> np.ndarray:
    """Return [video, step, ...] of the rows `videos` of an array [video, time, ...], at `steps` (in any order).

    zarr takes about eight times as long to pick steps from a list (`oindex`) as to read the same evenly spaced ones.
    """
    first, spacing = int(steps[0]), int(steps[1] - steps[0]) if len(steps) > 1 else 1
    if spacing > 0 and np.array_equal(steps, np.arange(len(steps)) * spacing + first):
        return np.asarray(array[videos, first : int(steps[-1]) + 1 : spacing])
    return np.stack([np.asarray(array[videos, int(step)]) for step in steps], axis=1)


class FeatureStore:
    """A feature store, opened for reading. Rows are videos (or unique question texts) in the store's own order."""

    def __init__(self, root: zarr.Group, path: str) -> None:
        self._root = root
        self.path = path
        if "seconds" not in root.attrs:
            raise UserError(f"store {path} has no attribute 'seconds': the store is damaged, extract it anew")
        self.seconds = int(root.attrs["seconds"])
        stored_ids = self._read("videos/video_id")
        self.video_ids = [str(video_id) for video_id in stored_ids if video_id]
        self._check_nameless([row for row, video_id in enumerate(stored_ids) if not video_id])
        self.rows = {video_id: row for row, video_id in enumerate(self.video_ids)}

    @property
    def feature_names(self) -> list[str]:
        """The names of the stored video features, sorted."""
        return self._described("features")

    @property
    def question_feature_names(self) -> list[str]:
        """The names of the stored question features, sorted."""
        return self._described("questions")

    def presence(self, modality: str) -> np.ndarray:
        """Return the `State` codes of `modality` ("audio" or "visual"), uint8 [video]."""
        return self._index(f"videos/{modality}")

    def steps(self, modality: str) -> np.ndarray:
        """Return how many steps of `modality` each video has on the time axis, int32 [video]."""
        return self._index(f"videos/steps_{modality}")

    def reasons(self, modality: str) -> list[str]:
        """Return why `modality` is not complete, one text a video, empty where it is."""
        return [str(reason) for reason in self._index(f"videos/{modality}_reason")]

    def source_sha256(self) -> list[str]:
        """Return the SHA-256 of each video's source file, "" where it was never read."""
        return [str(value) for value in self._index("videos/source_sha256")]

    def state(self, feature: str) -> np.ndarray:
        """Return the `State` codes of `feature`, uint8 [video]."""
        return self._index(f"features/{feature}/state")

    def feature_reasons(self, feature: str) -> list[str]:
        """Return why `feature` is not complete, one text a video, empty where it is."""
        return [str(reason) for reason in self._index(f"features/{feature}/reason")]

    def values(self, feature: str) -> zarr.Array:
        """Return the lazy array [video, time, ...] of `feature`."""
        return self._array(f"features/{feature}/values")

    def spec(self, feature: str) -> FeatureSpec:
        """Return the description of `feature` as it was extracted."""
        return FeatureSpec.from_json(self._attribute(f"features/{feature}", "spec"))

    def fingerprint(self, feature: str) -> str:
        """Return the fingerprint under which `feature` was stored."""
        return str(self._attribute(f"features/{feature}", "fingerprint"))

    @cached_property
    def question_rows(self) -> dict[str, int]:
        """The row of each unique question text."""
        return {str(text): row for row, text in enumerate(self._read("questions/text")) if text}

    def question_values(self, name: str) -> zarr.Array:
        """Return the lazy array [question, ...] of the question feature `name`."""
        return self._array(f"questions/{name}/values")

    def question_spec(self, name: str) -> FeatureSpec:
        """Return the description of the question feature `name`."""
        return FeatureSpec.from_json(self._attribute(f"questions/{name}", "spec"))

    def _described(self, group: str) -> list[str]:
        """Return the names of the features of `group`, sorted; one whose making was killed is none yet."""
        return sorted(name for name, feature in self._group(group).groups() if "spec" in feature.attrs)

    def _check_nameless(self, rows: list[int]) -> None:
        """Raise `UserError` where one of `rows`, which have no id, has a feature; a killed append leaves none."""
        for name in self.feature_names if rows else ():
            states = self._read(f"features/{name}/state")
            lost = sum(states[row] != State.PENDING for row in rows if row < len(states))
            if lost:
                raise UserError(
                    f"store {self.path}: videos/video_id has no id for {lost} rows that have the feature {name}: the "
                    "store is damaged, extract it anew"
                )

    def _index(self, path: str) -> np.ndarray:
        values = self._read(path)[: len(self.video_ids)]
        if len(values) != len(self.video_ids):
            raise UserError(
                f"store {self.path}: {path} has {len(values)} rows for {len(self.video_ids)} videos: damaged"
            )
        return values

    def _read(self, path: str) -> np.ndarray:
        with reporting_damage(self.path, path):
            return np.asarray(self._array(path)[:])

    def _array(self, path: str) -> zarr.Array:
        found = self._get(path)
        if not isinstance(found, zarr.Array):
            raise UserError(f"store {self.path}: {path} is not an array: the store is damaged")
        return found

    def _group(self, path: str) -> zarr.Group:
        found = self._get(path)
        if not isinstance(found, zarr.Group):
            raise UserError(f"store {self.path}: {path} is not a group: the store is damaged")
        return found

    def _get(self, path: str) -> zarr.Array | zarr.Group:
        try:
            return self._root[path]
        except KeyError:
            raise UserError(f"store {self.path} has no {path}: {self._what_is_there(path)}") from None
        except _DAMAGED as error:
            raise UserError(
                f"store {self.path}: {path} cannot be read ({one_line(error)}): the store is damaged"
            ) from None

    def _what_is_there(self, path: str) -> str:
        kind, name = [*path.split("/"), ""][:2]
        names = {"features": self.feature_names, "questions": self.question_feature_names} if name else {}
        if kind not in names or name in (*names[kind], "text"):
            return "the store is damaged"
        return f"it holds {', '.join(names[kind]) or 'none'}; extract it with mavqa-extract"

    def _attribute(self, path: str, name: str) -> Any:
        attributes = self._group(path).attrs
        if name not in attributes:
            raise UserError(f"store {self.path}: {path} has no attribute {name!r}: the store is damaged")
        return attributes[name]
