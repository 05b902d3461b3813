"""How far a stored feature is from published arrays: one `.npy` a video, compared row by row. It changes nothing.

A row is one step of the time axis. Arrays are never unpickled, and read through a memory map.
"""

from collections.abc import Callable, Iterator
from itertools import permutations
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np

from pipeline.errors import UserError, one_line
from pipeline.store.reader import FeatureStore, reporting_damage
from pipeline.store.schema import State

# Rows of one network on one picture or second reach this under other decoders and machines; others rarely do.
ALIKE_COSINE = 0.99
# What numpy, and Python's parser of its headers, raise over files that are no array, or whose header is damaged.
_UNREADABLE = (
    *(ValueError, TypeError, OSError, EOFError, OverflowError, SyntaxError, TokenError),
    *(MemoryError, RecursionError),
)

Progress = Callable[[int, int], None]


class _UnlikeError(Exception):
    """An array that is not this feature; the message says why."""


def compare_with_reference(
    store: FeatureStore, feature: str, folder: Path, on_progress: Progress = lambda done, total: None
) -> dict[str, Any]:
    """Return how far `feature` in `store` is from `folder`'s arrays `<video_id>.npy`, [time, ...], as JSON values.

    `videos`: of each video compared its cosine over all rows, the least cosine of a row and which that is, the
    largest absolute difference and its row, the rows below `ALIKE_COSINE`, steps on either side (the first of both
    are compared) and the order of the array's axes; the least alike video comes first. A row that is complete in the
    store but holds values that are not finite is unlike, and the numbers of its video are None. `refused`: arrays that
    are not this feature. `only_in_store`, `only_in_reference`: videos that the other side lacks. `summary`: over the
    videos that have numbers, `videos_damaged` counts the others.
    Raises `UserError` where there is no such feature or folder, or nothing could be compared.
    """
    dims = ("time", *store.spec(feature).dims)
    paths = _list_arrays(folder)
    complete = [store.video_ids[row] for row in np.flatnonzero(store.state(feature) == State.COMPLETE)]
    shared = [video_id for video_id in complete if video_id in paths]
    videos, refused = [], []
    for done, video_id in enumerate(shared, start=1):
        try:
            reference, axes = _load(paths[video_id], store.values(feature).shape[2:], dims)
            videos.append(
                {"video_id": video_id, **_compare(_stored(store, feature, video_id), reference), "axes": axes}
            )
        except _UnlikeError as error:
            refused.append({"video_id": video_id, "reason": str(error)})
        on_progress(done, len(shared))
    if not videos:
        why = f"{paths[shared[0]]} {refused[0]['reason']}" if refused else "no file there is named <video id>.npy"
        raise UserError(
            f"nothing in {folder} can be compared with {feature} of {store.path}: {why}; give the folder of this "
            "feature's arrays to --reference"
        )
    return {
        "format": 1,
        "feature": feature,
        "reference": str(folder),
        "videos": sorted(videos, key=_likeness),
        "refused": refused,
        "only_in_store": [video_id for video_id in complete if video_id not in paths],
        "only_in_reference": list(_lacking(store, feature, paths)),
        "summary": _summarise(videos),
    }


