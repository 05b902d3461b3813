"""VGGish: golden log-mel values, an independent forward pass, batching and invalid waveforms."""

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from pipeline.errors import UserError
from pipeline.extractors.networks.log_mel import log_mel, mel_matrix
from pipeline.extractors.networks.vggish import VGGish
from pipeline.extractors.registry import make_extractor
from pipeline.extractors.vggish import VGGishExtractor
from pipeline.extractors.weights import WeightsSource
from pipeline.media.timeline import Media, Track
from pipeline.store.schema import State

CONVOLUTIONS = {0: (1, 64), 3: (64, 128), 6: (128, 256), 8: (256, 256), 11: (256, 512), 13: (512, 512)}
DENSE = {0: (12288, 4096), 2: (4096, 4096), 4: (4096, 128)}


def tone(sample_rate_hz: int, seconds: int = 1, hz: float = 1000.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hz * np.arange(seconds * sample_rate_hz) / sample_rate_hz)


def noise(seconds: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.3, 0.3, seconds * 16_000).astype(np.float32)


def make_media(waveform: np.ndarray, sample_rate_hz: int = 16_000) -> Media:
    steps = len(waveform) // sample_rate_hz
    return Media(Track(State.ABSENT), Track(State.COMPLETE, steps), waveform=waveform, sample_rate_hz=sample_rate_hz)


@pytest.fixture(scope="module")
def seeded() -> VGGishExtractor:
    extractor = VGGishExtractor()
    extractor.load(WeightsSource("seeded"), "cpu")
    return extractor


def test_mel_matrix_has_its_golden_sum_support_and_maximum():
    # Values of the TF release's algorithm, computed independently in numpy.
    matrix = mel_matrix()
    assert matrix.shape == (257, 64)
    assert matrix.sum().item() == pytest.approx(230.913599, abs=1e-6)
    assert int((matrix != 0).sum()) == 461
    assert matrix.max().item() == pytest.approx(0.996191, abs=1e-6)


def test_log_mel_of_silence_is_the_offset_everywhere():
    examples = log_mel(np.zeros(32_000), 16_000)
    assert examples.shape == (2, 96, 64)
    assert examples.dtype == torch.float32
    np.testing.assert_allclose(examples, -4.605170, atol=1e-6)


def test_log_mel_of_a_1_khz_tone_peaks_in_its_band():
    example = log_mel(tone(16_000), 16_000)[0]
    assert example[0].argmax() == 19
    assert example[0, 19].item() == pytest.approx(4.118052, abs=2e-6)
    assert example.mean().item() == pytest.approx(-3.657225, abs=2e-6)


def test_log_mel_of_a_pseudo_random_sequence_has_its_golden_moments():
    n = np.arange(16_000, dtype=np.int64)
    example = log_mel(((n * 1103515245 + 12345) % 65536) / 32768 - 1, 16_000)[0]
    assert example.mean().item() == pytest.approx(1.837277, abs=2e-6)
    assert example.std(unbiased=False).item() == pytest.approx(1.069041, abs=2e-6)


def test_the_example_of_a_second_is_independent_of_other_seconds():
    waveform = noise(3)
    alone = [log_mel(waveform[k * 16_000 : (k + 1) * 16_000], 16_000)[0] for k in range(3)]
    torch.testing.assert_close(log_mel(waveform, 16_000), torch.stack(alone), rtol=0, atol=0)


def test_a_partial_last_second_is_padded_with_zeros():
    waveform = noise(2)
    padded = np.concatenate([waveform[:20_000], np.zeros(12_000, np.float32)])
    torch.testing.assert_close(log_mel(waveform[:20_000], 16_000), log_mel(padded, 16_000), rtol=0, atol=0)


@pytest.mark.parametrize("sample_rate_hz", [8_000, 11_025, 22_050, 44_100, 48_000, 192_000])
def test_a_tone_at_a_common_rate_has_the_log_mel_of_16_khz(sample_rate_hz):
    inner = slice(2, 94)  # Resampling each second separately causes ringing at its edges.
    just_inside_pass_band = 0.425 * min(sample_rate_hz, 16_000)
    for hz in (1000, just_inside_pass_band):
        expected = log_mel(tone(16_000, 2, hz), 16_000)
        found = log_mel(tone(sample_rate_hz, 2, hz), sample_rate_hz)
        assert found.shape == (2, 96, 64)
        assert (found - expected)[:, inner].abs().max() < 1e-4


@pytest.mark.parametrize("sample_rate_hz", [7_999, 44_101, 191_999])
def test_a_tone_at_an_unusual_rate_keeps_its_band(sample_rate_hz):
    expected, found = log_mel(tone(16_000, 2), 16_000), log_mel(tone(sample_rate_hz, 2), sample_rate_hz)
    assert found.shape == (2, 96, 64)
    assert (found - expected)[:, 2:94, 17:22].abs().max() < 0.02


def test_resampling_adds_nothing_above_the_original_nyquist_frequency():
    example = log_mel(noise(1)[:8_000], 8_000)[0]
    assert example[2:94, :40].mean() > 0
    assert example[2:94, 52:].max() < -4.5  # Bands from 4.4 kHz on.


@pytest.mark.parametrize(("shape", "sample_rate_hz"), [((2, 16_000), 16_000), ((16_000,), 0)])
def test_log_mel_rejects_several_channels_and_rate_zero(shape, sample_rate_hz):
    with pytest.raises(ValueError, match="mono"):
        log_mel(np.zeros(shape), sample_rate_hz)


