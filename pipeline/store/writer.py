"""Writing a feature store so that it can be killed at any moment and resumed to the same bytes.

The coordinator holds a `StoreWriter`, and with it the store's lock, and writes everything except feature values.
Workers write only values, whole partitions of `VIDEOS_PER_PARTITION` aligned rows, through `write_rows`.
Order: values, then the videos' states, then the feature's state, so that a row marked complete has its values.
Every chunk has a checksum, every complete row a digest; the seal over the rest is written at the end of a run.
"""

import json
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

from pipeline.errors import UserError
from pipeline.store.location import StoreLocation, has_format, locate
from pipeline.store.reader import CORRUPT_VALUES, open_group, reporting_damage
from pipeline.store.schema import (
    FORMAT_ATTRIBUTE,
    MODALITIES,
    ROWS_PER_INDEX_CHUNK,
    STORE_FORMAT,
    VIDEOS_PER_PARTITION,
    FeatureSpec,
    State,
)
from pipeline.store.seal import METADATA, NOT_AS_SEALED, SEAL, compute_seal, digest_row

SHARD_ROW_BYTES = 1_000_000
QUESTION_CHUNK_BYTES = 4_000_000

# The groups of video features and of question features.
FEATURES = "features"
QUESTIONS = "questions"

# The index arrays of the videos; video_id is written last, so that a row with an id is complete.
_VIDEO_ARRAYS: tuple[tuple[str, Any, Any], ...] = (
    ("source_sha256", str, ""),
    ("steps_visual", "int32", 0),
    ("steps_audio", "int32", 0),
    ("first_visual", "int32", 0),
    ("first_audio", "int32", 0),
    ("visual", "uint8", 0),
    ("audio", "uint8", 0),
    ("visual_reason", str, ""),
    ("audio_reason", str, ""),
    ("video_id", str, ""),
)

# The arrays of a feature beside its values and coordinates: of every one, and of a video feature only.
_QUESTION_ARRAYS: tuple[tuple[str, Any, Any], ...] = (("digest", str, ""), ("made_by", "uint8", 0))
_FEATURE_ARRAYS = (*_QUESTION_ARRAYS, ("state", "uint8", 0), ("reason", str, ""))
# The SHA-256 of the file that a row was imported from: an array of imported features only.
_SOURCE = "source_sha256"
# What a killed creation of a feature leaves: these have chunks only if the feature was created.
_RECORDED = frozenset({"values", _SOURCE, *(name for name, _, _ in _FEATURE_ARRAYS)})
# Coordinates, by which xarray selects: one for the first axis of values, and the seconds.
_COORDINATES = frozenset({"video", "time", "question"})
_FEATURE_MEMBERS = _RECORDED | _COORDINATES | {"zarr.json"}

# A new state replaces only a state of lower rank: a decoded video stays complete even if its file is deleted later.
_RANK = {State.PENDING: 0, State.FAILED: 1, State.ABSENT: 2, State.COMPLETE: 3}


@dataclass(frozen=True)
class VideoRecord:
    """The result of decoding one video by modality, and the SHA-256 of its file.

    A modality has the steps `firsts` (0 unless it starts late) to `steps` - 1 of the time axis.
    """

    row: int
    source_sha256: str
    states: dict[str, State]
    steps: dict[str, int]
    reasons: dict[str, str]
    firsts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(MODALITIES, 0))


@dataclass(frozen=True)
class FeatureRecord:
    """The state of one feature of one video.

    `spec_index`: the index of its spec, 0 the feature's first. `digest`: that of a complete row's values.
    `source_sha256`: the SHA-256 of the file that a row of an imported feature is from.
    """

    row: int
    feature: str
    state: State
    reason: str = ""
    spec_index: int = 0
    digest: str = ""
    source_sha256: str = ""


