"""Verify a store: complete rows have the values that were computed, others have none. Nothing is repaired."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr

from pipeline.errors import UserError, one_line
from pipeline.store.location import locate
from pipeline.store.reader import CORRUPT, CORRUPT_VALUES, FeatureStore, reporting_damage
from pipeline.store.schema import MODALITIES, State
from pipeline.store.seal import METADATA, NOT_AS_SEALED, SEAL, compute_seal, digest_row, digest_rows, original_metadata


def summarise_store(store: FeatureStore) -> dict[str, Any]:
    """Return the document of `mavqa-inspect --json`: features with states, sizes and specs, and the failures."""
    features = {}
    for name in store.feature_names:
        spec, values, states = store.spec(name), store.values(name), store.state(name)
        features[name] = {
            "shape": list(values.shape),
            "dtype": spec.dtype,
            **{state.name.lower(): int((states == state).sum()) for state in State},
            "bytes_stored": locate(store.path).bytes_stored(f"features/{name}"),
            "fingerprint": store.fingerprint(name),
            "digest": digest_rows(digest for digest in store.digests(name) if digest),
            "spec": spec.to_json(),
            "accepted": [
                {"rows": int((store.made_by(name) == index).sum()), "spec": other.to_json()}
                for index, other in enumerate(store.specs(name))
                if index
            ],
        }
    return {
        "format": 1,
        "seconds": store.seconds,
        "longest_seconds": max(int(store.steps(modality).max(initial=0)) for modality in MODALITIES),
        "videos": len(store.video_ids),
        "is_sealed": store.is_sealed,
        "digest": store.digest,
        "features": features,
        "failures": list(_failures(store)),
    }


@dataclass(frozen=True)
class Problem:
    """What is wrong with a store.

    `feature`: the feature that it concerns, "" for the store itself. `row`: the row of a video, -1 for questions.
    """

    message: str
    feature: str = ""
    row: int = -1


def verify_store(
    store: FeatureStore, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> list[Problem]:
    """Read everything in the store and return its problems; the list is empty if there are none.

    A complete row must have its digest, finite values in its steps and the fill value before and after them (`pad`), or
    finite values in all steps (`cycle`, `released`). Another row must have only the fill value, and no digest; one that
    is pending may have values, written before its run was stopped. The states of features and videos must agree. A
    question that has a digest must have its values. Coordinates must be the store's ids, texts and seconds. Metadata
    and index arrays must be those that were sealed at the end of the last run, and the consolidated metadata a copy of
    the original; a store whose run was stopped has no seal to compare with.
    """
    problems = [*_seal_problems(store), *_coordinate_problems(store), *_question_problems(store)]
    total = len(store.video_ids) * len(store.feature_names)
    for position, name in enumerate(store.feature_names):
        spec, states, values, digests = store.spec(name), store.state(name), store.values(name), store.digests(name)
        firsts, stops = store.filled_steps(name)
        presence = store.presence(spec.modality)
        for row, video_id in enumerate(store.video_ids):
            filled = slice(int(firsts[row]), int(stops[row]))
            state = State(int(states[row]))
            try:
                with reporting_damage(store.path, f"features/{name}/values"):
                    stored = values[row]
                problem = _row_problem(stored, state, State(int(presence[row])), filled)
                expected = digest_row(name, video_id, stored[: filled.stop]) if state is State.COMPLETE else ""
                if not problem and state is not State.PENDING and digests[row] != expected:
                    problem = "its values are not those that were computed for it: their digest differs"
            except UserError as error:
                problem = str(error)
            if problem:
                problems.append(Problem(f"{name} of {video_id}: {problem}", name, row))
            on_progress(position * len(store.video_ids) + row + 1, total)
    return problems


def _seal_problems(store: FeatureStore) -> Iterator[Problem]:
    """Yield what is wrong with metadata and index arrays."""
    location = locate(store.path)
    try:
        root = zarr.open_group(location.zarr_store(), mode="r", use_consolidated=False)
        found = dict(original_metadata(location, root))
        document = json.loads(location.read(METADATA))
        seal = compute_seal(root)
    except (*CORRUPT, *CORRUPT_VALUES) as error:
        yield Problem(f"metadata or index arrays cannot be read: {one_line(error)}")
        return
    if SEAL not in root.attrs:
        # A stopped run leaves index arrays and a consolidated copy of which each may be older than the other.
        return
    copies = (document.get("consolidated_metadata") or {}).get("metadata", {})
    for path in sorted({*found, *copies} if copies else ()):
        copy = {key: value for key, value in copies.get(path, {}).items() if key != "consolidated_metadata"}
        if copy != found.get(path):
            yield Problem(f"{path}: its metadata is not that of the consolidated copy")
    if root.attrs[SEAL] != seal:
        yield Problem(NOT_AS_SEALED)


def _coordinate_problems(store: FeatureStore) -> Iterator[Problem]:
    """Yield the coordinates that are not those of the store: xarray would select other rows by them."""
    expected: dict[str, list[Any]] = {
        "video": store.video_ids,
        "time": list(range(store.seconds)),
        "question": list(store.question_rows),
    }
    for path, rows in store.coordinates():
        name = path.rpartition("/")[2]
        if rows[: len(expected[name])] != expected[name]:
            yield Problem(f"{path}: the coordinate is not that of the store's rows")


def _row_problem(values: np.ndarray, state: State, presence: State, filled: slice) -> str:
    is_missing = np.isnan(values).reshape(len(values), -1)
    if state is State.PENDING:
        return ""
    if state is not State.COMPLETE:
        return "" if is_missing.all() else f"the state is {state.name.lower()}, but the row has values"
    if presence is not State.COMPLETE:
        return f"the feature is complete, but the modality is {presence.name.lower()}"
    count = filled.stop - filled.start
    if count < 1:
        return f"the state is complete, but it has {count} steps"
    incomplete = int(is_missing[filled].any(axis=1).sum())
    if incomplete:
        return f"the state is complete, but values are missing in {incomplete} of {count} steps"
    if not is_missing[: filled.start].all():
        return f"the row has values before its first step, {filled.start}"
    if not is_missing[filled.stop :].all():
        return f"the row has values after its {filled.stop} steps"
    return "" if np.isfinite(values[filled]).all() else "the row has infinite values"


def _question_problems(store: FeatureStore) -> Iterator[Problem]:
    texts = list(store.question_rows) if store.question_feature_names else []
    for name in store.question_feature_names:
        values, digests = store.question_values(name), store.question_digests(name)
        for first in range(0, len(texts), values.chunks[0]):
            chunk = texts[first : first + values.chunks[0]]
            try:
                with reporting_damage(store.path, f"questions/{name}/values"):
                    rows = np.asarray(values[first : first + len(chunk)])
            except UserError as error:
                yield Problem(f"{name} of the questions from {chunk[0]!r} to {chunk[-1]!r}: {error}", name)
                continue
            for text, row in zip(chunk, rows, strict=True):
                if text in digests and digests[text] != digest_row(name, text, row):
                    yield Problem(
                        f"{name} of question {text!r}: its values are not those that were computed for it", name
                    )


def _failures(store: FeatureStore) -> Iterator[dict[str, str]]:
    for modality in ("visual", "audio"):
        reasons = store.reasons(modality)
        for row in np.flatnonzero(store.presence(modality) == State.FAILED):
            yield {"video_id": store.video_ids[row], "modality": modality, "reason": reasons[row]}
    for name in store.feature_names:
        modality = store.spec(name).modality
        reasons = store.feature_reasons(name)
        own = (store.state(name) == State.FAILED) & (store.presence(modality) != State.FAILED)
        for row in np.flatnonzero(own):
            yield {"video_id": store.video_ids[row], "modality": modality, "reason": reasons[row]}
