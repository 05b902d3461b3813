"""Verify a store: complete rows have all their values, absent and failed rows have none. Nothing is repaired."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from pipeline.errors import UserError
from pipeline.store.location import locate
from pipeline.store.reader import FeatureStore, reporting_damage
from pipeline.store.schema import State


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
            "spec": spec.to_json(),
        }
    return {
        "format": 1,
        "seconds": store.seconds,
        "videos": len(store.video_ids),
        "features": features,
        "failures": list(_failures(store)),
    }


def verify_store(store: FeatureStore, on_progress: Callable[[int, int], None] = lambda done, total: None) -> list[str]:
    """Read every value of the store and return its problems, one line each; the list is empty if there are none.

    A complete row must have finite values in its steps and the fill value before and after them (`pad`), or finite
    values in all steps (`cycle`, `released`). An absent or failed row must have only the fill value. The states of
    features and videos must agree. A pending row may have values, written before its run was stopped. A question must
    have all values of a feature or none.
    """
    problems = list(_question_problems(store))
    total = len(store.video_ids) * len(store.feature_names)
    for position, name in enumerate(store.feature_names):
        spec, states, values = store.spec(name), store.state(name), store.values(name)
        firsts, stops = store.filled_steps(name)
        presence = store.presence(spec.modality)
        for row, video_id in enumerate(store.video_ids):
            filled = slice(int(firsts[row]), int(stops[row]))
            try:
                with reporting_damage(store.path, f"features/{name}/values"):
                    stored = values[row]
                problem = _row_problem(stored, State(int(states[row])), State(int(presence[row])), filled)
            except UserError as error:
                problem = str(error)
            if problem:
                problems.append(f"{name} of {video_id}: {problem}")
            on_progress(position * len(store.video_ids) + row + 1, total)
    return problems


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


def _question_problems(store: FeatureStore) -> Iterator[str]:
    texts = list(store.question_rows) if store.question_feature_names else []
    for name in store.question_feature_names:
        values, fill = store.question_values(name), store.question_spec(name).fill_value
        for first in range(0, len(texts), values.chunks[0]):
            chunk = texts[first : first + values.chunks[0]]
            try:
                with reporting_damage(store.path, f"questions/{name}/values"):
                    rows = np.asarray(values[first : first + len(chunk)]).reshape(len(chunk), -1)
            except UserError as error:
                yield f"{name} of the questions from {chunk[0]!r} to {chunk[-1]!r}: {error}"
                continue
            is_missing = np.isnan(rows) if np.isnan(fill) else rows == fill
            is_partial = is_missing.any(axis=1) & ~is_missing.all(axis=1)
            for row in np.flatnonzero(is_partial | np.isinf(rows).any(axis=1)):
                yield f"{name} of question {chunk[row]!r}: some values are missing or infinite"


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
