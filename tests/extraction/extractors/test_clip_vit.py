"""CLIP features equal those of open_clip and of a plain reimplementation; batching, weights and their files."""

import gc
import hashlib
import warnings
import weakref
from dataclasses import replace

import numpy as np
import open_clip
import pytest
import small_clip
import torch
from PIL import Image

from pipeline.errors import UserError
from pipeline.extractors.clip_vit import (
    ARCHITECTURE,
    IMAGE_NETWORK,
    NORMALISATION,
    TEXT_NETWORK,
    CLIPSentence,
    CLIPTokens,
    CLIPWords,
    TextEncoder,
)
from pipeline.extractors.inference import load_frozen
from pipeline.extractors.networks.clip import ImageTower, TextTower, build_clip
from pipeline.extractors.registry import make_extractor, make_question_extractor
from pipeline.extractors.weights import WeightsSource, load_state
from pipeline.manifests.manifest import Vocabulary
from pipeline.media.image import fit
from pipeline.media.timeline import Media, Track
from pipeline.store.schema import State
from pipeline.synthetic.dataset import SceneSettings, sample_scenes
from pipeline.synthetic.render import render_frame

PLAIN = torch.contiguous_format
SEEDED = WeightsSource("seeded")
QUESTIONS = ("How many instruments are sounding?", "Is the acoustic_guitar louder than the  Cello？", "What is it?")
PREPARED = ("How many instruments are sounding", "Is the acoustic_guitar louder than the Cello", "What is it")


@pytest.fixture(scope="module")
def towers() -> tuple[ImageTower, TextTower]:
    """Both encoders at full size, with seeded weights."""
    image, text = ImageTower(build_clip(ARCHITECTURE)), TextTower(build_clip(ARCHITECTURE))
    load_frozen(image, IMAGE_NETWORK, SEEDED, "cpu", PLAIN)
    load_frozen(text, TEXT_NETWORK, SEEDED, "cpu", PLAIN)
    return image, text


@pytest.fixture(scope="module")
def reference(towers) -> open_clip.CLIP:
    """open_clip's network with the same weights."""
    clip = build_clip(ARCHITECTURE)
    state = {**towers[0].state_dict(), **towers[1].state_dict(), "logit_scale": torch.tensor(0.0)}
    clip.load_state_dict(state, assign=True)
    clip.attn_mask = torch.full((77, 77), -torch.inf).triu(1)
    return clip.eval()


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    """Frames of six scenes, uint8 [frame, 224, 224, 3]."""
    scenes = sample_scenes(10, SceneSettings(4, 0))["train"][:6]
    rendered = [np.ascontiguousarray(render_frame(scene, 12)) for scene in scenes]
    return np.stack([fit(frame, CLIPTokens.frame_size) for frame in rendered])


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CLIP of two layers and 64 channels in place of ViT-B/32."""
    monkeypatch.setattr(open_clip, "get_model_config", lambda name: small_clip.CONFIG)


def normalised(frames: np.ndarray) -> torch.Tensor:
    mean, std = torch.tensor(open_clip.OPENAI_DATASET_MEAN), torch.tensor(open_clip.OPENAI_DATASET_STD)
    return ((torch.tensor(frames) / 255 - mean) / std).permute(0, 3, 1, 2)


def make_media(frames: np.ndarray) -> Media:
    return Media(Track(State.COMPLETE, len(frames)), Track(State.ABSENT), {CLIPTokens.frame_size: frames})


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


def relative_spread(rows: torch.Tensor) -> float:
    """Return the norm of the rows' deviations from their mean, relative to the norm of the rows."""
    return ((rows - rows.mean(0)).norm() / rows.norm()).item()


def test_image_tokens_are_the_class_token_of_open_clip_and_projected_patches(towers, reference, frames):
    images = normalised(frames)
    with torch.inference_mode():
        found = towers[0](images)
        own = reference.encode_image(images)
        plain = small_clip.image_tokens(towers[0].state_dict(), images)
    assert found.shape == (6, 50, 512)
    assert relative_error(found[:, 0], own) <= 1e-5
    assert relative_error(found, plain) <= 1e-5
    assert own.norm(dim=1).min() > 10
    assert relative_spread(found[:, 0]) > 0.1
    assert relative_spread(found[:, 1:].flatten(0, 1)) > 0.1


