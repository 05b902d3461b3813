"""A run is only judged on features like those it was trained on."""

from pathlib import Path

import pytest
from test_fit import train
from tiny_store import TinyStore, make_manifest, make_store

from pipeline.failure import UserError
from pipeline.store.schema import FeatureSpec
from train.features import FeatureBank
from train.outcomes import evaluate_run


class Weighted(TinyStore):
    """A store whose features name the weights that made them."""

    weights = "aaaa"

    def spec(self, feature: str) -> FeatureSpec:
        plain = super().spec(feature)
        constants = {"weights": {"weights": "file", "sha256": self.weights}}
        return FeatureSpec(plain.name, plain.modality, plain.dims, plain.shape, plain.dtype, constants)


def test_features_of_other_weights_are_refused_with_both_hashes(tmp_path: Path) -> None:
    store = make_store(videos=60)
    store.__class__ = Weighted
    train(tmp_path / "run", store, epochs=1)
    manifest, bank = make_manifest(store), FeatureBank(store)
    assert evaluate_run(tmp_path / "run", manifest, bank, "val", ("complete",)) == ["complete"]
    store.weights = "bbbb"
    with pytest.raises(UserError, match="weights aaaa, store tiny holds it of weights bbbb"):
        evaluate_run(tmp_path / "run", manifest, bank, "val", ("complete",))