class StoreWriter:
    """The single writer of a store: creates it, appends videos and questions, records states, consolidates metadata.

    Use it as a context manager: it holds the store's lock. If there is no store, it reads as an empty one until
    `create`, which every other writing method needs. `path`: a folder or a URL. `created_by`: name and version of the
    program. `break_lock`: take over the lock of a killed writer. `is_read_only`, in the context: the store cannot be
    written, so that only its reading methods may be called.
    Entering the context raises `UserError` if another writer holds the lock, if the store is corrupt or has another
    format, or if `path` contains other files.
    """

    def __init__(self, path: str | Path, created_by: str, break_lock: bool = False) -> None:
        self.path = str(path)
        self._location = locate(path)
        self._created_by = created_by
        self._hold = self._location.hold(break_lock)
        self.is_read_only = False
        self._is_new = False

    def __enter__(self) -> "StoreWriter":
        self.is_read_only = not self._hold.__enter__()
        try:
            self._root = self._open()
        except BaseException:
            self._hold.__exit__(*sys.exc_info())
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hold.__exit__(kind, error, trace)

    def _open(self) -> zarr.Group:
        try:
            is_created = has_format(self._location)
        except ValueError:
            is_created = False
        self._is_new = not is_created
        if self._is_new:
            self._check_is_free()
            return _create_empty(zarr.storage.MemoryStore())
        root = open_group(self.path, mode="r" if self.is_read_only else "r+")
        for group in () if self.is_read_only else (FEATURES, QUESTIONS):
            _remove_incomplete_features(self._location, root, group)
        return root

    @property
    def seconds(self) -> int | None:
        """The time steps per video; None if there is no store."""
        return None if self._is_new else int(self._root.attrs["seconds"])

    def create(self, seconds: int) -> None:
        """Create the store, with `seconds` time steps per video, if there is none.

        They replace those of a store that has no video features yet. Raises ValueError if they differ from those of a
        store that has.
        """
        if self._is_new:
            attributes = {FORMAT_ATTRIBUTE: STORE_FORMAT, "seconds": seconds, "created_by": self._created_by}
            # The format is written last: it makes this a feature store.
            _create_empty(self._location.zarr_store()).update_attributes(attributes)
            self._root, self._is_new = open_group(self.path, mode="r+"), False
        elif self.seconds != seconds:
            if self.feature_names():
                raise ValueError(f"store {self.path} has {self.seconds} seconds per video, not {seconds}")
            self.unseal()
            self._root.update_attributes({"seconds": seconds})

    def _check_is_free(self) -> None:
        """Raise `UserError` if the place of a new store has anything that a killed creation does not leave."""
        names = self._location.names
        filled = "c" in names("videos/video_id") or names("features") - {"zarr.json"}
        foreign = names() - {"zarr.json", "videos", "features", "questions"}
        if filled or foreign:
            what = (
                "a feature store without its root metadata: it is corrupt"
                if filled
                else "a folder but not a feature store"
            )
            raise UserError(f"{self.path} is {what}: pass another --store")

    def video_ids(self) -> list[str]:
        """Return the ids of the appended videos, without the empty ids that a killed append leaves at the end."""
        return [str(video_id) for video_id in self.read_index("videos/video_id") if video_id]

    def read_index(self, path: str) -> np.ndarray:
        """Return all values of an index array, in its current state (never from consolidated metadata)."""
        with reporting_damage(self.path, path):
            return np.asarray(self._root[path][:])

    def feature_names(self) -> list[str]:
        """Return the names of the stored video features, sorted."""
        return sorted(self._root["features"].group_keys())

    def append_videos(self, video_ids: Sequence[str]) -> None:
        """Append a pending row for each of `video_ids`; ids are written last, so that a killed append is repeated."""
        if not video_ids:
            return
        self.unseal()
        known = len(self.video_ids())
        total = known + len(video_ids)
        new = np.array(video_ids, dtype=object)
        for name in self.feature_names():
            for array in (*self._index_arrays(name, FEATURES), "values", "video"):
                _resize(self._root[f"features/{name}/{array}"], total)
            self._root[f"features/{name}/video"][known:total] = new
        for name, _, _ in _VIDEO_ARRAYS:
            _resize(self._root[f"videos/{name}"], total)
        self._root["videos/video_id"][known:total] = new
        self.consolidate()

    def add_spec(self, spec: FeatureSpec, index: int = 0) -> None:
        """Record `spec` as that with this index of its feature, if it has none; the first creates the feature."""
        group = QUESTIONS if spec.modality == "question" else FEATURES
        known = len(self.feature_specs(spec.name, group))
        if index < known:
            return
        if not known:
            self._create_feature(spec, group)
            return
        self.unseal()
        feature = self._root[f"{group}/{spec.name}"]
        added = {"spec": spec.to_json(), "fingerprint": spec.fingerprint}
        feature.update_attributes({"accepted": [*feature.attrs["accepted"], added]})
        self.consolidate()

    def _create_feature(self, spec: FeatureSpec, group: str) -> None:
        """Create the arrays of a feature. The attributes are written last: they mark it as created."""
        self.unseal()
        is_question = group == QUESTIONS
        path = f"{group}/{spec.name}"
        names = self.read_index("questions/text" if is_question else "videos/video_id")
        rows, dimension = len(names), "question" if is_question else "video"
        store = self._root.store
        zarr.create_group(store, path=path, zarr_format=3, overwrite=True)
        seconds = int(self._root.attrs["seconds"])
        _create_values(store, f"{path}/values", spec, (rows, *(() if is_question else (seconds,)), *spec.shape))
        for name, dtype, fill in _arrays_of(spec):
            _create_index(store, f"{path}/{name}", dtype, fill, dimension, rows)
        _create_index(store, f"{path}/{dimension}", str, "", dimension, rows)[:] = names
        if not is_question:
            _create_index(store, f"{path}/time", "int32", -1, "time", seconds)[:] = np.arange(seconds)
        attributes = {"spec": spec.to_json(), "fingerprint": spec.fingerprint, "accepted": []}
        zarr.open_group(store, path=path, mode="r+", use_consolidated=False).update_attributes(attributes)
        self.consolidate()

    def _index_arrays(self, name: str, group: str) -> list[str]:
        """Return the names of the arrays of a stored feature beside its values and coordinates."""
        return [array for array, _, _ in _arrays_of(self.feature_specs(name, group)[0])]

    def feature_specs(self, name: str, group: str = FEATURES) -> list[FeatureSpec]:
        """Return the specs under which rows of `name` were computed: the first, then the accepted ones."""
        feature = self._root.get(f"{group}/{name}")
        if not isinstance(feature, zarr.Group) or "spec" not in feature.attrs:
            return []
        try:
            records = [feature.attrs["spec"], *(entry["spec"] for entry in feature.attrs["accepted"])]
            return [FeatureSpec.from_json(record) for record in records]
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"store {self._location.address}: the spec of {group}/{name} cannot be read ({error}): the store is "
                "corrupt, extract it again"
            ) from None

    def record_videos(self, records: Sequence[VideoRecord]) -> None:
        """Record the results of decoding: call it after the values are written, before `record_features`.

        The stored state, steps and reason of a modality are kept if the new state has a lower rank: a modality that was
        not decoded this time is pending, for example. If both states are the same, but not failed, a stored reason is
        kept: it may report an error in a frame that only the earlier run decoded. If the file was replaced, they are
        reset first.
        """
        self.unseal()
        rows = [record.row for record in records]
        sources = zip(records, _gather(self._root["videos/source_sha256"], rows), strict=True)
        self._forget([r.row for r, source in sources if source and r.source_sha256 not in ("", source)])
        _scatter_some(self._root["videos/source_sha256"], {r.row: r.source_sha256 for r in records if r.source_sha256})
        for modality in MODALITIES:
            array, reasons = self._root[f"videos/{modality}"], self._root[f"videos/{modality}_reason"]
            stored = zip(records, _gather(array, rows), _gather(reasons, rows), strict=True)
            updated = [r for r, state, reason in stored if _is_update(r.states[modality], State(state), reason)]
            _scatter_some(self._root[f"videos/steps_{modality}"], {r.row: r.steps[modality] for r in updated})
            _scatter_some(self._root[f"videos/first_{modality}"], {r.row: r.firsts[modality] for r in updated})
            _scatter_some(reasons, {r.row: r.reasons[modality] for r in updated})
            _scatter_some(array, {r.row: int(r.states[modality]) for r in updated})

    def _forget(self, rows: Sequence[int]) -> None:
        """Reset states, steps and reasons of both modalities of `rows` to those of videos that were never decoded.

        The hash of a replaced file is written after this: if the run is killed in between, the video is pending.
        """
        for name, empty in (("{}", 0), ("steps_{}", 0), ("first_{}", 0), ("{}_reason", "")):
            for modality in MODALITIES:
                _scatter_some(self._root[f"videos/{name.format(modality)}"], dict.fromkeys(rows, empty))

    def record_features(self, records: Sequence[FeatureRecord]) -> None:
        """Record the states of features, after all else: the state is what makes a row complete."""
        for name in sorted({record.feature for record in records}):
            self.unseal()
            own = [record for record in records if record.feature == name]
            _scatter_some(self._root[f"features/{name}/digest"], {record.row: record.digest for record in own})
            _scatter_some(self._root[f"features/{name}/reason"], {record.row: record.reason for record in own})
            _scatter_some(self._root[f"features/{name}/made_by"], {record.row: record.spec_index for record in own})
            if self.feature_specs(name)[0].is_imported:
                sources = {record.row: record.source_sha256 for record in own}
                _scatter_some(self._root[f"features/{name}/{_SOURCE}"], sources)
            _scatter_some(self._root[f"features/{name}/state"], {record.row: int(record.state) for record in own})

    def forget_feature(self, name: str) -> None:
        """Remove the question feature `name`; it is computed again when it is next extracted."""
        self.unseal()
        del self._root[f"{QUESTIONS}/{name}"]
        self.consolidate()

    def append_questions(self, texts: Sequence[str]) -> dict[str, int]:
        """Append the unique texts that are not stored yet; return the row of every stored text."""
        stored = [str(text) for text in self.read_index("questions/text") if text]
        known = set(stored)
        new = [text for text in dict.fromkeys(texts) if text not in known]
        if new:
            self.unseal()
            total, as_array = len(stored) + len(new), np.array(new, dtype=object)
            for name in sorted(self._root["questions"].group_keys()):
                for array in (*self._index_arrays(name, QUESTIONS), "values", "question"):
                    _resize(self._root[f"questions/{name}/{array}"], total)
                self._root[f"questions/{name}/question"][len(stored) : total] = as_array
            _resize(self._root["questions/text"], total)
            self._root["questions/text"][len(stored) : total] = as_array
            self.consolidate()
        return {text: row for row, text in enumerate([*stored, *new])}

    def question_texts(self, name: str) -> set[str]:
        """Return the texts that have the question feature `name`: those whose row has a digest."""
        if not isinstance(self._root.get(f"questions/{name}"), zarr.Group):
            return set()
        digests, texts = self.read_index(f"questions/{name}/digest"), self.read_index("questions/text")
        return {str(text) for text, digest in zip(texts, digests, strict=False) if digest}

    def write_questions(
        self, name: str, rows: np.ndarray, values: np.ndarray, spec_index: int = 0, sources: Sequence[str] = ()
    ) -> None:
        """Write the question feature `name` of `rows`, int64 [row], with values [row, ...], and then their digests.

        `spec_index`: the index of the spec under which they were computed. `sources`: for an imported feature, the
        SHA-256 of the file of each row.
        """
        self.unseal()
        array, texts = self._root[f"questions/{name}/values"], _gather(self._root["questions/text"], rows.tolist())
        values = np.asarray(values, array.dtype)
        _scatter(array, rows, values)
        _scatter(self._root[f"questions/{name}/made_by"], rows, np.full(len(rows), spec_index))
        if sources:
            _scatter(self._root[f"questions/{name}/{_SOURCE}"], rows, list(sources))
        digests = [digest_row(name, str(text), row) for text, row in zip(texts, values, strict=True)]
        _scatter(self._root[f"questions/{name}/digest"], rows, digests)

    def unseal(self) -> None:
        """Remove the seal: call it before the store is changed.

        Raises `UserError` if the store is not as it was sealed: what is written next would hide that.
        """
        seal = self._root.attrs.get(SEAL)
        if seal is None:
            return
        with reporting_damage(self.path, "an index array"):
            is_as_sealed = seal == compute_seal(self._root)
        if not is_as_sealed:
            raise UserError(
                f"store {self.path}: {NOT_AS_SEALED}: the store is corrupt, extract it again into another --store"
            )
        del self._root.attrs[SEAL]

    def seal(self) -> None:
        """Write the seal and the consolidated metadata, if they are missing: call it at the end of a run."""
        if self._is_new:
            return
        if SEAL not in self._root.attrs:
            with reporting_damage(self.path, "an index array"):
                self._root.update_attributes({SEAL: compute_seal(self._root)})
            self.consolidate()
        elif not json.loads(self._location.read(METADATA)).get("consolidated_metadata"):
            # A run was killed between the two.
            self.consolidate()

    def consolidate(self) -> None:
        """Collect all metadata in one document at the root, which readers use."""
        with warnings.catch_warnings(), reporting_damage(self.path, "the metadata of an array"):
            warnings.filterwarnings("ignore", message="Consolidated metadata", category=UserWarning)
            zarr.consolidate_metadata(self._root.store)


