"""Whether a store keeps its promises: a complete row is whole, an absent or failed one is a hole. It mends nothing."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from pipeline.errors import UserError
from pipeline.store.location import locate
from pipeline.store.reader import FeatureStore, reporting_damage
from pipeline.store.schema import State


def summarise_store(store: FeatureStore) -> dict[str, Any]:
    """Return the document of `mavqa-inspect --json`: features with their states, sizes, descriptions, and failures."""
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
    """Read every value of the store and return what is wrong, a line each; an empty list is a whole store.

    A complete row holds finite numbers in each of its steps and fill in the rest (`pad`) or numbers in all of them
    (`cycle`, `released`); an absent or failed row is all fill; states agree between features and videos. A pending row
    may have values: its run was stopped before it said so. A question has all of a feature's numbers, or none.
    """
    problems = list(_question_problems(store))
    total = len(store.video_ids) * len(store.feature_names)
    for position, name in enumerate(store.feature_names):
        spec, states, values = store.spec(name), store.state(name), store.values(name)
        padded = spec.constants.get("sampling", {}).get("short", "pad") == "pad"
        steps = store.steps(spec.modality)
        presence = store.presence(spec.modality)
        for row, video_id in enumerate(store.video_ids):
            expected = int(steps[row]) if padded else store.seconds
            try:
                with reporting_damage(store.path, f"features/{name}/values"):
                    stored = values[row]
                problem = _row_problem(stored, State(int(states[row])), State(int(presence[row])), expected)
            except UserError as error:
                problem = str(error)
            if problem:
                problems.append(f"{name} of {video_id}: {problem}")
            on_progress(position * len(store.video_ids) + row + 1, total)
    return problems


def _row_problem(values: np.ndarray, state: State, presence: State, steps: int) -> str:
    holes = np.isnan(values).reshape(len(values), -1)
    if state is State.PENDING:
        return ""
    if state is not State.COMPLETE:
        return "" if holes.all() else f"the state is {state.name.lower()}, but there are values"
    if presence is not State.COMPLETE:
        return f"the feature is complete, but the modality is {presence.name.lower()}"
    if steps < 1:
        return f"the state is complete, but it has {steps} steps"
    if holes[:steps].any():
        return f"the state is complete, but {int(holes[:steps].any(axis=1).sum())} of {steps} steps have holes"
    if not holes[steps:].all():
        return f"there are values past its {steps} steps"
    return "" if np.isfinite(values[:steps]).all() else "there are infinite values"


def _question_problems(store: FeatureStore) -> Iterator[str]:
    texts = list(store.question_rows) if store.question_feature_names else []
    for name in store.question_feature_names:
        values, fill = store.question_values(name), store.question_spec(name).fill_value
        for first in range(0, len(texts), values.chunks[0]):
            own = texts[first : first + values.chunks[0]]
            try:
                with reporting_damage(store.path, f"questions/{name}/values"):
                    rows = np.asarray(values[first : first + len(own)]).reshape(len(own), -1)
            except UserError as error:
                yield f"{name} of the questions from {own[0]!r} to {own[-1]!r}: {error}"
                continue
            holes = np.isnan(rows) if np.isnan(fill) else rows == fill
            for row in np.flatnonzero((holes.any(axis=1) & ~holes.all(axis=1)) | np.isinf(rows).any(axis=1)):
                yield f"{name} of question {own[row]!r}: some of its numbers are lost or infinite"


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
