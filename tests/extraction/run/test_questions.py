"""Question features in a store: computed once per text, resumable, mixed only if accepted; other bytes stay equal."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import small_clip
import torch
from run_toys import contents, run_toys

import pipeline.run.questions
from pipeline.errors import UserError
from pipeline.extractors.clip_vit import CLIPSentence, TextEncoder
from pipeline.extractors.registry import make_question_extractor
from pipeline.extractors.weights import WeightsSource
from pipeline.inspection.verify import verify_store
from pipeline.manifests.manifest import Vocabulary, load_manifest, save_manifest
from pipeline.store.reader import open_store
from pipeline.store.schema import tokens_name

SENTENCE, WORDS = "clip-vit-b32-sentence", "clip-vit-b32-words"
OTHER = WeightsSource("seeded", seed=1)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CLIP of two layers and 64 channels, and blocks of a few texts."""
    monkeypatch.setattr(open_clip, "get_model_config", lambda name: small_clip.CONFIG)
    monkeypatch.setattr(pipeline.run.questions, "ROWS_PER_BLOCK", 16)


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of texts in each pass of the network, in order."""
    counts: list[int] = []
    run = TextEncoder._run
    monkeypatch.setattr(TextEncoder, "_run", lambda self, tokens: counts.append(len(tokens)) or run(self, tokens))
    return counts


@pytest.fixture
def manifest(toy_manifest: Path, tmp_path: Path) -> Path:
    """The toys' questions about two of their clips."""
    toys = load_manifest(toy_manifest)
    videos = toys.videos[:2]
    ids = {video.video_id for video in videos}
    all_questions = [question for split in toys.questions.values() for question in split]
    texts = list(dict.fromkeys(question.text for question in all_questions))[:40]
    about = next(question for question in all_questions if question.video_id in ids)
    questions = tuple(
        replace(about, question_id=str(number), text=text) for number, text in enumerate([*texts, *texts[:9]])
    )
    folder = tmp_path / "manifest"
    save_manifest(replace(toys, videos=videos, questions={"test": questions}), folder)
    (folder / "videos").symlink_to(toy_manifest / "videos")
    return folder


def extract_questions(manifest: Path, store: Path, *names: str, **options: object) -> None:
    run_toys(manifest, store, features=("toy-audio",), question_features=names, **options)


def test_new_features_change_no_other_bytes_of_a_store(manifest: Path, tmp_path: Path) -> None:
    store = tmp_path / "store.zarr"
    run_toys(manifest, store)
    before = contents(store)
    run_toys(manifest, store, features=("clip-vit-b32",), question_features=(SENTENCE, WORDS))
    after = contents(store)
    new = {path for path in after if path not in before}
    assert {str(Path(*Path(path).parts[:2])) for path in new} == {
        "features/clip-vit-b32", f"questions/{SENTENCE}", f"questions/{WORDS}"
    }  # fmt: skip
    changed = {path for path in before if before[path] != after[path]}
    assert changed == {"zarr.json"}, "the consolidated metadata list the new features"
    assert verify_store(open_store(store)) == []


def test_each_text_is_encoded_once_for_both_features_and_stored_in_its_row(
    manifest: Path, tmp_path: Path, encoded: list[int]
) -> None:
    store = tmp_path / "store.zarr"
    extract_questions(manifest, store, SENTENCE, "tokens", WORDS)
    assert encoded == [16, 16, 8]
    opened = open_store(store)
    assert len(opened.question_rows) == 40
    texts = sorted(opened.question_rows, key=opened.question_rows.get)
    for name in (SENTENCE, WORDS):
        extractor = make_question_extractor(name, Vocabulary((), ()))
        extractor.load(WeightsSource("seeded"), "cpu")
        values = opened.question_values(name)
        assert values.metadata.dimension_names == ("question", *extractor.dims)
        assert values.dtype == extractor.dtype
        for first in (0, 32):
            np.testing.assert_array_equal(values[first : first + 16], extractor.extract(texts[first : first + 16]))


def test_a_finished_store_loads_no_network_and_changes_no_byte(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store.zarr"
    extract_questions(manifest, store, SENTENCE)
    before = contents(store)
    monkeypatch.setattr(CLIPSentence, "load", lambda *_: pytest.fail("loaded without need"))
    extract_questions(manifest, store, SENTENCE)
    assert contents(store) == before


def test_a_stopped_run_resumes_to_the_same_bytes(
    manifest: Path, tmp_path: Path, encoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, store = tmp_path / "expected.zarr", tmp_path / "store.zarr"
    extract_questions(manifest, expected, SENTENCE, WORDS)
    extract = CLIPSentence.extract
    with monkeypatch.context() as patch:
        patch.setattr(CLIPSentence, "extract", lambda self, texts: extract(self, texts) if len(texts) == 16 else 1 / 0)
        with pytest.raises(ZeroDivisionError):
            extract_questions(manifest, store, SENTENCE, WORDS)
    assert contents(store) != contents(expected)
    encoded.clear()
    extract_questions(manifest, store, SENTENCE, WORDS)
    assert encoded == [8]
    assert contents(store) == contents(expected)


def test_new_texts_are_appended_and_only_they_are_encoded(manifest: Path, tmp_path: Path, encoded: list[int]) -> None:
    store = tmp_path / "store.zarr"
    extract_questions(manifest, store, SENTENCE)
    before = open_store(store).question_values(SENTENCE)[:]
    encoded.clear()
    loaded = load_manifest(manifest)
    first, *others = loaded.questions["test"][:5]
    new = [replace(first, question_id=f"new-{n}", text=f"Where is number {n}?") for n in "123"]
    save_manifest(replace(loaded, questions={"test": (first, *others, *new)}), manifest)
    extract_questions(manifest, store, SENTENCE)
    assert encoded == [3]
    values = open_store(store).question_values(SENTENCE)[:]
    np.testing.assert_array_equal(values[:40], before)
    assert np.isfinite(values[40:]).all()
    assert len(values) == 43


def test_other_weights_are_refused_with_the_difference_unless_accepted(manifest: Path, tmp_path: Path) -> None:
    store = tmp_path / "store.zarr"
    extract_questions(manifest, store, SENTENCE)
    before = contents(store)
    with pytest.raises(UserError, match=f"feature {SENTENCE} .* weights.seed is 0 in the store, 1 here"):
        run_toys(manifest, store, features=(), question_features=(SENTENCE,), weights=OTHER)
    assert contents(store) == before
    run_toys(manifest, store, features=(), question_features=(SENTENCE,), weights=OTHER, accept=(SENTENCE,))
    assert contents(store) == before


def test_tokens_do_not_depend_on_the_choice_of_weights(manifest: Path, tmp_path: Path) -> None:
    store = tmp_path / "store.zarr"
    run_toys(manifest, store, features=(), question_features=("tokens",))
    run_toys(manifest, store, features=(), question_features=("tokens",), weights=OTHER)
    vocabulary = load_manifest(manifest).vocabulary
    names = open_store(store).question_feature_names
    assert names == [tokens_name(vocabulary.tokens, vocabulary.question_length)]


def test_weights_that_give_infinite_values_are_refused(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TextEncoder, "_run", lambda self, tokens: torch.full((len(tokens), 77, 512), 1e9))
    with pytest.raises(UserError, match=f"feature {WORDS}: .*not finite in torch.float16.*use other --weights"):
        extract_questions(manifest, tmp_path / "store.zarr", WORDS)