def test_text_tokens_are_the_sentence_of_open_clip_and_all_projected_positions(towers, reference):
    indices = open_clip.tokenize(list(PREPARED))
    with torch.inference_mode():
        found = towers[1](indices)
        own = reference.encode_text(indices)
        plain = small_clip.word_tokens(towers[1].state_dict(), indices)
    assert found.shape == (3, 77, 512)
    assert relative_error(found[torch.arange(3), indices.argmax(1)], own) <= 1e-5
    assert relative_error(found, plain) <= 1e-5
    assert relative_spread(own) > 0.1


def test_extracted_tokens_are_those_of_the_tower_in_float16_and_independent_of_batching(small, frames):
    extractor, tower = CLIPTokens(), ImageTower(build_clip(ARCHITECTURE))
    assert extractor.load(SEEDED, "cpu") == load_frozen(tower, IMAGE_NETWORK, SEEDED, "cpu", PLAIN)
    found = extractor.extract(make_media(frames))
    with torch.inference_mode():
        expected = tower(normalised(frames))
    assert found.dtype == np.float16
    assert relative_error(torch.from_numpy(found).float(), expected) <= 1e-3
    np.testing.assert_array_equal(extractor.extract(make_media(frames[:2])), found[:2])


def test_frames_are_preprocessed_as_in_open_clip():
    frame = np.random.default_rng(0).integers(0, 256, (120, 333, 3), np.uint8)
    transform = open_clip.image_transform(
        224, is_train=False, mean=open_clip.OPENAI_DATASET_MEAN, std=open_clip.OPENAI_DATASET_STD
    )
    expected = transform(Image.fromarray(frame))
    found = normalised(fit(frame, CLIPTokens.frame_size)[None])[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert (NORMALISATION.mean, NORMALISATION.std) == (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)


def test_questions_lose_their_question_mark_and_both_features_share_one_pass(small, monkeypatch):
    passes = []
    run = TextEncoder._run
    monkeypatch.setattr(TextEncoder, "_run", lambda self, indices: passes.append(indices) or run(self, indices))
    sentence, words = CLIPSentence(), CLIPWords()
    assert sentence.load(SEEDED, "cpu") == words.load(SEEDED, "cpu")
    sentences, positions = sentence.extract(QUESTIONS), words.extract(QUESTIONS)
    assert len(passes) == 1
    assert torch.equal(passes[0], open_clip.tokenize(list(PREPARED)))
    assert (sentences.dtype, sentences.shape) == (np.float32, (3, 512))
    assert (positions.dtype, positions.shape) == (np.float16, (3, 77, 512))
    ends = passes[0].argmax(1)
    np.testing.assert_array_equal(positions[np.arange(3), ends], sentences.astype(np.float16))
    np.testing.assert_array_equal(sentence.extract(QUESTIONS[:1]), sentences[:1])


def test_a_text_of_more_than_77_tokens_is_truncated_before_its_end_token(small):
    extractor = CLIPSentence()
    extractor.load(SEEDED, "cpu")
    long = "violin " * 90
    assert open_clip.tokenize(long)[0, -1] == open_clip.tokenize("violin").max()
    truncated, longer, other = extractor.extract([long, long + " cello", "cello " + long])
    np.testing.assert_array_equal(truncated, longer)
    assert np.abs(truncated - other).max() > 1e-3


def test_no_questions_return_no_rows(small):
    for name, shape in (("clip-vit-b32-sentence", (0, 512)), ("clip-vit-b32-words", (0, 77, 512))):
        extractor = make_question_extractor(name, Vocabulary(("<pad>",), ()))
        extractor.load(SEEDED, "cpu")
        assert extractor.extract([]).shape == shape


def test_the_text_encoder_is_freed_with_its_last_user(small):
    sentence, words = CLIPSentence(), CLIPWords()
    sentence.load(SEEDED, "cpu")
    words.load(SEEDED, "cpu")
    network = weakref.ref(words._encoder)
    del sentence
    gc.collect()
    assert network() is not None
    del words
    gc.collect()
    assert network() is None


def test_extract_before_load_raises(frames):
    for extractor, inputs in (
        (CLIPTokens(), make_media(frames)),
        (CLIPWords(), QUESTIONS),
        (CLIPSentence(), QUESTIONS),
    ):
        with pytest.raises(RuntimeError, match="before load"):
            extractor.extract(inputs)


def test_the_published_file_is_that_of_open_clip():
    (file,) = IMAGE_NETWORK.published
    assert (file,) == TEXT_NETWORK.published
    assert file.url == open_clip.get_pretrained_url("ViT-B-32", "openai")
    assert file.url.split("/")[-2:] == [file.sha256, file.name]


def noisy_state() -> dict[str, torch.Tensor]:
    """Return the tensors of a small CLIP, none of them 0 or 1, so that every norm and bias affects the result."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        state = open_clip.CLIP(**open_clip.get_model_config(ARCHITECTURE)).state_dict()
        return {name: value + 0.1 * torch.randn_like(value) for name, value in state.items()}


def test_a_custom_file_contains_both_encoders_and_each_reads_its_own_tensors(small, frames, tmp_path):
    state = noisy_state()
    torch.save(state, tmp_path / "clip-vit-b32.pth")
    source = WeightsSource("folder", tmp_path)
    image, words = make_extractor("clip-vit-b32"), make_question_extractor("clip-vit-b32-words", Vocabulary((), ()))
    assert image.load(source, "cpu") != words.load(source, "cpu")
    expected = small_clip.word_tokens(state, open_clip.tokenize(list(PREPARED)))
    assert relative_error(torch.from_numpy(words.extract(QUESTIONS)).float(), expected) <= 1e-3
    expected = small_clip.image_tokens(state, normalised(frames))
    assert relative_error(torch.from_numpy(image.extract(make_media(frames))).float(), expected) <= 1e-3
    torch.save({**state, "visual.extra": torch.zeros(1)}, tmp_path / "clip-vit-b32.pth")
    with pytest.raises(UserError, match=r"unexpected: visual\.extra"):
        make_extractor("clip-vit-b32").load(source, "cpu")


class StateModule(torch.nn.Module):
    """A module with the tensors of a state dict under the same names, like OpenAI's archive."""

    def __init__(self, state: dict[str, torch.Tensor]) -> None:
        super().__init__()
        for name, value in state.items():
            owner = self
            *path, last = name.split(".")
            for part in path:
                if not hasattr(owner, part):
                    owner.add_module(part, torch.nn.Module())
                owner = getattr(owner, part)
            owner.register_buffer(last, value)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images


def test_the_published_archive_is_read_as_data_and_has_the_same_weights(small, tmp_path):
    state = {name: value.half() for name, value in noisy_state().items()}
    torch.save(state, tmp_path / "clip-vit-b32.pth")
    sizes = {name: torch.tensor(77) for name in ("input_resolution", "context_length", "vocab_size")}
    archive = tmp_path / "cache" / "ViT-B-32.pt"
    archive.parent.mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.trace(StateModule({**state, **sizes}), torch.zeros(1)).save(archive)
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    published = (replace(IMAGE_NETWORK.published[0], url=archive.as_uri(), sha256=digest),)
    for network, tower in ((IMAGE_NETWORK, ImageTower), (TEXT_NETWORK, TextTower)):
        archive_hash, folder_hash = (
            load_frozen(tower(build_clip(ARCHITECTURE)), replace(network, published=published), source, "cpu", PLAIN)
            for source in (WeightsSource("pretrained", archive.parent), WeightsSource("folder", tmp_path))
        )
        assert archive_hash == folder_hash
    with archive.open("ab") as file:
        file.write(b"x")
    with pytest.raises(UserError, match=digest):
        load_state(WeightsSource("pretrained", archive.parent), replace(IMAGE_NETWORK, published=published), {})
