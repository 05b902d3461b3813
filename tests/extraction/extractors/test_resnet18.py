"""ResNet-18 features equal a plain torchvision forward; batching, normalisation and invalid values."""

import warnings

import numpy as np
import pytest
import torch
import torchvision

from pipeline.extractors.preprocessing import IMAGENET, KINETICS
from pipeline.extractors.resnet18 import ResNet18Map, ResNet18Pooled
from pipeline.extractors.weights import WeightsSource
from pipeline.media.timeline import Media, Track
from pipeline.store.schema import State, canonical_json


def make_frames(count: int, seed: int = 0) -> np.ndarray:
    """Return smooth random frames, uint8 [time, 224, 224, 3]."""
    coarse = torch.rand(count, 3, 7, 7, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.interpolate(coarse, size=224, mode="bilinear")
    return (smooth * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def make_media(extractor, frames: np.ndarray) -> Media:
    return Media(Track(State.COMPLETE, len(frames)), Track(State.ABSENT), {extractor.frame_size: frames})


@pytest.fixture(scope="module")
def reference() -> torchvision.models.ResNet:
    """torchvision's network with random weights and random batch norm statistics."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        network = torchvision.models.resnet18(weights=None)
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.uniform_(-0.3, 0.3)
                module.running_var.uniform_(0.5, 2.0)
                torch.nn.init.uniform_(module.weight, 0.5, 1.2)
                torch.nn.init.uniform_(module.bias, -0.2, 0.2)
    return network.eval()


@pytest.fixture(scope="module")
def weights(reference, tmp_path_factory) -> WeightsSource:
    folder = tmp_path_factory.mktemp("weights")
    torch.save(reference.state_dict(), folder / "resnet18.pth")
    return WeightsSource("folder", folder)


@pytest.fixture(scope="module")
def map_extractor(weights) -> ResNet18Map:
    extractor = ResNet18Map()
    extractor.load(weights, "cpu")
    return extractor


def plain_maps(network: torchvision.models.ResNet, frames: np.ndarray, last_stride: int, mean, std) -> torch.Tensor:
    for convolution in (network.layer4[0].conv1, network.layer4[0].downsample[0]):
        convolution.stride = (last_stride, last_stride)
    images = torch.stack([torchvision.transforms.functional.to_tensor(frame) for frame in frames])
    images = torchvision.transforms.functional.normalize(images, mean, std)
    with torch.no_grad():
        maps = network.maxpool(network.relu(network.bn1(network.conv1(images))))
        return network.layer4(network.layer3(network.layer2(network.layer1(maps))))


def relative_error(found: np.ndarray, expected: torch.Tensor) -> float:
    difference = torch.from_numpy(found).float() - expected
    return (difference.norm() / expected.norm()).item()


def test_maps_equal_a_plain_forward_with_stride_1_in_the_last_stage(reference, map_extractor):
    frames = make_frames(12)
    found = map_extractor.extract(make_media(map_extractor, frames))
    mean, std = (0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)
    expected = plain_maps(reference, frames, 1, mean, std)
    assert found.dtype == np.float16
    assert found.shape == tuple(expected.shape) == (12, 512, 14, 14)
    assert found.flags.c_contiguous
    assert (found >= 0).all()
    assert expected.std() > 0.1
    assert relative_error(found, expected) <= 1e-3


def test_pooled_features_equal_a_plain_forward(reference, weights):
    extractor = ResNet18Pooled()
    extractor.load(weights, "cpu")
    frames = make_frames(11)
    found = extractor.extract(make_media(extractor, frames))
    expected = plain_maps(reference, frames, 2, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)).mean((2, 3))
    assert found.dtype == np.float32
    assert found.shape == (11, 512)
    assert relative_error(found, expected) <= 1e-5
    assert (extractor.frame_size.mode, extractor.frame_size.shorter_side) == ("crop", 256)


@pytest.mark.parametrize("count", range(1, 8))
def test_features_of_a_frame_are_independent_of_the_number_of_frames(map_extractor, count):
    frames = make_frames(13)
    long = map_extractor.extract(make_media(map_extractor, frames))
    np.testing.assert_array_equal(long[:count], map_extractor.extract(make_media(map_extractor, frames[:count])))
    np.testing.assert_array_equal(long[-count:], map_extractor.extract(make_media(map_extractor, frames[-count:])))


def test_read_only_frames_are_accepted_without_a_warning_and_unchanged(map_extractor):
    frames = make_frames(2)
    before = frames.copy()
    frames.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        map_extractor.extract(make_media(map_extractor, frames))
    np.testing.assert_array_equal(frames, before)


def test_imagenet_normalisation_is_an_option_and_part_of_the_fingerprint(weights, map_extractor):
    other = ResNet18Map(normalisation=IMAGENET)
    other.load(weights, "cpu")
    assert ResNet18Map().normalisation == KINETICS
    assert canonical_json(other.constants()) != canonical_json(map_extractor.constants())
    frames = make_frames(1)
    assert (
        other.extract(make_media(other, frames)) != map_extractor.extract(make_media(map_extractor, frames))
    ).mean() > 0.5


def test_values_beyond_float16_raise(reference, tmp_path):
    state = dict(reference.state_dict())
    state["layer4.1.bn2.weight"] = state["layer4.1.bn2.weight"] * 1e6
    torch.save(state, tmp_path / "resnet18.pth")
    extractor = ResNet18Map()
    extractor.load(WeightsSource("folder", tmp_path), "cpu")
    with pytest.raises(FloatingPointError, match="not finite"):
        extractor.extract(make_media(extractor, make_frames(1)))


def test_seeded_maps_are_in_the_range_of_trained_ones():
    extractor = ResNet18Map()
    extractor.load(WeightsSource("seeded"), "cpu")
    maps = extractor.extract(make_media(extractor, make_frames(4))).astype(np.float32)
    assert 0.2 < maps.mean() < 20
    assert maps.max() < 1000
    assert 0.2 < (maps == 0).mean() < 0.6
    assert maps.std(axis=0).mean() > 0.05 * maps.mean()


def test_extract_before_load_raises():
    extractor = ResNet18Map()
    with pytest.raises(RuntimeError, match="before load"):
        extractor.extract(make_media(extractor, make_frames(1)))
