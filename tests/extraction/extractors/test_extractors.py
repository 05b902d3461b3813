"""All registered extractors satisfy the interface."""

import hashlib
import pickle
import re
import subprocess
import sys

import numpy as np
import open_clip
import pytest
import small_clip
import torch
from click.testing import CliRunner
from torch import nn
from torchvision.models import ResNet18_Weights
from torchvision.models.video import R2Plus1D_18_Weights

from pipeline.cli.extract import extract
from pipeline.errors import UserError
from pipeline.extractors.inference import fold_batch_norms
from pipeline.extractors.preprocessing import IMAGENET, KINETICS
from pipeline.extractors.registry import EXTRACTORS, QUESTION_EXTRACTORS, make_extractor, make_question_extractor
from pipeline.extractors.weights import WeightsSource
from pipeline.manifests.manifest import Vocabulary
from pipeline.media.timeline import Media, Track
from pipeline.store.schema import FeatureSpec, State, canonical_json

STEPS = 2
VOCABULARY = Vocabulary(("<pad>", "Is", "the", "violin", "playing", "What", "is", "it"), ())
QUESTIONS = ("Is the violin playing?", "What is it?")


def make_media(extractor) -> Media:
    generator = np.random.default_rng(0)
    track = Track(State.COMPLETE, STEPS)
    if extractor.modality == "audio":
        waveform = generator.uniform(-0.1, 0.1, STEPS * 8_000).astype(np.float32)
        return Media(Track(State.ABSENT), track, waveform=waveform, sample_rate_hz=8_000)
    size = extractor.frame_size
    frames = generator.integers(0, 256, (STEPS * size.per_second, size.size, size.size, 3), np.uint8)
    return Media(track, Track(State.ABSENT), {size: frames})


@pytest.mark.parametrize("name", EXTRACTORS)
def test_extractor_is_small_when_pickled_and_returns_the_declared_rows(name):
    pickled = pickle.dumps(make_extractor(name))
    assert len(pickled) < 2000
    extractor = pickle.loads(pickled)  # noqa: S301
    weights_hash = extractor.load(WeightsSource("seeded"), "cpu")
    assert len(weights_hash) in {0, 64}  # 0: an extractor without weights
    rows = extractor.extract(make_media(extractor))
    assert rows.shape == (STEPS, *extractor.shape)
    assert rows.dtype == np.dtype(extractor.dtype)
    assert np.isfinite(rows).all()
    assert (rows[0] != rows[1]).any()


@pytest.mark.parametrize(
    ("ours", "published"),
    [(IMAGENET, ResNet18_Weights.IMAGENET1K_V1), (KINETICS, R2Plus1D_18_Weights.KINETICS400_V1)],
)
def test_normalisation_constants_are_those_of_the_networks_training(ours, published):
    theirs = published.transforms()
    assert ours.constants() == {"mean": list(theirs.mean), "std": list(theirs.std)}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", EXTRACTORS)
def test_rows_on_a_gpu_equal_those_on_the_cpu_within_half_precision(name):
    rows = []
    for device in ("cpu", "cuda"):
        extractor = make_extractor(name)
        extractor.load(WeightsSource("seeded"), device)
        rows.append(extractor.extract(make_media(extractor)).astype(np.float64))
    assert np.linalg.norm(rows[1] - rows[0]) <= 3e-3 * np.linalg.norm(rows[0])


@pytest.mark.parametrize("name", EXTRACTORS)
def test_extractor_matches_the_schema_of_the_store(name):
    extractor = make_extractor(name)
    assert extractor.name == name
    assert len(extractor.dims) == len(extractor.shape)
    spec = FeatureSpec(
        name, extractor.modality, extractor.dims, extractor.shape, extractor.dtype, extractor.constants()
    )
    assert FeatureSpec.from_json(spec.to_json()).fingerprint == spec.fingerprint
    assert "version" in spec.constants
    if EXTRACTORS[name].startswith("pipeline."):
        assert {"batch_size", "precision", "memory_format", "sampling"} <= spec.constants.keys()