def write_rows(
    path: str | Path, feature: str, first_row: int, rows: dict[int, np.ndarray], fingerprint: str = ""
) -> set[int]:
    """Write values of one feature for rows of one partition; called by the worker that owns the partition.

    Return the other rows whose values are lost: those of a chunk that cannot be read.

    `first_row` is the partition's first row; `rows` maps absolute rows to [time, ...] (shorter than the store's time
    axis: the rest stays the fill value). `fingerprint` is that of the spec under which they were computed.
    Raises `UserError` if the store has no such spec of the feature (a worker that hung may continue after the store
    was created again), ValueError if a row is outside the partition or the partition is not aligned: two owners of
    one shard would silently overwrite each other.
    """
    last_row = first_row + VIDEOS_PER_PARTITION
    if first_row % VIDEOS_PER_PARTITION or not all(first_row <= row < last_row for row in rows):
        raise ValueError(f"rows {sorted(rows)} are not one aligned partition of {VIDEOS_PER_PARTITION} at {first_row}")
    root = open_group(path, mode="r+")
    attributes = root[f"features/{feature}"].attrs
    accepted = {attributes["fingerprint"], *(entry["fingerprint"] for entry in attributes["accepted"])}
    if fingerprint and fingerprint not in accepted:
        raise UserError(f"store {path} has another spec of {feature} than when this run began: was it created again?")
    values = root[f"features/{feature}/values"]
    if values.shards is not None:
        for row, array in rows.items():
            values[row : row + 1] = _padded(values, array)[None]
        return set()
    stop = min(last_row, values.shape[0])
    lost: set[int] = set()
    try:
        block = values[first_row:stop]
    except CORRUPT_VALUES:
        block = np.full((stop - first_row, *values.shape[1:]), values.fill_value, values.dtype)
        lost = set(range(first_row, stop)) - rows.keys()
    for row, array in rows.items():
        block[row - first_row] = _padded(values, array)
    values[first_row:stop] = block
    return lost


