"""Compare the features of one real clip with reference features (fixtures made with v-iashin/video_features).

Without published weights only shapes, signs and norms are compared; with the weights in torch hub's cache, the values.
"""

from pathlib import Path

import av
import numpy as np
import pytest
import torch
from torch.nn import functional

from pipeline.extractors import clip_vit, r2plus1d
from pipeline.extractors.registry import make_extractor
from pipeline.extractors.weights import Network, WeightsSource, hub_cache
from pipeline.media.decoders.pyav.decoder import PyAVDecoder
from pipeline.media.image import fit
from pipeline.media.timeline import DecodeRequest, Media, Track
from pipeline.store.schema import State

CLIP, FIXTURE = "media/natural_research/v_GGSY1Qvo990.mp4", "fixtures/v_GGSY1Qvo990_reference.npz"
# The difference due to the colours of two decoders and the last bits of two machines.
TOLERANCE = 0.05


@pytest.fixture(scope="module")
def reference(shared_data: Path) -> dict[str, np.ndarray]:
    with np.load(shared_data / FIXTURE) as arrays:
        return dict(arrays)


def cached(network: Network) -> WeightsSource:
    """Return the published weights, or skip the test if they are not in torch hub's cache; nothing is downloaded."""
    if not (hub_cache() / network.published[0].name).is_file():
        pytest.skip(f"torch hub's cache has no {network.published[0].name}")
    return WeightsSource("folder", hub_cache())


def decode(shared_data: Path, name: str) -> Media:
    request = DecodeRequest(seconds=60, frame_sizes=(make_extractor(name).frame_size,), wants_audio=False)
    return PyAVDecoder().decode(shared_data / CLIP, request)


def read_frames(path: Path) -> tuple[list[float], list[np.ndarray]]:
    """Return the times relative to t0, and the images, of all frames."""
    with av.open(str(path)) as container:
        starts = [float(s.start_time * s.time_base) for s in (*container.streams.video, *container.streams.audio)]
        frames = list(container.decode(video=0))
        return [frame.time - min(starts) for frame in frames], [frame.to_ndarray(format="rgb24") for frame in frames]


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.real
def test_the_reference_has_our_channel_counts_signs_and_unnormalised_length(reference: dict[str, np.ndarray]) -> None:
    for key, name in (("clip_vitb32_allframes", "clip-vit-b32"), ("r2plus1d_18", "r2plus1d"), ("vggish", "vggish")):
        assert reference[key].shape[1] == make_extractor(name).shape[-1]
    assert (reference["r2plus1d_18"] >= 0).all()
    assert (reference["vggish"] >= 0).all()
    lengths = np.linalg.norm(reference["clip_vitb32_allframes"], axis=1)
    assert lengths.min() > 5, "published CLIP features do not have unit length, and neither do ours"


@pytest.mark.real
def test_a_real_video_has_one_clip_of_sixteen_frames_per_second(shared_data: Path) -> None:
    path = shared_data / CLIP
    times, images = read_frames(path)
    media = decode(shared_data, "r2plus1d")
    size = make_extractor("r2plus1d").frame_size
    assert (media.visual.state, media.visual.steps) == (State.COMPLETE, 19)
    assert media.frames[size].shape == (19 * 16, 112, 112, 3)
    for row in (0, 1, 100, 200, 303):
        sampled_at = row // 16 + (row % 16 + 0.5) / 16
        shown = max((number for number, time in enumerate(times) if time <= sampled_at), default=0)
        np.testing.assert_array_equal(media.frames[size][row], fit(images[shown], size))


@pytest.mark.real
@pytest.mark.weights
def test_class_tokens_equal_the_reference(shared_data: Path, reference: dict[str, np.ndarray]) -> None:
    extractor = make_extractor("clip-vit-b32")
    extractor.load(cached(clip_vit.IMAGE_NETWORK), "cpu")
    media = decode(shared_data, "clip-vit-b32")
    found = extractor.extract(media)[:, 0].astype(np.float32)
    times, _ = read_frames(shared_data / CLIP)
    shown = [max(n for n, time in enumerate(times) if time <= step + 0.5) for step in range(media.visual.steps)]
    assert relative_error(found, reference["clip_vitb32_allframes"][shown]) <= TOLERANCE


@pytest.mark.real
@pytest.mark.weights
def test_clips_of_sixteen_frames_equal_the_reference(shared_data: Path, reference: dict[str, np.ndarray]) -> None:
    extractor = make_extractor("r2plus1d")
    extractor.load(cached(r2plus1d.NETWORK), "cpu")
    _, images = read_frames(shared_data / CLIP)
    # The reference's clips are 16 consecutive frames, resized to 128 x 171 without antialiasing and centre-cropped.
    consecutive = torch.tensor(np.stack(images[: 3 * 16])).permute(0, 3, 1, 2).float()
    resized = functional.interpolate(consecutive, size=(128, 171), mode="bilinear", align_corners=False)
    frames = resized[:, :, 8:120, 30:142].round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    track = Track(State.COMPLETE, 3)
    found = extractor.extract(Media(track, Track(State.ABSENT), {extractor.frame_size: frames}))
    assert relative_error(found, reference["r2plus1d_18"][:3]) <= TOLERANCE
