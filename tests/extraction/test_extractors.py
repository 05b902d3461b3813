"""Every extractor in the table keeps the promises of the role."""

import pickle
import subprocess
import sys

import numpy as np
import pytest

from pipeline.extractors import EXTRACTORS, make_extractor, make_question_extractor
from pipeline.failure import UserError
from pipeline.manifest import Vocabulary
from pipeline.store.schema import FeatureSpec, State
from pipeline.timeline import Media, Track
from pipeline.weights import WeightsSource

STEPS = 3


def media_for(extractor) -> Media:
    generator = np.random.default_rng(0)
    track = Track(State.COMPLETE, STEPS)
    if extractor.modality == "audio":
        waveform = generator.uniform(-0.1, 0.1, STEPS * 8_000).astype(np.float32)
        return Media(Track(State.ABSENT), track, waveform=waveform, sample_rate_hz=8_000)
    size = extractor.frame_size.size
    frames = generator.integers(0, 256, (STEPS, size, size, 3), np.uint8)
    return Media(track, Track(State.ABSENT), {extractor.frame_size: frames})


@pytest.mark.parametrize("name", EXTRACTORS)
def test_extractor_travels_light_loads_and_gives_the_rows_it_declares(name):
    parcel = pickle.dumps(make_extractor(name))
    assert len(parcel) < 2000
    extractor = pickle.loads(parcel)  # noqa: S301
    weights_hash = extractor.load(WeightsSource("seeded"), "cpu")
    assert len(weights_hash) == 64
    rows = extractor.extract(media_for(extractor))
    assert rows.shape == (STEPS, *extractor.shape)
    assert rows.dtype == np.dtype(extractor.dtype)
    assert np.isfinite(rows).all()
    assert len(np.unique(rows)) > 20


@pytest.mark.parametrize("name", EXTRACTORS)
def test_extractor_fits_the_schema_of_the_store(name):
    extractor = make_extractor(name)
    assert extractor.name == name
    assert len(extractor.dims) == len(extractor.shape)
    spec = FeatureSpec(
        name, extractor.modality, extractor.dims, extractor.shape, extractor.dtype, extractor.constants()
    )
    assert FeatureSpec.from_json(spec.to_json()).fingerprint == spec.fingerprint
    assert {"version", "batch_size", "precision", "memory_format", "sampling"} <= spec.constants.keys()


def test_two_loads_of_a_seed_agree_and_networks_are_shared_by_features():
    source = WeightsSource("seeded", seed=4)
    hashes = [make_extractor(name).load(source, "cpu") for name in ("resnet18-map", "resnet18-map", "resnet18-pooled")]
    assert len(set(hashes)) == 1
    assert make_extractor("resnet18-map").load(WeightsSource("seeded", seed=5), "cpu") != hashes[0]


def test_unknown_features_are_refused_with_the_known_ones():
    with pytest.raises(UserError, match=r"'resnet19'.*resnet18-map"):
        make_extractor("resnet19")
    with pytest.raises(UserError, match="tokens"):
        make_question_extractor("words", Vocabulary(("<pad>",), ()))


def test_the_table_is_light_to_import():
    code = "import sys, pipeline.extractors; print({'torch', 'av', 'dask'} & set(sys.modules))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "set()"
