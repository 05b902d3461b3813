"""Features of one file in memory: the same bytes as in a store, by the specs of that store, or refused."""

from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import open_clip
import pytest
import run_toys
import small_clip
import toy_extractors
from media_maker import steady, write_clip

import pipeline.extractors.registry
from pipeline.errors import UserError
from pipeline.extractors.weights import WeightsSource
from pipeline.manifests.manifest import Manifest, Question, Video, Vocabulary, save_manifest
from pipeline.run.in_memory import InMemoryExtractor
from pipeline.store.reader import FeatureStore, open_store
from pipeline.store.schema import FeatureSpec, State

TEXT = "What plays ?"
WORDS = Vocabulary(("<pad>", "What", "plays"), ("flute",))
REAL = ("resnet18-map", "vggish")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of a clip with both modalities, one whose audio starts late, and one without audio."""
    folder = tmp_path_factory.mktemp("clips")
    (folder / "videos").mkdir()
    write_clip(folder / "videos" / "both.mp4", steady(2.5), (0, 2.5))
    write_clip(folder / "videos" / "late.mp4", steady(3), (1.2, 3))
    write_clip(folder / "videos" / "mute.mp4", steady(2))
    names = ("both", "late", "mute")
    question = Question("1", "both", TEXT, TEXT, "flute", "", "")
    videos = tuple(Video(name, f"{name}.mp4") for name in names)
    save_manifest(Manifest("clips", "1", "none", videos, {"train": (question,)}, WORDS), folder)
    return folder


def extract(clips: Path, store: Path, **options: object) -> FeatureStore:
    run_toys.run_toys(clips, store, **options)
    return open_store(store)


def specs_of(store: FeatureStore) -> list[FeatureSpec]:
    return [store.spec(name) for name in store.feature_names]


def toys() -> object:
    table = {**toy_extractors.TABLE, **toy_extractors.OPTIONAL}
    return patch.dict(pipeline.extractors.registry.EXTRACTORS, table)


def same_rows(ours: FeatureStore, stored: FeatureStore, video: str) -> None:
    """Check that all that readers see of the video is the same in both stores."""
    row = stored.rows[video]
    for modality in ("audio", "visual"):
        for read in (FeatureStore.presence, FeatureStore.steps, FeatureStore.first_steps, FeatureStore.reasons):
            assert read(ours, modality)[0] == read(stored, modality)[row], (video, modality)
    assert ours.source_sha256() == [stored.source_sha256()[row]]
    for name in stored.feature_names:
        assert ours.state(name)[0] == stored.state(name)[row]
        assert ours.spec(name) == stored.spec(name)
        ours_values, theirs = np.asarray(ours.values(name)[0]), np.asarray(stored.values(name)[row])
        assert ours_values.dtype == theirs.dtype
        assert ours_values.tobytes() == theirs.tobytes(), (video, name)


def test_the_networks_features_of_a_file_are_the_bytes_of_the_store(clips, tmp_path):
    stored = extract(clips, tmp_path / "store.zarr", features=REAL)
    with InMemoryExtractor(specs_of(stored), WORDS) as extractor:
        assert extractor.differences == ()
        ours = extractor.extract(clips / "videos" / "late.mp4", [TEXT]).store
    same_rows(ours, stored, "late")
    (tokens,) = stored.question_feature_names
    assert ours.question_feature_names == [tokens]
    row = np.asarray(stored.question_values(tokens)[stored.question_rows[TEXT]])
    assert np.array_equal(ours.question_values(tokens)[0], row)


@pytest.mark.parametrize(
    "choices",
    [{}, {"padding": "cycle"}, {"audio": "released"}, {"normalisation": "trained"}, {"seconds": 2}],
    ids=str,
)
def test_every_choice_of_the_extraction_is_taken_from_the_specs(choices, clips, tmp_path):
    features = ("toy-image", "toy-audio", "toy-clip")
    stored = extract(clips, tmp_path / "store.zarr", features=features, **choices)
    with toys(), InMemoryExtractor(specs_of(stored)) as extractor:
        for video in stored.video_ids:
            same_rows(extractor.extract(clips / "videos" / f"{video}.mp4").store, stored, video)


def test_the_seed_of_seeded_weights_is_that_of_the_specs_and_other_weights_are_refused(clips, tmp_path):
    stored = extract(clips, tmp_path / "store.zarr", features=("toy-audio",), weights=WeightsSource("seeded", seed=3))
    with toys(), InMemoryExtractor(specs_of(stored)) as extractor:
        same_rows(extractor.extract(clips / "videos" / "both.mp4").store, stored, "both")
    with toys(), InMemoryExtractor(specs_of(stored), weights="seeded") as other, pytest.raises(UserError) as refused:
        other.extract(clips / "videos" / "both.mp4")
    assert "weights.seed is 3 in the store, 0 here" in str(refused.value)
    assert "--weights" in str(refused.value)


@pytest.fixture(scope="module")
def toy_specs(clips, tmp_path_factory) -> list[FeatureSpec]:
    store = tmp_path_factory.mktemp("toy") / "store.zarr"
    return specs_of(extract(clips, store, features=("toy-image", "toy-audio")))


def changed(spec: FeatureSpec, group: str, **values: object) -> FeatureSpec:
    return replace(spec, constants={**spec.constants, group: {**spec.constants.get(group, {}), **values}})


def test_what_changes_only_rounding_is_said_and_other_settings_are_refused(toy_specs):
    with toys():
        differences = InMemoryExtractor([changed(spec, "machine", torch="1.0") for spec in toy_specs]).differences
        assert [text.partition(" is ")[0] for text in differences] == ["machine.torch"]
        with pytest.raises(UserError, match=r"extractor\.version is 0 in the store, 1 here.*version of mavqa"):
            InMemoryExtractor([changed(spec, "extractor", version=0) for spec in toy_specs])
        one_padded = [changed(toy_specs[0], "sampling", short="cycle"), toy_specs[1]]
        with pytest.raises(
            UserError, match=r"different values of sampling\.short \(toy-audio: cycle, toy-image: pad\)"
        ):
            InMemoryExtractor(one_padded)
        with pytest.raises(UserError, match=r"has no sampling\.seconds"):
            InMemoryExtractor([replace(spec, constants={}) for spec in toy_specs])
        with pytest.raises(UserError, match="unknown decoder 'pyavv'"):
            InMemoryExtractor([changed(spec, "decoder", name="pyavv") for spec in toy_specs]).extract(Path("a.mp4"))


def test_missing_and_odd_modalities_are_found_and_the_threads_are_set_back(toy_specs, tmp_path):
    import torch

    dark, corrupt = tmp_path / "dark.mp4", tmp_path / "corrupt.mp4"
    with patch("media_maker.draw", lambda *size: np.zeros((128, 192, 3), np.uint8)):
        write_clip(dark, steady(2))
    corrupt.write_bytes(b"no media" * 1000)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    with toys(), InMemoryExtractor(toy_specs) as extractor:
        found = extractor.extract(dark)
        assert (found.hints, found.store.presence("audio")[0]) == ({"visual": "black"}, State.ABSENT)
        assert torch.get_num_threads() == 2
        with patch("media_maker.make_waveform", lambda start, stop, rate: np.zeros(round((stop - start) * rate), "f4")):
            write_clip(tmp_path / "quiet.mp4", steady(2), (0, 2))
        assert extractor.extract(tmp_path / "quiet.mp4").hints == {"audio": "silent"}
        lost = extractor.extract(corrupt).store
    torch.set_num_threads(before)
    assert (lost.presence("audio")[0], lost.presence("visual")[0]) == (State.FAILED, State.FAILED)
    assert all(lost.reasons(modality)[0] for modality in ("audio", "visual"))


def test_question_features_of_a_network_are_those_of_the_store(clips, tmp_path, monkeypatch):
    monkeypatch.setattr(open_clip, "get_model_config", lambda name: small_clip.CONFIG)
    sentence = "clip-vit-b32-sentence"
    stored = extract(clips, tmp_path / "store.zarr", features=("toy-audio",), question_features=("tokens", sentence))
    specs = [*specs_of(stored), stored.question_spec(sentence)]
    with toys(), InMemoryExtractor(specs) as extractor:
        ours = extractor.extract(clips / "videos" / "both.mp4", ["What else ?", TEXT, TEXT]).store
    assert ours.question_feature_names == [sentence]
    assert list(ours.question_rows) == ["What else ?", TEXT]
    row = np.asarray(stored.question_values(sentence)[stored.question_rows[TEXT]])
    assert np.array_equal(ours.question_values(sentence)[1], row)
    assert ours.question_spec(sentence) == stored.question_spec(sentence)
    other = changed(stored.question_spec(sentence), "weights", sha256="00")
    with (
        toys(),
        InMemoryExtractor([*specs_of(stored), other]) as extractor,
        pytest.raises(UserError, match="sha256 is 00"),
    ):
        extractor.extract(clips / "videos" / "both.mp4", [TEXT])
