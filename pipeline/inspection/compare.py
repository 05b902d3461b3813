"""Compare a stored feature with published arrays, one `.npy` per video, row by row.

A row is one time step. Arrays are read through a memory map and never unpickled.
"""

from collections.abc import Callable, Iterator
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.arrays.npy_files import ArrayError, list_arrays, open_array
from pipeline.errors import UserError
from pipeline.store.reader import FeatureStore, reporting_damage
from pipeline.store.schema import State

# Rows of the same network and input reach this cosine with other decoders and machines; other rows rarely do.
MIN_COSINE = 0.99

Progress = Callable[[int, int], None]


def compare_with_reference(
    store: FeatureStore, feature: str, folder: Path, on_progress: Progress = lambda done, total: None
) -> dict[str, Any]:
    """Return the differences between `feature` in `store` and the arrays `folder`/`<video_id>.npy`, as JSON values.

    `videos`, one entry per compared video, the least similar first: the cosine over all rows, the least cosine of a
    row and its index, the largest absolute difference and its row, the rows below `MIN_COSINE` (`rows_unlike`), the
    numbers of steps from the video's first one on (the common ones are compared) and the order of the array's axes. A
    complete row of the store with values that are not finite counts as unlike, and the numbers of its video are None.
    `refused`: arrays that are not of this feature. `only_in_store`, `only_in_reference`: videos missing from the other.
    `summary`: statistics over the videos with numbers; `videos_damaged` counts the others.
    Raises `UserError` if the feature or the folder does not exist, or if nothing could be compared.
    """
    dims = ("time", *store.spec(feature).dims)
    paths = _list_arrays(folder)
    complete = [store.video_ids[row] for row in np.flatnonzero(store.state(feature) == State.COMPLETE)]
    shared = [video_id for video_id in complete if video_id in paths]
    videos, refused = [], []
    for done, video_id in enumerate(shared, start=1):
        try:
            reference, axes = _load(paths[video_id], store.values(feature).shape[2:], dims)
            rows, first = _read_rows(store, feature, video_id)
            videos.append({"video_id": video_id, **_compare(rows, reference[first:], first), "axes": axes})
        except ArrayError as error:
            refused.append({"video_id": video_id, "reason": str(error)})
        on_progress(done, len(shared))
    if not videos:
        why = f"{paths[shared[0]]} {refused[0]['reason']}" if refused else "no file is named <video id>.npy"
        raise UserError(
            f"nothing in {folder} can be compared with {feature} of {store.path}: {why}; pass the folder of this "
            "feature's arrays as --reference"
        )
    return {
        "format": 1,
        "feature": feature,
        "reference": str(folder),
        "videos": sorted(videos, key=lambda v: -np.inf if v["least_cosine"] is None else v["least_cosine"]),
        "refused": refused,
        "only_in_store": [video_id for video_id in complete if video_id not in paths],
        "only_in_reference": list(_only_in_reference(store, feature, paths)),
        "summary": _summarise(videos),
    }