@pytest.mark.real
def test_log_mel_equals_the_tf_release(shared_data: Path):
    # The array is the result of the release's smoke test, a tone at 16 kHz. Its examples are 0.96 s apart, so only the
    # first one can be compared.
    with np.load(shared_data / "fixtures/vggish/logmel_smoke_16k.npz") as file:
        reference = file["examples"]
    found = log_mel(np.sin(2 * np.pi * 1000 * np.arange(0, 3, 1 / 16_000)), 16_000)
    assert np.abs(found[0].numpy() - reference[0]).max() <= 1e-4


def test_network_has_72_141_184_parameters_with_the_published_names():
    with torch.device("meta"):
        state = VGGish().state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == published_shapes()
    assert sum(value.numel() for value in state.values()) == 72_141_184


def test_maps_are_flattened_as_time_mel_channel():
    class IndexMaps(torch.nn.Module):
        def forward(self, examples):
            assert examples.shape == (1, 1, 96, 64)
            time, mel, channel = torch.meshgrid(torch.arange(6), torch.arange(4), torch.arange(512), indexing="ij")
            return (100_000 * time + 1000 * mel + channel).permute(2, 0, 1).unsqueeze(0).contiguous()

    with torch.device("meta"):
        network = VGGish()
    network.features, network.embeddings = IndexMaps(), torch.nn.Identity()
    flat = network(torch.zeros(1, 96, 64))[0]
    assert flat[:2].tolist() == [0, 1]
    assert flat[511:513].tolist() == [511, 1000]
    assert flat[4 * 512].item() == 100_000
    assert (flat.diff() > 0).all()


def test_embeddings_with_weights_from_a_file_equal_an_independent_forward(tmp_path):
    generator = torch.Generator().manual_seed(1)
    state = {name: torch.rand(shape, generator=generator) - 0.5 for name, shape in published_shapes().items()}
    for tensor in state.values():
        tensor *= 2 * (3 / max(1, tensor[0].numel())) ** 0.5
    torch.save(state, tmp_path / "vggish.pth")
    extractor = VGGishExtractor()
    extractor.load(WeightsSource("folder", tmp_path), "cpu")
    (tmp_path / "vggish.pth").unlink()
    found = extractor.extract(make_media(noise(2)))
    expected = plain_forward(state, log_mel(noise(2), 16_000)).numpy()
    assert found.shape == (2, 128)
    assert found.dtype == np.float32
    assert 0.2 < (expected > 0).mean() < 0.8
    assert np.linalg.norm(found - expected) <= 1e-5 * np.linalg.norm(expected)


def test_the_embedding_of_a_second_is_independent_of_the_number_of_seconds(seeded):
    long = seeded.extract(make_media(noise(23)))
    assert long.shape == (23, 128)
    np.testing.assert_array_equal(long[:3], seeded.extract(make_media(noise(23)[: 3 * 16_000])))
    np.testing.assert_array_equal(long[20:], seeded.extract(make_media(noise(23)[20 * 16_000 :])))


def test_seeded_embeddings_differ_between_waveforms(seeded):
    waveforms = [tone(16_000, hz=hz) for hz in (200, 440, 1000, 3000)] + [noise(1), np.zeros(16_000)]
    embeddings = seeded.extract(make_media(np.concatenate(waveforms)))
    assert (embeddings >= 0).all()
    spread = embeddings.std(axis=0).mean() / embeddings.mean()
    assert spread > 0.1


def test_a_read_only_waveform_is_accepted_without_a_warning(seeded):
    waveform = noise(1)
    waveform.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert seeded.extract(make_media(waveform)).shape == (1, 128)


def test_a_waveform_that_is_not_finite_raises(seeded):
    waveform = noise(1)
    waveform[5] = np.nan
    with pytest.raises(FloatingPointError):
        seeded.extract(make_media(waveform))


def test_released_audio_is_read_in_place_of_the_waveform(seeded):
    released = make_extractor("vggish", audio="released")
    released._network = seeded._network
    media = replace(make_media(noise(2)), released_waveform=noise(2, seed=1))
    np.testing.assert_array_equal(seeded.extract(media), seeded.extract(make_media(noise(2))))
    np.testing.assert_array_equal(released.extract(media), seeded.extract(make_media(noise(2, seed=1))))
    with pytest.raises(UserError, match="supplies no released audio: pass --decoder pyav"):
        released.extract(make_media(noise(2)))


def test_released_audio_has_constants_of_its_own():
    default, released = (make_extractor("vggish", audio=choice).constants() for choice in ("resampled", "released"))
    assert default == make_extractor("vggish").constants()
    assert "audio" not in default
    changed = {key for key in released if released[key] != default.get(key)}
    assert changed == {"audio", "resampling", "sampling"}


def test_extract_before_load_raises():
    with pytest.raises(RuntimeError, match="before load"):
        VGGishExtractor().extract(make_media(noise(1)))


def published_shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for index, (inputs, outputs) in CONVOLUTIONS.items():
        shapes |= {f"features.{index}.weight": (outputs, inputs, 3, 3), f"features.{index}.bias": (outputs,)}
    for index, (inputs, outputs) in DENSE.items():
        shapes |= {f"embeddings.{index}.weight": (outputs, inputs), f"embeddings.{index}.bias": (outputs,)}
    return shapes


def plain_forward(state: dict[str, torch.Tensor], examples: torch.Tensor) -> torch.Tensor:
    maps = examples[:, None]
    for index in CONVOLUTIONS:
        maps = functional.conv2d(maps, state[f"features.{index}.weight"], state[f"features.{index}.bias"], padding=1)
        maps = maps.relu()
        if index in (0, 3, 8, 13):
            maps = functional.max_pool2d(maps, 2)
    vectors = torch.einsum("bctm->btmc", maps).reshape(len(maps), -1)
    for index in DENSE:
        vectors = functional.linear(vectors, state[f"embeddings.{index}.weight"], state[f"embeddings.{index}.bias"])
        vectors = vectors.relu()
    return vectors