@pytest.mark.parametrize("name", QUESTION_EXTRACTORS)
def test_question_extractor_is_small_when_pickled_and_matches_the_schema_of_the_store(name):
    extractor = make_question_extractor(name, VOCABULARY)
    assert len(pickle.dumps(extractor)) < 2000
    assert extractor.name.startswith(name)
    assert extractor.modality == "question"
    assert len(extractor.dims) == len(extractor.shape)
    spec = FeatureSpec(
        extractor.name, "question", extractor.dims, extractor.shape, extractor.dtype, extractor.constants()
    )
    assert FeatureSpec.from_json(spec.to_json()).fingerprint == spec.fingerprint
    assert "version" in spec.constants


@pytest.mark.parametrize("name", QUESTION_EXTRACTORS)
def test_question_extractor_returns_the_declared_rows(name, monkeypatch):
    monkeypatch.setattr(open_clip, "get_model_config", lambda name: small_clip.CONFIG)
    extractor = make_question_extractor(name, VOCABULARY)
    extractor.check(QUESTIONS)
    assert bool(extractor.load(WeightsSource("seeded"), "cpu")) == extractor.uses_weights
    rows = extractor.extract(QUESTIONS)
    assert rows.shape == (2, *extractor.shape)
    assert rows.dtype == np.dtype(extractor.dtype)
    assert np.isfinite(rows).all()
    assert (rows[0] != rows[1]).any()


def test_constants_and_seeded_weights_equal_those_of_existing_stores():
    # The values in existing stores: a change here would make extraction refuse all of them.
    found = {}
    for name in ("resnet18-map", "resnet18-pooled", "vggish"):
        constants = canonical_json(make_extractor(name).constants()).encode()
        found[name] = hashlib.sha256(constants).hexdigest()[:16]
    assert found == {
        "resnet18-map": "502df0fd65638cad",
        "resnet18-pooled": "95d55ed65f9e658e",
        "vggish": "9a07fc96cb23064e",
    }
    assert make_extractor("resnet18-map").load(WeightsSource("seeded"), "cpu").startswith("18541dc1f1541306")


@pytest.mark.parametrize("name", EXTRACTORS)
def test_the_choice_of_normalisation_applies_to_extractors_that_offer_it(name):
    published, trained = (make_extractor(name, choice).constants() for choice in ("published", "trained"))
    if name == "resnet18-map":
        assert published["normalisation"] == KINETICS.constants()
        assert trained["normalisation"] == IMAGENET.constants()
    else:
        assert published == trained


def test_help_lists_all_features():
    shown = " ".join(CliRunner().invoke(extract, ["--help"], terminal_width=400).output.split())
    listed = re.search(r"Of videos: (.*?); of questions: (.*?)\. ", shown)
    assert listed
    assert [part.split(", ") for part in listed.groups()] == [list(EXTRACTORS), list(QUESTION_EXTRACTORS)]


def test_loads_of_one_seed_agree_across_features_of_a_network():
    source = WeightsSource("seeded", seed=4)
    hashes = [make_extractor(name).load(source, "cpu") for name in ("resnet18-map", "resnet18-map", "resnet18-pooled")]
    assert len(set(hashes)) == 1
    assert make_extractor("resnet18-map").load(WeightsSource("seeded", seed=5), "cpu") != hashes[0]


def test_the_error_for_an_unknown_feature_lists_the_known_ones():
    with pytest.raises(UserError, match=r"'resnet19'.*resnet18-map"):
        make_extractor("resnet19")
    with pytest.raises(UserError, match="tokens"):
        make_question_extractor("words", Vocabulary(("<pad>",), ()))


def test_importing_the_package_does_not_import_torch():
    code = "import sys, pipeline.extractors; print({'torch', 'av', 'dask'} & set(sys.modules))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "set()"


@pytest.mark.parametrize(
    ("convolution", "norm", "shape"),
    [(nn.Conv2d, nn.BatchNorm2d, (2, 3, 8, 8)), (nn.Conv3d, nn.BatchNorm3d, (2, 3, 4, 8, 8))],
)
def test_folding_removes_all_batch_norms_and_keeps_the_outputs(convolution, norm, shape):
    module = nn.Sequential(convolution(3, 5, 3, bias=False), norm(5), nn.ReLU())
    module[1].running_mean.uniform_(-0.3, 0.3)
    module[1].running_var.uniform_(0.5, 2.0)
    module.eval().requires_grad_(False)
    folded = fold_batch_norms(module)
    images = torch.rand(shape)
    assert not any(isinstance(part, norm) for part in folded.modules())
    torch.testing.assert_close(folded(images), module(images))
