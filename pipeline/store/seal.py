"""Digests of what a store holds: of a row, of all rows, and the seal over everything but the values.

A digest says that values are those that were computed, and of which video; the checksum of each chunk only that it is
read as it was written. The seal covers the metadata and all index arrays together, so that none was lost or exchanged.
It is removed before the first change of a run and written at its end: a store without a seal is being written, or its
run was stopped.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import zarr

from pipeline.store.location import StoreLocation
from pipeline.store.schema import canonical_json

SEAL = "seal"
NOT_AS_SEALED = "its metadata or index arrays (ids, states, steps, digests) are not those of the last run"
METADATA = "zarr.json"


def digest_row(feature: str, identity: str, values: np.ndarray) -> str:
    """Return the SHA-256 of one row: of its feature, its video's id or question's text, and its values [time, ...]."""
    head = canonical_json([feature, identity, str(values.dtype), list(values.shape)])
    digest = hashlib.sha256(head.encode())
    digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def digest_rows(digests: Iterable[str]) -> str:
    """Return the SHA-256 of a set of row digests: it does not depend on their order."""
    return hashlib.sha256("\n".join(sorted(digests)).encode()).hexdigest()


def compute_seal(root: zarr.Group) -> str:
    """Return the SHA-256 over the metadata of every group and array, and the values of all index arrays.

    `root`: opened without consolidated metadata.
    """
    attributes = {name: value for name, value in root.attrs.items() if name != SEAL}
    sealed = hashlib.sha256(canonical_json(attributes).encode())
    for path, node in _members(root):
        sealed.update(f"{path}\n{canonical_json(node.metadata.to_dict())}\n".encode())
        if isinstance(node, zarr.Array) and not path.endswith("/values"):
            values = np.asarray(node[:])
            sealed.update(values.tobytes() if values.dtype.kind in "iu" else canonical_json(values.tolist()).encode())
    return sealed.hexdigest()


def original_metadata(location: StoreLocation, root: zarr.Group) -> Iterator[tuple[str, Any]]:
    """Yield (path, metadata) of every group and array, as stored beside it. Raises ValueError if it is not JSON."""
    for path, _ in _members(root):
        yield path, json.loads(location.read(f"{path}/{METADATA}"))


def _members(root: zarr.Group) -> list[tuple[str, Any]]:
    return sorted(root.members(max_depth=None), key=lambda member: member[0])