def _list_arrays(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise UserError(f"reference folder {folder} is not there: give --reference a folder with one .npy a video")
    paths = {path.stem: path for path in sorted(folder.glob("*.npy"))}
    if not paths:
        raise UserError(f"reference folder {folder} holds no .npy: give --reference a folder with one .npy a video")
    return paths


def _load(path: Path, shape: tuple[int, ...], dims: tuple[str, ...]) -> tuple[np.ndarray, str]:
    """Return the array at `path` with its axes in the order of `dims`, and their names in the order that it has."""
    if path.exists() and not path.is_file():
        raise _UnlikeError("is no plain file")
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except _UNREADABLE as error:
        raise _UnlikeError(f"cannot be read ({one_line(error)})") from None
    if array.dtype.kind not in "fiu":
        raise _UnlikeError(f"holds {array.dtype}, not numbers")
    orders = list(_orders(array.shape, shape))
    if not orders:
        expected = ", ".join(map(str, shape))
        raise _UnlikeError(f"has shape {list(array.shape)}, in no order [time, {expected}] ({' '.join(dims)})")
    if len(orders) > 1:
        raise _UnlikeError(f"has shape {list(array.shape)}, which can be read as {' '.join(dims)} in several ways")
    axes = " ".join(dims[place] for place in np.argsort(orders[0]))
    return array.transpose(orders[0]), axes


def _orders(found: tuple[int, ...], shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Yield the orders that make [time, *shape] of `found`: the published one alone where it fits.

    Axes of one length (height, width) keep their order. Time is first unless only another place fits.
    """
    if len(found) != len(shape) + 1 or 0 in found:
        return
    fitting = []
    for order in permutations(range(len(found))):
        keeps = all(
            order[one + 1] < order[other + 1]
            for one in range(len(shape))
            for other in range(one + 1, len(shape))
            if shape[one] == shape[other]
        )
        if keeps and tuple(found[axis] for axis in order[1:]) == shape:
            fitting.append(order)
    published = tuple(range(len(found)))
    yield from [published] if published in fitting else [o for o in fitting if o[0] == 0] or fitting


def _stored(store: FeatureStore, feature: str, video_id: str) -> np.ndarray:
    """Return the rows [step, ...] that a complete video has; later ones are fill where short videos are padded."""
    row, spec = store.rows[video_id], store.spec(feature)
    padded = spec.constants.get("sampling", {}).get("short", "pad") == "pad"
    steps = int(store.steps(spec.modality)[row]) if padded else store.seconds
    with reporting_damage(store.path, f"features/{feature}/values"):
        return np.asarray(store.values(feature)[row])[:steps]


def _compare(stored: np.ndarray, reference: np.ndarray) -> dict[str, Any]:
    steps = min(len(stored), len(reference))
    products, scales, gaps = np.full((steps, 3), np.nan), np.full((steps, 2), np.nan), np.full(steps, np.nan)
    for row in range(steps):
        ours = stored[row].astype(np.float64).ravel()
        theirs = np.asarray(reference[row], np.float64).ravel()
        if not np.isfinite(theirs).all():
            raise _UnlikeError(f"row {row} holds values that are not finite")
        if not np.isfinite(ours).all():
            continue
        gaps[row] = np.abs(ours - theirs).max()
        scales[row] = np.abs(ours).max(), np.abs(theirs).max()
        # Squares of very large or small values are infinite or 0, so that both vectors are scaled before.
        ours, theirs = ours / (scales[row, 0] or 1), theirs / (scales[row, 1] or 1)
        products[row] = ours @ theirs, ours @ ours, theirs @ theirs
    cosines = np.array([_cosine(row) for row in products])
    shares = scales / np.where(scales.max(axis=0) == 0, 1, scales.max(axis=0))
    sums = (products * shares[:, [0, 0, 1]] * shares[:, [1, 0, 1]]).sum(axis=0)
    return {
        "cosine": _number(_cosine(sums)),
        "least_cosine": _number(cosines.min()),
        "least_cosine_row": int(cosines.argmin()),
        "largest_difference": _number(gaps.max()),
        "largest_difference_row": int(gaps.argmax()),
        "rows_unlike": np.flatnonzero(~(cosines >= ALIKE_COSINE)).tolist(),
        "steps_in_store": len(stored),
        "steps_in_reference": len(reference),
        "steps_compared": steps,
    }


def _cosine(products: np.ndarray) -> float:
    """Return the cosine of two vectors of (their product, the one's square, the other's); 1 where both are zero."""
    product, ours, theirs = products
    if not ours or not theirs:
        return float(ours == theirs)
    return float(np.clip(product / np.sqrt(ours) / np.sqrt(theirs), -1, 1))


def _number(value: float) -> float | None:
    """Return `value`, or None for what JSON has no number for."""
    return float(value) if np.isfinite(value) else None


def _likeness(video: dict[str, Any]) -> float:
    return -np.inf if video["least_cosine"] is None else video["least_cosine"]


def _lacking(store: FeatureStore, feature: str, paths: dict[str, Path]) -> Iterator[dict[str, str]]:
    """Yield the videos of `paths` that the store does not have complete, with what it has instead."""
    states = store.state(feature)
    for video_id in paths:
        row = store.rows.get(video_id)
        state = "unknown" if row is None else State(int(states[row])).name.lower()
        if state != "complete":
            yield {"video_id": video_id, "state": state}


def _summarise(videos: list[dict[str, Any]]) -> dict[str, Any]:
    whole = [video for video in videos if video["cosine"] is not None]
    cosines = [video["cosine"] for video in whole]
    return {
        "compared": len(videos),
        "cosine_mean": float(np.mean(cosines)) if whole else None,
        "cosine_median": float(np.median(cosines)) if whole else None,
        "cosine_least": min(cosines, default=None),
        "row_cosine_least": min((video["least_cosine"] for video in whole), default=None),
        "largest_difference": max((video["largest_difference"] for video in whole), default=None),
        "videos_with_rows_unlike": sum(bool(video["rows_unlike"]) for video in videos),
        "videos_damaged": len(videos) - len(whole),
        "videos_of_other_steps": sum(v["steps_in_store"] != v["steps_in_reference"] for v in videos),
    }
