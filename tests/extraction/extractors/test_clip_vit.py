"""CLIP's features against open_clip's own and against its arithmetic written out, and what a store relies on."""

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
from pipeline.synthetic.dataset import draw_scenes
from pipeline.synthetic.render import render_frame

PLAIN = torch.contiguous_format
SEEDED = WeightsSource("seeded")
QUESTIONS = ("How many instruments are sounding?", "Is the acoustic_guitar louder than the  Cello？", "What is it?")
FED = ("How many instruments are sounding", "Is the acoustic_guitar louder than the Cello", "What is it")


@pytest.fixture(scope="module")
def towers() -> tuple[ImageTower, TextTower]:
    """Both halves, of full size, with seeded weights."""
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
    """Pictures of six scenes, uint8 [frame, 224, 224, 3]."""
    scenes = draw_scenes(10, 4, 0)["train"][:6]
    pictures = [np.ascontiguousarray(render_frame(scene, 12)) for scene in scenes]
    return np.stack([fit(picture, CLIPTokens.frame_size) for picture in pictures])


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CLIP of two layers and 64 channels in place of ViT-B/32."""
    monkeypatch.setattr(open_clip, "get_model_config", lambda name: small_clip.CONFIG)


def normalised(frames: np.ndarray) -> torch.Tensor:
    mean, std = torch.tensor(open_clip.OPENAI_DATASET_MEAN), torch.tensor(open_clip.OPENAI_DATASET_STD)
    return ((torch.tensor(frames) / 255 - mean) / std).permute(0, 3, 1, 2)


def film(frames: np.ndarray) -> Media:
    return Media(Track(State.COMPLETE, len(frames)), Track(State.ABSENT), {CLIPTokens.frame_size: frames})


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


def spread(rows: torch.Tensor) -> float:
    """Return what part of the rows' length is not the same in all of them."""
    return ((rows - rows.mean(0)).norm() / rows.norm()).item()


def test_picture_tokens_are_open_clips_class_token_and_its_patches_normed_and_projected(towers, reference, frames):
    images = normalised(frames)
    with torch.inference_mode():
        found = towers[0](images)
        own = reference.encode_image(images)
        plain = small_clip.image_tokens(towers[0].state_dict(), images)
    assert found.shape == (6, 50, 512)
    assert relative_error(found[:, 0], own) <= 1e-5
    assert relative_error(found, plain) <= 1e-5
    assert own.norm(dim=1).min() > 10
    assert spread(found[:, 0]) > 0.1
    assert spread(found[:, 1:].flatten(0, 1)) > 0.1


def test_text_tokens_are_open_clips_sentence_and_every_position_normed_and_projected(towers, reference):
    indices = open_clip.tokenize(list(FED))
    with torch.inference_mode():
        found = towers[1](indices)
        own = reference.encode_text(indices)
        plain = small_clip.word_tokens(towers[1].state_dict(), indices)
    assert found.shape == (3, 77, 512)
    assert relative_error(found[torch.arange(3), indices.argmax(1)], own) <= 1e-5
    assert relative_error(found, plain) <= 1e-5
    assert spread(own) > 0.1


def test_stored_tokens_are_the_towers_in_half_precision_whatever_follows(small, frames):
    extractor, tower = CLIPTokens(), ImageTower(build_clip(ARCHITECTURE))
    assert extractor.load(SEEDED, "cpu") == load_frozen(tower, IMAGE_NETWORK, SEEDED, "cpu", PLAIN)
    found = extractor.extract(film(frames))
    with torch.inference_mode():
        expected = tower(normalised(frames))
    assert found.dtype == np.float16
    assert relative_error(torch.from_numpy(found).float(), expected) <= 1e-3
    np.testing.assert_array_equal(extractor.extract(film(frames[:2])), found[:2])


