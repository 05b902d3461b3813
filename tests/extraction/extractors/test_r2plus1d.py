"""R(2+1)D features equal a plain torchvision forward over clips of sixteen frames."""

import numpy as np
import pytest
import torch
from torchvision.models.video import R2Plus1D_18_Weights, r2plus1d_18

from pipeline.extractors.r2plus1d import NETWORK, R2Plus1D
from pipeline.extractors.weights import WeightsSource
from pipeline.media.image import fit
from pipeline.media.timeline import FrameSize, Media, Track
from pipeline.store.schema import State
from pipeline.synthetic.dataset import SceneSettings, sample_scenes
from pipeline.synthetic.render import render_frame

SMALL = FrameSize("stretch", 40)


def render_clips(seconds: int) -> np.ndarray:
    """Return frames of one scene, uint8 [time x 16, 40, 40, 3]; the network accepts any size, small ones are faster."""
    scene = sample_scenes(10, SceneSettings(4, 0))["train"][0]
    rendered = [np.ascontiguousarray(render_frame(scene, index)) for index in range(16 * seconds)]
    return np.stack([fit(frame, SMALL) for frame in rendered])


def make_media(frames: np.ndarray) -> Media:
    return Media(Track(State.COMPLETE, len(frames) // 16), Track(State.ABSENT), {R2Plus1D.frame_size: frames})


@pytest.fixture(scope="module")
def reference() -> torch.nn.Module:
    """torchvision's network with random weights and random batch norm statistics."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        network = r2plus1d_18(weights=None)
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm3d):
                module.running_mean.uniform_(-0.3, 0.3)
                module.running_var.uniform_(0.5, 2.0)
                torch.nn.init.uniform_(module.weight, 0.5, 1.2)
                torch.nn.init.uniform_(module.bias, -0.2, 0.2)
    return network.eval()


@pytest.fixture(scope="module")
def extractor(reference, tmp_path_factory) -> R2Plus1D:
    folder = tmp_path_factory.mktemp("weights")
    torch.save(reference.state_dict(), folder / "r2plus1d.pth")
    extractor = R2Plus1D()
    extractor.load(WeightsSource("folder", folder), "cpu")
    return extractor


def test_features_equal_a_plain_forward_over_the_clip_of_each_second(reference, extractor):
    frames = render_clips(2)
    found = extractor.extract(make_media(frames))
    mean = torch.tensor((0.43216, 0.394666, 0.37645)).view(3, 1, 1, 1)
    std = torch.tensor((0.22803, 0.22145, 0.216989)).view(3, 1, 1, 1)
    clip = (torch.tensor(frames[16:]).permute(3, 0, 1, 2) / 255 - mean) / std
    outputs = []
    handle = reference.avgpool.register_forward_hook(lambda module, inputs, pooled: outputs.append(pooled))
    with torch.inference_mode():
        reference(clip[None])
    handle.remove()
    expected = outputs[0].flatten().numpy()
    assert (found.dtype, found.shape) == (np.float32, (2, 512))
    assert (found >= 0).all()
    assert np.linalg.norm(found[1] - expected) <= 1e-5 * np.linalg.norm(expected)


def test_features_depend_on_motion_and_its_direction(extractor):
    frames = render_clips(1)
    backwards, still = frames[::-1], np.repeat(frames[:1], 16, axis=0)
    found = extractor.extract(make_media(np.concatenate([frames, backwards, still])))
    assert np.abs(found[0] - found[1]).max() > 1e-3 * found.max()
    assert np.abs(found[0] - found[2]).max() > 1e-3 * found.max()


def test_features_of_a_clip_are_independent_of_the_number_of_clips(extractor):
    frames = render_clips(3)
    np.testing.assert_array_equal(
        extractor.extract(make_media(frames[:16]))[0], extractor.extract(make_media(frames))[0]
    )


def test_the_published_file_is_that_of_torchvision_with_the_hash_in_its_name():
    (file,) = NETWORK.published
    assert file.url == R2Plus1D_18_Weights.KINETICS400_V1.url
    assert file.name == f"r2plus1d_18-{file.sha256}.pth"


def test_extract_before_load_raises():
    with pytest.raises(RuntimeError, match="before load"):
        R2Plus1D().extract(make_media(np.zeros((16, 112, 112, 3), np.uint8)))
