"""The layout of a feature store, as versioned data: names, axes, states, chunks.

Layout (Zarr v3, readable with plain zarr, dask and xarray):

    attrs: mavqa_format, seconds, created_by
    videos/     video_id, source_sha256   [video]
                visual, steps_visual, first_visual, visual_reason, and the same of audio   [video]
    features/<name>/   values [video, time, ...]   state, reason, made_by, digest [video]
                attrs: spec, fingerprint, accepted
    questions/  text [question]
                <name>/values [question, ...]   made_by, digest [question]   attrs: as those of features

Imported features also have `source_sha256`, [video] or [question].
"""

import hashlib
import json
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

STORE_FORMAT = 2
FORMAT_ATTRIBUTE = "mavqa_format"
VIDEOS_PER_PARTITION = 16
ROWS_PER_INDEX_CHUNK = 65_536
QUESTION_LENGTH = 14
MODALITIES = ("audio", "visual")
# The constant of a spec whose rows were not computed from videos, but imported from arrays of others.
IMPORTED = "imported"


class State(IntEnum):
    """The state of one modality, or of one feature, of one video."""

    PENDING = 0
    COMPLETE = 1
    ABSENT = 2
    FAILED = 3


@dataclass(frozen=True)
class FeatureSpec:
    """The specification of one stored feature.

    `dims` and `shape` are the axes after `video` (and `time`, for video features): `("channel",)`, `(128,)`.
    `constants` is everything that the values depend on, and part of the fingerprint: extractor version, weights,
    preprocessing, decoder, device, threads. `modality` is `audio`, `visual` or `question`.
    """

    name: str
    modality: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    constants: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the canonical JSON of this spec.

        Rows of equal fingerprints come from the same computation: their values differ at most by the rounding of
        another CPU, or of another release of a library that the spec does not name.
        """
        return hashlib.sha256(canonical_json(self.to_json()).encode()).hexdigest()

    @property
    def is_imported(self) -> bool:
        """Whether the rows were imported from arrays, of which `constants` can only repeat what the user states."""
        return IMPORTED in self.constants

    @property
    def fill_value(self) -> float | int:
        """The value of rows that were never written: NaN for floats, -1 for integers, never a valid feature."""
        return float("nan") if self.dtype.startswith("float") else -1

    def to_json(self) -> dict[str, Any]:
        """Return the spec as plain JSON values."""
        return {
            "name": self.name,
            "modality": self.modality,
            "dims": list(self.dims),
            "shape": list(self.shape),
            "dtype": self.dtype,
            "constants": self.constants,
        }

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "FeatureSpec":
        """Return the spec that `to_json` returned; raise ValueError with the field for other records."""
        kinds = {"name": str, "modality": str, "dims": list, "shape": list, "dtype": str, "constants": dict}
        for name, kind in kinds.items():
            if not isinstance(record, dict) or not isinstance(record.get(name), kind):
                raise ValueError(f"{name!r} is missing or not of type {kind.__name__}")
        return cls(
            name=record["name"],
            modality=record["modality"],
            dims=tuple(record["dims"]),
            shape=tuple(record["shape"]),
            dtype=record["dtype"],
            constants=record["constants"],
        )


def canonical_json(value: Any) -> str:
    """Return the canonical JSON text of `value`: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def tokens_name(tokens: tuple[str, ...], length: int = QUESTION_LENGTH) -> str:
    """Return the name of the token feature of one vocabulary: `tokens-` and 8 hex digits of the vocabulary's SHA-256.

    `length`: tokens per question. A length other than MUSIC-AVQA's 14 is hashed with the tokens, so that a name always
    means one row length.
    """
    hashed = tokens if length == QUESTION_LENGTH else (*tokens, length)
    return "tokens-" + hashlib.sha256(canonical_json(list(hashed)).encode()).hexdigest()[:8]


def spec_differences(stored: FeatureSpec, ours: FeatureSpec, ignore: tuple[str, ...] = ()) -> list[str]:
    """Return the differences between two specs of one feature, one text each with both values.

    `ignore` names constants, or groups of constants, that are not compared: ("weights.sha256", "machine").
    """
    left, right = _flat(stored.to_json()), _flat(ours.to_json())
    skipped = tuple(f"constants.{name}" for name in ignore)
    names = [n for n in sorted({*left, *right}) if not any(n == s or n.startswith(f"{s}.") for s in skipped)]
    return [
        f"{name.removeprefix('constants.')} is {left.get(name, 'nothing')} in the store, "
        f"{right.get(name, 'nothing')} here"
        for name in names
        if left.get(name) != right.get(name)
    ]


def _flat(record: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in record.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat
