"""The specs of the features that a run was trained on: those that it recorded, or those of its store."""

from pathlib import Path

from pipeline.errors import UserError
from pipeline.store.location import has_store, locate
from pipeline.store.reader import open_store
from pipeline.store.schema import FeatureSpec
from train.runs.config import TrainConfig
from train.runs.features import read_specs
from train.runs.folder import ENVIRONMENT, read_environment


def training_specs(run: Path, config: TrainConfig, store: str | None = None) -> tuple[FeatureSpec, ...]:
    """Return the specs of the features of videos and of questions (without tokens) that `run` reads.

    Runs of earlier versions, and imported ones, recorded none: theirs are those of `store` (None: the run's). Raises
    `UserError` if that is missing, or if its features are not those of the training.
    """
    environment = read_environment(run)
    recorded = environment.get("feature_specs")
    if recorded and store is None:
        return tuple(_parse(run, name, record) for name, record in recorded.items())
    place = store or config.store
    if not place or not has_store(locate(place)):
        where = f"feature store {place} is missing" if place else "it names no feature store"
        raise UserError(
            f"run {run} did not record how its features were extracted, and {where}: pass the store that it was "
            "trained on, or one extracted likewise, as --store"
        )
    specs = read_specs(config.backbone, open_store(place))
    fingerprints = environment.get("store_fingerprints", {})
    for name, spec in specs.items():
        if fingerprints.get(name, spec.fingerprint) != spec.fingerprint:
            raise UserError(
                f"run {run} was trained on {name} with fingerprint {fingerprints[name]}, store {place} has "
                f"{spec.fingerprint}: pass the store that it was trained on as --store"
            )
    return tuple(specs.values())


def _parse(run: Path, name: str, record: object) -> FeatureSpec:
    try:
        return FeatureSpec.from_json(record)  # type: ignore[arg-type]
    except ValueError as error:
        raise UserError(
            f"{run / ENVIRONMENT} is corrupt (the spec of {name}: {error}): pass the store that the run was trained on "
            "as --store"
        ) from None
