"""Reading a feature store: its videos, features and states, and lazy arrays of values.

Index arrays (ids, states, steps) are read completely: a store of 9,288 videos opens in well under a second.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from pipeline.errors import UserError, one_line
from pipeline.store.location import locate
from pipeline.store.schema import FORMAT_ATTRIBUTE, STORE_FORMAT, FeatureSpec, State
from pipeline.store.seal import SEAL, digest_rows

CORRUPT = (KeyError, ValueError, TypeError, OSError)
# What zarr and its codecs raise for truncated or altered chunks.
CORRUPT_VALUES = (RuntimeError, ValueError)


def open_store(path: str | Path) -> "FeatureStore":
    """Open the feature store at `path`, a folder or a URL, for reading.

    Raises `UserError` if the store is missing, has another format, or has corrupt metadata.
    """
    return FeatureStore(open_group(path, mode="r"), str(path))


def open_group(path: str | Path, mode: Any) -> zarr.Group:
    """Open the root group of the store at `path`, a folder or a URL, and check its format.

    `mode`: zarr's, "r" (with consolidated metadata) or "r+" (without: a writer needs the current metadata).
    Raises `UserError` if the store is missing, has another format, or has corrupt metadata.
    """
    try:
        store = locate(path).zarr_store()
        root = zarr.open_group(store, mode=mode, zarr_format=3, use_consolidated=None if mode == "r" else False)
    except FileNotFoundError:
        raise UserError(
            f"no feature store at {path}: create one with 'mavqa-extract --store {path}', or pass another --store"
        ) from None
    except CORRUPT as error:
        raise UserError(
            f"store {path} cannot be read ({one_line(error)}): it is corrupt or not a feature store"
        ) from None
    found = root.attrs.get(FORMAT_ATTRIBUTE)
    if found != STORE_FORMAT:
        raise UserError(
            f"store {path} has format {found!r}, this version of mavqa uses {STORE_FORMAT}: extract it again into "
            "another --store, or use the version that wrote it"
        )
    seconds = root.attrs.get("seconds")
    if type(seconds) is not int or seconds < 1:
        raise UserError(
            f"store {path}: its attribute 'seconds' is {seconds!r}, not a number of seconds: the store is corrupt, "
            "extract it again"
        )
    return root


@contextmanager
def reporting_damage(store: str | Path, path: str) -> Iterator[None]:
    """Raise a `UserError` that names `path` in `store` if reading stored values inside the block fails."""
    try:
        yield
    except UserError:
        raise
    except CORRUPT_VALUES as error:
        raise UserError(
            f"store {store}: {path} cannot be read ({one_line(error)}): the store is corrupt, extract it again"
        ) from None


def read_steps(array: Any, videos: slice, steps: np.ndarray) -> np.ndarray:
    """Return [video, step, ...]: the rows `videos` of an array [video, time, ...] at `steps` (in any order).

    Evenly spaced steps are read as a slice: zarr's selection by a list (`oindex`) takes about eight times as long.
    """
    first, spacing = int(steps[0]), int(steps[1] - steps[0]) if len(steps) > 1 else 1
    if spacing > 0 and np.array_equal(steps, np.arange(len(steps)) * spacing + first):
        return np.asarray(array[videos, first : int(steps[-1]) + 1 : spacing])
    return np.stack([np.asarray(array[videos, int(step)]) for step in steps], axis=1)


class FeatureStore:
    """A feature store, opened for reading. Rows are videos (or unique question texts) in the store's own order.

    - `path`: the folder or URL.
    - `seconds`: the number of time steps per video.
    - `video_ids`: the id of each row; `rows` {video id: row}.
    """

    def __init__(self, root: zarr.Group, path: str) -> None:
        self._root = root
        self.path = path
        self.seconds = int(root.attrs["seconds"])
        stored_ids = self._read("videos/video_id")
        self.video_ids = [str(video_id) for video_id in stored_ids if video_id]
        self._check_rows_without_id([row for row, video_id in enumerate(stored_ids) if not video_id])
        self.rows = {video_id: row for row, video_id in enumerate(self.video_ids)}

    def __repr__(self) -> str:
        features = ", ".join(self.feature_names + self.question_feature_names)
        return f"<FeatureStore {self.path}: {len(self.video_ids)} videos of {self.seconds} s; {features}>"

    @property
    def feature_names(self) -> list[str]:
        """The names of the stored video features, sorted."""
        return self._names_in("features")

    @property
    def question_feature_names(self) -> list[str]:
        """The names of the stored question features, sorted."""
        return self._names_in("questions")

    def presence(self, modality: str) -> np.ndarray:
        """Return the `State` codes of `modality` ("audio" or "visual"), uint8 [video]."""
        return self._index(f"videos/{modality}")

    def steps(self, modality: str) -> np.ndarray:
        """Return the end of `modality` on the time axis, int32 [video]: its last step + 1, 0 unless it is complete."""
        return self._index(f"videos/steps_{modality}")

    def first_steps(self, modality: str) -> np.ndarray:
        """Return the first step of `modality` on the time axis, int32 [video]: 0 unless it starts late."""
        return self._index(f"videos/first_{modality}")

    def filled_steps(self, feature: str) -> tuple[np.ndarray, np.ndarray]:
        """Return (first, stop), each int32 [video]: the steps in which a complete row of `feature` has values.

        They are the steps of the modality, or, where padding fills the others too, all steps of the store.
        """
        modality = self.spec(feature).modality
        paddings = [spec.constants.get("sampling", {}).get("short", "pad") for spec in self.specs(feature)]
        fills_all = [padding == "cycle" or (padding == "released" and modality == "visual") for padding in paddings]
        is_whole = np.array(fills_all)[self.made_by(feature)]
        return np.where(is_whole, 0, self.first_steps(modality)), np.where(is_whole, self.seconds, self.steps(modality))

    def reasons(self, modality: str) -> list[str]:
        """Return one text per video: why `modality` is not complete, or which errors a complete one has; "" if none."""
        return [str(reason) for reason in self._index(f"videos/{modality}_reason")]

    def source_sha256(self) -> list[str]:
        """Return the SHA-256 of each video's source file, "" if it was never read."""
        return [str(value) for value in self._index("videos/source_sha256")]

    def array_sha256(self, feature: str) -> list[str]:
        """Return the SHA-256 of the array file that each row of an imported `feature` is from, "" where there is none.

        Raises `UserError` if the feature was not imported.
        """
        if not self.spec(feature).is_imported:
            raise UserError(f"store {self.path}: {feature} was extracted from videos: its rows are from no array")
        return [str(value) for value in self._index(f"features/{feature}/source_sha256")]

    def state(self, feature: str) -> np.ndarray:
        """Return the `State` codes of `feature`, uint8 [video]."""
        return self._index(f"features/{feature}/state")

    def feature_reasons(self, feature: str) -> list[str]:
        """Return the reason why `feature` is not complete, one text per video, "" if it is."""
        return [str(reason) for reason in self._index(f"features/{feature}/reason")]

    def values(self, feature: str) -> zarr.Array:
        """Return the lazy array [video, time, ...] of `feature`."""
        return self._array(f"features/{feature}/values")

    def read(self, feature: str, video_id: str) -> np.ndarray:
        """Return [time, ...], `feature` of one video: a row per step of the time axis, up to the modality's last one.

        Rows before the first step of a modality that starts late are the fill value: NaN, or -1 for integers.

        Raises `UserError` if the store does not have the video or the feature, or if it is not complete, with the
        reason.
        """
        if video_id not in self.rows:
            raise UserError(f"store {self.path} has no video {video_id!r}: it holds {len(self.video_ids)} others")
        row, _ = self.rows[video_id], self.spec(feature)
        state = State(self.state(feature)[row])
        if state is not State.COMPLETE:
            reason = self.feature_reasons(feature)[row]
            because = f" ({reason})" if reason else ""
            raise UserError(f"store {self.path}: {feature} of video {video_id!r} is {state.name.lower()}{because}")
        modality = self.spec(feature).modality
        first, stop = int(self.first_steps(modality)[row]), int(self.steps(modality)[row])
        path = f"features/{feature}/values"
        with reporting_damage(self.path, path):
            values = np.asarray(self._array(path)[row, :stop])
        if np.isnan(values[first:]).any():
            raise UserError(
                f"store {self.path}: {path} has missing values for {video_id!r}, which is complete: the store is "
                f"corrupt, list all faults with 'mavqa-inspect {self.path} --verify'"
            )
        return values

    def digests(self, feature: str) -> list[str]:
        """Return the digest of each complete row of `feature`, one text per video, "" for the other rows."""
        return [str(digest) for digest in self._index(f"features/{feature}/digest")]

    def digest_of(self, feature: str, video_ids: Iterable[str]) -> str:
        """Return one SHA-256 over the complete rows of `feature` of these videos; their order does not matter."""
        digests = self.digests(feature)
        return digest_rows(digests[self.rows[video_id]] for video_id in set(video_ids))

    def made_by(self, feature: str) -> np.ndarray:
        """Return the index of the spec under which each row of `feature` was computed, uint8 [video]; see `specs`."""
        made_by = self._index(f"features/{feature}/made_by")
        if made_by.max(initial=0) >= len(self.specs(feature)):
            raise UserError(f"store {self.path}: features/{feature}/made_by names no spec: the store is corrupt")
        return made_by

    def specs(self, feature: str) -> list[FeatureSpec]:
        """Return the specs under which rows of `feature` were computed: the first, then the accepted ones."""
        return self._specs(f"features/{feature}")

    def spec(self, feature: str) -> FeatureSpec:
        """Return the spec under which `feature` was first extracted."""
        return self._spec(f"features/{feature}")

    def fingerprint(self, feature: str) -> str:
        """Return the fingerprint of the feature's first spec."""
        return str(self._attribute(f"features/{feature}", "fingerprint"))

    @cached_property
    def question_rows(self) -> dict[str, int]:
        """The row of each unique question text."""
        return {str(text): row for row, text in enumerate(self._read("questions/text")) if text}

    def question_values(self, name: str) -> zarr.Array:
        """Return the lazy array [question, ...] of the question feature `name`."""
        return self._array(f"questions/{name}/values")

    def question_digests(self, name: str) -> dict[str, str]:
        """Return {question text: digest of its row} of the question feature `name`, for the texts that have it."""
        digests = self._read(f"questions/{name}/digest")
        return {text: str(digests[row]) for text, row in self.question_rows.items() if digests[row]}

    def question_digest_of(self, name: str, texts: Iterable[str]) -> str:
        """Return one SHA-256 over the complete rows of `name` of these question texts; their order does not matter."""
        digests = self.question_digests(name)
        return digest_rows(digests[text] for text in set(texts) & digests.keys())

    def coordinates(self) -> Iterator[tuple[str, list[Any]]]:
        """Yield the path and the values of each coordinate: `video` and `time` of a feature, `question` of another."""
        for name in self.feature_names:
            for axis in ("video", "time"):
                yield f"features/{name}/{axis}", self._read(f"features/{name}/{axis}").tolist()
        for name in self.question_feature_names:
            yield f"questions/{name}/question", self._read(f"questions/{name}/question").tolist()

    @property
    def is_sealed(self) -> bool:
        """Whether the last run came to its end, so that metadata and index arrays can be compared with its seal."""
        return SEAL in self._root.attrs

    @cached_property
    def digest(self) -> str:
        """One SHA-256 over all complete rows: the same for the same features of the same videos and questions.

        It depends neither on the order of the rows, nor on how often a run was stopped.
        """
        rows = [digest for name in self.feature_names for digest in self.digests(name) if digest]
        texts = [digest for name in self.question_feature_names for digest in self.question_digests(name).values()]
        return digest_rows(rows + texts)

    def question_spec(self, name: str) -> FeatureSpec:
        """Return the spec under which the question feature `name` was first extracted."""
        return self._spec(f"questions/{name}")

    def question_specs(self, name: str) -> dict[str, FeatureSpec]:
        """Return {question text: the spec under which its row of the feature `name` was computed}."""
        specs = self._specs(f"questions/{name}")
        made_by = self._read(f"questions/{name}/made_by")
        return {text: specs[made_by[self.question_rows[text]]] for text in self.question_digests(name)}

    def _names_in(self, group: str) -> list[str]:
        """Return the names of the features of `group`, sorted, without those whose creation was killed."""
        return sorted(name for name, feature in self._group(group).groups() if "spec" in feature.attrs)

    def _check_rows_without_id(self, rows: list[int]) -> None:
        """Raise `UserError` if one of `rows`, which have no id, has a feature; rows of a killed append have none."""
        for name in self.feature_names if rows else ():
            states = self._read(f"features/{name}/state")
            lost = sum(states[row] != State.PENDING for row in rows if row < len(states))
            if lost:
                raise UserError(
                    f"store {self.path}: videos/video_id has no id for {lost} rows that have the feature {name}: the "
                    "store is corrupt, extract it again"
                )

    def _index(self, path: str) -> np.ndarray:
        values = self._read(path)[: len(self.video_ids)]
        if len(values) != len(self.video_ids):
            raise UserError(
                f"store {self.path}: {path} has {len(values)} rows for {len(self.video_ids)} videos: "
                "the store is corrupt"
            )
        return values

    def _read(self, path: str) -> np.ndarray:
        with reporting_damage(self.path, path):
            return np.asarray(self._array(path)[:])

    def _array(self, path: str) -> zarr.Array:
        found = self._get(path)
        if not isinstance(found, zarr.Array):
            raise UserError(f"store {self.path}: {path} is not an array: the store is corrupt")
        return found

    def _group(self, path: str) -> zarr.Group:
        found = self._get(path)
        if not isinstance(found, zarr.Group):
            raise UserError(f"store {self.path}: {path} is not a group: the store is corrupt")
        return found

    def _get(self, path: str) -> zarr.Array | zarr.Group:
        try:
            return self._root[path]
        except KeyError:
            raise UserError(f"store {self.path} has no {path}: {self._available(path)}") from None
        except CORRUPT as error:
            raise UserError(
                f"store {self.path}: {path} cannot be read ({one_line(error)}): the store is corrupt"
            ) from None

    def _available(self, path: str) -> str:
        kind, name = [*path.split("/"), ""][:2]
        names = {"features": self.feature_names, "questions": self.question_feature_names} if name else {}
        if kind not in names or name in (*names[kind], "text"):
            return "the store is corrupt"
        return f"it holds {', '.join(names[kind]) or 'none'}; extract it with mavqa-extract"

    def _spec(self, path: str) -> FeatureSpec:
        """Return the spec of the feature at `path`; a spec that was altered has another fingerprint."""
        record, fingerprint = self._attribute(path, "spec"), self._attribute(path, "fingerprint")
        try:
            spec = FeatureSpec.from_json(record)
        except ValueError as error:
            raise UserError(
                f"store {self.path}: the spec of {path} cannot be read ({error}): the store is corrupt, extract it "
                "again"
            ) from None
        if spec.fingerprint != fingerprint:
            raise UserError(
                f"store {self.path}: the spec of {path} does not match its fingerprint: the store is corrupt, extract "
                "it again"
            )
        return spec

    def _specs(self, path: str) -> list[FeatureSpec]:
        accepted = self._attribute(path, "accepted")
        return [self._spec(path), *(FeatureSpec.from_json(entry["spec"]) for entry in accepted)]

    def _attribute(self, path: str, name: str) -> Any:
        attributes = self._group(path).attrs
        if name not in attributes:
            raise UserError(f"store {self.path}: {path} has no attribute {name!r}: the store is corrupt")
        return attributes[name]