def test_frames_are_prepared_as_open_clip_prepares_them():
    picture = np.random.default_rng(0).integers(0, 256, (120, 333, 3), np.uint8)
    transform = open_clip.image_transform(
        224, is_train=False, mean=open_clip.OPENAI_DATASET_MEAN, std=open_clip.OPENAI_DATASET_STD
    )
    expected = transform(Image.fromarray(picture))
    found = normalised(fit(picture, CLIPTokens.frame_size)[None])[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert (NORMALISATION.mean, NORMALISATION.std) == (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)


def test_questions_are_fed_without_their_mark_and_both_features_come_from_one_pass(small, monkeypatch):
    passes = []
    run = TextEncoder._run
    monkeypatch.setattr(TextEncoder, "_run", lambda self, indices: passes.append(indices) or run(self, indices))
    sentence, words = CLIPSentence(), CLIPWords()
    assert sentence.load(SEEDED, "cpu") == words.load(SEEDED, "cpu")
    sentences, every = sentence.extract(QUESTIONS), words.extract(QUESTIONS)
    assert len(passes) == 1
    assert torch.equal(passes[0], open_clip.tokenize(list(FED)))
    assert (sentences.dtype, sentences.shape) == (np.float32, (3, 512))
    assert (every.dtype, every.shape) == (np.float16, (3, 77, 512))
    ends = passes[0].argmax(1)
    np.testing.assert_array_equal(every[np.arange(3), ends], sentences.astype(np.float16))
    np.testing.assert_array_equal(sentence.extract(QUESTIONS[:1]), sentences[:1])


def test_a_text_of_more_than_77_tokens_is_cut_and_keeps_its_end(small):
    extractor = CLIPSentence()
    extractor.load(SEEDED, "cpu")
    long = "violin " * 90
    assert open_clip.tokenize(long)[0, -1] == open_clip.tokenize("violin").max()
    cut, longer, other = extractor.extract([long, long + " cello", "cello " + long])
    np.testing.assert_array_equal(cut, longer)
    assert np.abs(cut - other).max() > 1e-3


def test_no_questions_give_no_rows(small):
    for name, shape in (("clip-vit-b32-sentence", (0, 512)), ("clip-vit-b32-words", (0, 77, 512))):
        extractor = make_question_extractor(name, Vocabulary(("<pad>",), ()))
        extractor.load(SEEDED, "cpu")
        assert extractor.extract([]).shape == shape


def test_the_network_of_questions_goes_with_its_last_user(small):
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


def test_extracting_before_loading_is_a_bug(frames):
    for extractor, given in ((CLIPTokens(), film(frames)), (CLIPWords(), QUESTIONS), (CLIPSentence(), QUESTIONS)):
        with pytest.raises(RuntimeError, match="before load"):
            extractor.extract(given)


def test_the_published_file_is_the_one_that_open_clip_knows():
    (file,) = IMAGE_NETWORK.published
    assert (file,) == TEXT_NETWORK.published
    assert file.url == open_clip.get_pretrained_url("ViT-B-32", "openai")
    assert file.url.split("/")[-2:] == [file.sha256, file.name]


def whole_state() -> dict[str, torch.Tensor]:
    """A small CLIP's tensors, none of them 0 or 1: no norm and no bias is passed over unseen."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        state = open_clip.CLIP(**open_clip.get_model_config(ARCHITECTURE)).state_dict()
        return {name: value + 0.1 * torch.randn_like(value) for name, value in state.items()}


def test_a_folders_own_file_holds_both_halves_and_each_reads_its_own(small, frames, tmp_path):
    state = whole_state()
    torch.save(state, tmp_path / "clip-vit-b32.pth")
    source = WeightsSource("folder", tmp_path)
    image, words = make_extractor("clip-vit-b32"), make_question_extractor("clip-vit-b32-words", Vocabulary((), ()))
    assert image.load(source, "cpu") != words.load(source, "cpu")
    expected = small_clip.word_tokens(state, open_clip.tokenize(list(FED)))
    assert relative_error(torch.from_numpy(words.extract(QUESTIONS)).float(), expected) <= 1e-3
    expected = small_clip.image_tokens(state, normalised(frames))
    assert relative_error(torch.from_numpy(image.extract(film(frames))).float(), expected) <= 1e-3
    torch.save({**state, "visual.extra": torch.zeros(1)}, tmp_path / "clip-vit-b32.pth")
    with pytest.raises(UserError, match=r"unexpected: visual\.extra"):
        make_extractor("clip-vit-b32").load(source, "cpu")


class Holder(torch.nn.Module):
    """What holds the tensors of a state dict under the same names, as OpenAI's archive does."""

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


def test_the_published_archive_is_read_as_data_and_gives_the_same_weights(small, tmp_path):
    state = {name: value.half() for name, value in whole_state().items()}
    torch.save(state, tmp_path / "clip-vit-b32.pth")
    sizes = {name: torch.tensor(77) for name in ("input_resolution", "context_length", "vocab_size")}
    archive = tmp_path / "cache" / "ViT-B-32.pt"
    archive.parent.mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.trace(Holder({**state, **sizes}), torch.zeros(1)).save(archive)
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    published = (replace(IMAGE_NETWORK.published[0], url=archive.as_uri(), sha256=digest),)
    for network, tower in ((IMAGE_NETWORK, ImageTower), (TEXT_NETWORK, TextTower)):
        of_archive, of_folder = (
            load_frozen(tower(build_clip(ARCHITECTURE)), replace(network, published=published), source, "cpu", PLAIN)
            for source in (WeightsSource("pretrained", archive.parent), WeightsSource("folder", tmp_path))
        )
        assert of_archive == of_folder
    with archive.open("ab") as file:
        file.write(b"x")
    with pytest.raises(UserError, match=digest):
        load_state(WeightsSource("pretrained", archive.parent), replace(IMAGE_NETWORK, published=published), {})