def _padded(values: zarr.Array, array: np.ndarray) -> np.ndarray:
    if array.shape[1:] != values.shape[2:] or array.shape[0] > values.shape[1]:
        raise ValueError(f"feature rows of shape {array.shape} do not fit {values.path} {values.shape[1:]}")
    full = np.full(values.shape[1:], values.fill_value, dtype=values.dtype)
    full[: len(array)] = array
    return full


def _arrays_of(spec: FeatureSpec) -> tuple[tuple[str, Any, Any], ...]:
    """Return (name, dtype, fill value) of the index arrays of a feature."""
    arrays = _QUESTION_ARRAYS if spec.modality == "question" else _FEATURE_ARRAYS
    return (*arrays, (_SOURCE, str, "")) if spec.is_imported else arrays


def _create_empty(store: Any) -> zarr.Group:
    """Create the groups and arrays of a store without videos and features, and return its root."""
    root = zarr.create_group(store, zarr_format=3, overwrite=True)
    for group in ("videos", FEATURES, QUESTIONS):
        root.create_group(group)
    for name, dtype, fill in _VIDEO_ARRAYS:
        _create_index(store, f"videos/{name}", dtype, fill, "video")
    _create_index(store, "questions/text", str, "", "question")
    return root


def _remove_incomplete_features(location: StoreLocation, root: zarr.Group, group: str) -> None:
    """Remove the features of `group` whose creation was killed: they have no spec yet, which is written last.

    Raises `UserError` if one has values or states all the same: its spec was lost.
    """
    for name in sorted(location.names(group) - {"zarr.json", "text"}):
        path = f"{group}/{name}"
        members = location.names(path)
        # Foreign files, such as .DS_Store or a folder of notes, are not features.
        if not members & _FEATURE_MEMBERS:
            continue
        with reporting_damage(location.address, path):
            found = root.get(path)
        if isinstance(found, zarr.Group) and "spec" in found.attrs:
            continue
        recorded = members & _RECORDED
        if members - _FEATURE_MEMBERS or any(location.names(f"{path}/{name}") - {"zarr.json"} for name in recorded):
            raise UserError(
                f"store {location.address}: {path} has values but no spec: the store is corrupt, extract it again"
            )
        del root[path]


