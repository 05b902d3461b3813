"""Whether a store keeps its promises: a complete row has its features, any other is a hole. It mends nothing."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.failure import UserError
from pipeline.store.reader import FeatureStore, naming_damage
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
            "bytes_stored": _bytes_stored(Path(store.path) / "features" / name),
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
    (`cycle`, `released`); any other row is all fill; states agree between features and videos.
    """
    problems = []
    total = len(store.video_ids) * len(store.feature_names)
    for position, name in enumerate(store.feature_names):
        spec, states, values = store.spec(name), store.state(name), store.values(name)
        padded = spec.constants.get("sampling", {}).get("short", "pad") == "pad"
        steps = store.steps(spec.modality)
        presence = store.presence(spec.modality)
        for row, video_id in enumerate(store.video_ids):
            expected = int(steps[row]) if padded else store.seconds
            try:
                with naming_damage(store.path, f"features/{name}/values"):
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
    if state is not State.COMPLETE:
        return "" if holes.all() else f"the state is {state.name.lower()}, but there are values"
    if presence is not State.COMPLETE:
        return f"the feature is complete, but the modality is {presence.name.lower()}"
    if holes[:steps].any():
        return f"the state is complete, but {int(holes[:steps].any(axis=1).sum())} of {steps} steps have holes"
    if not holes[steps:].all():
        return f"there are values past its {steps} steps"
    return "" if np.isfinite(values[:steps]).all() else "there are infinite values"


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


def _bytes_stored(folder: Path) -> int:
    return sum(os.stat(os.path.join(at, name)).st_size for at, _, names in os.walk(folder) for name in names)
