"""A feature store in memory, of one video and some questions: what was just extracted, for all that reads stores.

It has the arrays of a store on disk that readers need, uncompressed, and none of what makes one resumable.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr

from pipeline.store.reader import FeatureStore
from pipeline.store.schema import FORMAT_ATTRIBUTE, MODALITIES, STORE_FORMAT, FeatureSpec, State
from pipeline.store.writer import FEATURES, QUESTIONS, VideoRecord


@dataclass(frozen=True)
class HeldFeature:
    """A feature of the video: its spec, state and reason, and its values [time, ...], without steps unless complete."""

    spec: FeatureSpec
    state: State
    reason: str
    values: np.ndarray


def hold(
    name: str,
    seconds: int,
    video: VideoRecord,
    features: Sequence[HeldFeature],
    texts: Sequence[str] = (),
    of_questions: Sequence[tuple[FeatureSpec, np.ndarray]] = (),
) -> FeatureStore:
    """Return a store of one video, whose id and, in messages, path is `name`.

    `of_questions`: (spec, values [question, ...]) of each question feature, in the order of the unique `texts`.
    """
    root = zarr.create_group(zarr.storage.MemoryStore(), zarr_format=3)
    root.update_attributes({FORMAT_ATTRIBUTE: STORE_FORMAT, "seconds": seconds})
    for group in ("videos", FEATURES, QUESTIONS):
        root.create_group(group)
    index: dict[str, Any] = {"video_id": name, "source_sha256": video.source_sha256}
    for modality in MODALITIES:
        index[modality] = np.uint8(video.states[modality])
        index[f"steps_{modality}"] = np.int32(video.steps[modality])
        index[f"first_{modality}"] = np.int32(video.firsts[modality])
        index[f"{modality}_reason"] = video.reasons[modality]
    for column, value in index.items():
        _create(root, f"videos/{column}", [value])
    for feature in features:
        path = _create_feature(root, FEATURES, feature.spec)
        values = np.full((1, seconds, *feature.spec.shape), feature.spec.fill_value, feature.spec.dtype)
        values[0, : len(feature.values)] = feature.values
        _create(root, f"{path}/values", values)
        _create(root, f"{path}/state", [np.uint8(feature.state)])
        _create(root, f"{path}/made_by", [np.uint8(0)])
        _create(root, f"{path}/reason", [feature.reason])
    _create(root, f"{QUESTIONS}/text", list(texts))
    for spec, rows in of_questions:
        _create(root, f"{_create_feature(root, QUESTIONS, spec)}/values", np.asarray(rows, spec.dtype))
    return FeatureStore(root, name)


def _create_feature(root: zarr.Group, group: str, spec: FeatureSpec) -> str:
    """Create the group of a feature and return its path."""
    path = f"{group}/{spec.name}"
    attributes = {"spec": spec.to_json(), "fingerprint": spec.fingerprint, "accepted": []}
    root.create_group(path).update_attributes(attributes)
    return path


def _create(root: zarr.Group, path: str, values: Any) -> None:
    """Create the array of `values`: an array, or a list of texts or of NumPy numbers."""
    is_text = isinstance(values, list) and (not values or isinstance(values[0], str))
    array = np.asarray(values, dtype=object) if is_text else np.asarray(values)
    created = root.create_array(
        path, shape=array.shape, dtype=str if is_text else array.dtype, chunks=_chunks(array), compressors=None
    )
    if array.size:
        created[:] = array


def _chunks(array: np.ndarray) -> tuple[int, ...]:
    return tuple(max(1, length) for length in array.shape)