def _create_values(store: Any, path: str, spec: FeatureSpec, shape: tuple[int, ...]) -> None:
    """Create an array of values: one shard per video if a video is large, else one chunk per partition."""
    video_feature = spec.modality != "question"
    dtype = np.dtype(spec.dtype)
    row_bytes = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
    sharded = video_feature and row_bytes > SHARD_ROW_BYTES
    rows = (
        VIDEOS_PER_PARTITION if video_feature else max(1, min(ROWS_PER_INDEX_CHUNK, QUESTION_CHUNK_BYTES // row_bytes))
    )
    zarr.create_array(
        store,
        name=path,
        shape=shape,
        chunks=(1, 1, *shape[2:]) if sharded else (rows, *shape[1:]),
        shards=(1, *shape[1:]) if sharded else None,
        # One file per chunk in one folder; with the separator "/" a chunk takes a folder per axis, five inodes.
        chunk_key_encoding={"name": "default", "separator": "."},
        dtype=dtype,
        fill_value=spec.fill_value,
        compressors=(
            BloscCodec(cname="zstd", clevel=1, shuffle="shuffle", typesize=dtype.itemsize),
            Crc32cCodec(),
        ),
        dimension_names=("video", "time", *spec.dims) if video_feature else ("question", *spec.dims),
        zarr_format=3,
    )


def _create_index(store: Any, path: str, dtype: Any, fill: Any, dimension: str, rows: int = 0) -> zarr.Array:
    return zarr.create_array(
        store,
        name=path,
        shape=(rows,),
        chunks=(ROWS_PER_INDEX_CHUNK,),
        dtype=dtype,
        fill_value=fill,
        compressors=(ZstdCodec(), Crc32cCodec()),
        dimension_names=(dimension,),
        zarr_format=3,
    )


def _resize(array: zarr.Array, total: int) -> None:
    if array.shape[0] != total:
        array.resize((total, *array.shape[1:]))


def _is_update(new: State, stored: State, stored_reason: str) -> bool:
    if new is stored:
        return new is State.FAILED or (new is not State.PENDING and not stored_reason)
    return _RANK[new] > _RANK[stored]


def _gather(array: zarr.Array, rows: Sequence[int]) -> np.ndarray:
    """Return `array[rows]`, read as the chunks between the first and the last row."""
    first, stop = min(rows), max(rows) + 1
    block: np.ndarray = array[first:stop]
    return block[np.asarray(rows) - first]


def _scatter_some(array: zarr.Array, values: dict[int, Any]) -> None:
    """Set the rows that are the keys of `values`, if there are any."""
    if values:
        _scatter(array, np.array(list(values), dtype=np.int64), list(values.values()))


def _scatter(array: zarr.Array, rows: np.ndarray, values: Any) -> None:
    """Set `array[rows] = values`, rewriting the chunks between the first and the last row."""
    first, stop = int(rows.min()), int(rows.max()) + 1
    block = array[first:stop]
    block[rows - first] = np.asarray(values, dtype=block.dtype)
    array[first:stop] = block
