"""Whether what a run makes may join what a feature already holds: the same description, or one knowingly accepted."""

from collections.abc import Collection, Sequence

from pipeline.errors import UserError
from pipeline.store.schema import FeatureSpec, differences
from pipeline.store.writer import FEATURES, StoreWriter


def settle_description(
    writer: StoreWriter,
    spec: FeatureSpec,
    accepted: Collection[str],
    ignore: Sequence[str] = (),
    group: str = FEATURES,
    is_idle: bool = False,
) -> int:
    """Return which of the stored descriptions of its feature `spec` is, 0 for a feature that is not there yet.

    A new one is recorded where `accepted` names the feature, unless the run is idle: it makes no row of the feature,
    and `spec` is not whole. `ignore` names constants that are not compared.
    Raises `UserError` that says what differs where it was not accepted.
    """
    known = writer.feature_specs(spec.name, group)
    matches = [index for index, other in enumerate(known) if not differences(other, spec, tuple(ignore))]
    if matches or not known:
        return matches[0] if matches else 0
    if spec.name in accepted:
        if not is_idle:
            writer.accept(spec, group)
        return len(known)
    listed = "; ".join(differences(known[0], spec, tuple(ignore)))
    raise UserError(
        f"feature {spec.name} in {writer.path} was made differently: {listed}. Use the same settings, "
        f"another --store, or --accept {spec.name} to mix them knowingly"
    )