def _list_arrays(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise UserError(f"reference folder {folder} does not exist: pass --reference a folder with one .npy per video")
    paths = list_arrays(folder)
    if not paths:
        raise UserError(
            f"reference folder {folder} contains no .npy: pass --reference a folder with one .npy per video"
        )
    return paths


def _load(path: Path, shape: tuple[int, ...], dims: tuple[str, ...]) -> tuple[np.ndarray, str]:
    """Return the array at `path` transposed to the order of `dims`, and the names of its axes in the file's order."""
    array = open_array(path)
    orders = list(_orders(array.shape, shape))
    if not orders:
        expected = ", ".join(map(str, shape))
        raise ArrayError(
            f"has shape {list(array.shape)}, expected [time, {expected}] ({' '.join(dims)}) in any order of axes"
        )
    if len(orders) > 1:
        raise ArrayError(
            f"has shape {list(array.shape)}, which is ambiguous: several orders of its axes give {' '.join(dims)}"
        )
    axes = " ".join(dims[axis] for axis in np.argsort(orders[0]))
    return array.transpose(orders[0]), axes


def _orders(found: tuple[int, ...], shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Yield the orders of axes that turn shape `found` into [time, *shape]; only the identity if it fits.

    Axes of equal length (height, width) keep their order. Orders with time elsewhere than first are yielded only if no
    order with time first fits.
    """
    if len(found) != len(shape) + 1 or 0 in found:
        return
    matching = []
    for order in permutations(range(len(found))):
        keeps_equal_axes = all(
            order[first + 1] < order[second + 1]
            for first in range(len(shape))
            for second in range(first + 1, len(shape))
            if shape[first] == shape[second]
        )
        if keeps_equal_axes and tuple(found[axis] for axis in order[1:]) == shape:
            matching.append(order)
    identity = tuple(range(len(found)))
    yield from [identity] if identity in matching else [o for o in matching if o[0] == 0] or matching


def _read_rows(store: FeatureStore, feature: str, video_id: str) -> tuple[np.ndarray, int]:
    """Return the rows [step, ...] of a complete video, without the fill values around them, and its first step."""
    row = store.rows[video_id]
    first, stop = (int(steps[row]) for steps in store.filled_steps(feature))
    with reporting_damage(store.path, f"features/{feature}/values"):
        return np.asarray(store.values(feature)[row])[first:stop], first


def _compare(stored: np.ndarray, reference: np.ndarray, first: int) -> dict[str, Any]:
    """Return the differences between two arrays [step, ...] whose first row is that of step `first`."""
    steps = min(len(stored), len(reference))
    if not steps:
        raise ArrayError(f"has no row of step {first}, the video's first")
    products, scales, differences = np.full((steps, 3), np.nan), np.full((steps, 2), np.nan), np.full(steps, np.nan)
    for row in range(steps):
        own = stored[row].astype(np.float64).ravel()
        published = np.asarray(reference[row], np.float64).ravel()
        if not np.isfinite(published).all():
            raise ArrayError(f"row {first + row} contains values that are not finite")
        if not np.isfinite(own).all():
            continue
        differences[row] = np.abs(own - published).max()
        scales[row] = np.abs(own).max(), np.abs(published).max()
        # Scale both vectors first: the squares of very large or small values overflow or underflow.
        own, published = own / (scales[row, 0] or 1), published / (scales[row, 1] or 1)
        products[row] = own @ published, own @ own, published @ published
    cosines = np.array([_cosine(row) for row in products])
    weights = scales / np.where(scales.max(axis=0) == 0, 1, scales.max(axis=0))
    sums = (products * weights[:, [0, 0, 1]] * weights[:, [1, 0, 1]]).sum(axis=0)
    return {
        "cosine": _number(_cosine(sums)),
        "least_cosine": _number(cosines.min()),
        "least_cosine_row": first + int(cosines.argmin()),
        "largest_difference": _number(differences.max()),
        "largest_difference_row": first + int(differences.argmax()),
        "rows_unlike": (first + np.flatnonzero(~(cosines >= MIN_COSINE))).tolist(),
        "steps_in_store": len(stored),
        "steps_in_reference": len(reference),
        "steps_compared": steps,
    }


def _cosine(products: np.ndarray) -> float:
    """Return the cosine of two vectors from (dot product, squared norm, squared norm); 1 if both vectors are zero."""
    product, first_square, second_square = products
    if not first_square or not second_square:
        return float(first_square == second_square)
    return float(np.clip(product / np.sqrt(first_square) / np.sqrt(second_square), -1, 1))


def _number(value: float) -> float | None:
    """Return `value`, or None if it is not finite, which JSON cannot express."""
    return float(value) if np.isfinite(value) else None


def _only_in_reference(store: FeatureStore, feature: str, paths: dict[str, Path]) -> Iterator[dict[str, str]]:
    """Yield the videos of `paths` that are not complete in the store, with their state there."""
    states = store.state(feature)
    for video_id in paths:
        row = store.rows.get(video_id)
        state = "unknown" if row is None else State(int(states[row])).name.lower()
        if state != "complete":
            yield {"video_id": video_id, "state": state}


def _summarise(videos: list[dict[str, Any]]) -> dict[str, Any]:
    finite = [video for video in videos if video["cosine"] is not None]
    cosines = [video["cosine"] for video in finite]
    return {
        "compared": len(videos),
        "cosine_mean": float(np.mean(cosines)) if finite else None,
        "cosine_median": float(np.median(cosines)) if finite else None,
        "cosine_least": min(cosines, default=None),
        "row_cosine_least": min((video["least_cosine"] for video in finite), default=None),
        "largest_difference": max((video["largest_difference"] for video in finite), default=None),
        "videos_with_rows_unlike": sum(bool(video["rows_unlike"]) for video in videos),
        "videos_damaged": len(videos) - len(finite),
        "videos_of_other_steps": sum(v["steps_in_store"] != v["steps_in_reference"] for v in videos),
    }
