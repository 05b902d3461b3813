"""A run is decided before it writes: each feature is idle by itself, choices are inherited, refusals leave no trace."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import run_toys as run_toys_module
import toy_extractors
from run_toys import contents, run_toys

import pipeline.run.settings
from pipeline.errors import UserError
from pipeline.extractors.weights import Network, PublishedFile, WeightsSource
from pipeline.inspection.verify import verify_store
from pipeline.manifests.manifest import load_manifest, save_manifest
from pipeline.store.reader import open_group, open_store
from pipeline.store.schema import State

OTHER = WeightsSource("seeded", seed=1)


@pytest.fixture
def few(toy_manifest: Path, tmp_path: Path) -> Path:
    """The first five videos of the toys, with one question."""
    toys, folder = load_manifest(toy_manifest), tmp_path / "few"
    videos = toys.videos[:5]
    ids = {video.video_id for video in videos}
    question = next(q for split in toys.questions.values() for q in split if q.video_id in ids)
    save_manifest(replace(toys, videos=videos, questions={"test": (question,)}), folder)
    (folder / "videos").symlink_to(toy_manifest / "videos")
    return folder


def with_torch(version: str) -> Any:
    """Compute as under another version of torch."""
    return patch.object(pipeline.run.settings.importlib.metadata, "version", lambda name: version)


@pytest.mark.parametrize(
    ("options", "refusal"),
    [
        ({"weights": OTHER}, "weights.seed is 0 in the store, 1 here"),
        ({"padding": "cycle"}, "sampling.short is pad in the store, cycle here"),
        ({"seconds": 9}, "has 4 seconds per video, not 9: pass --seconds 4"),
        ({"features": ("toy-image", "toy-clip"), "padding": "released"}, "toy-clip samples 4 per second"),
        ({"decoder": "decord:no"}, "cannot be imported"),
    ],
)
def test_a_refused_run_appends_no_video_no_question_and_no_feature(
    options: dict[str, Any], refusal: str, few: Path, toy_manifest: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store.zarr"
    run_toys(few, store, features=("toy-audio",))
    before = contents(store)
    with pytest.raises(UserError, match=refusal):
        run_toys(toy_manifest, store, **{"features": ("toy-audio",), **options})
    assert contents(store) == before


def test_a_run_that_a_worker_refuses_leaves_nothing_where_no_store_was(few: Path, tmp_path: Path) -> None:
    def refuse(client: None, question: Any) -> None:
        raise UserError("no worker answers")

    with patch.object(run_toys_module, "query_workers", refuse), pytest.raises(UserError, match="no worker answers"):
        run_toys(few, tmp_path / "new" / "store.zarr")
    assert not (tmp_path / "new" / "store.zarr").exists()


def test_a_complete_feature_of_another_torch_does_not_hinder_a_new_one(few: Path, tmp_path: Path) -> None:
    store = tmp_path / "store.zarr"
    with with_torch("1.0"):
        run_toys(few, store, features=("toy-image",))
    kept = {path: digest for path, digest in contents(store).items() if path.startswith("features/")}
    assert run_toys(few, store, features=("toy-image", "toy-audio")).is_complete
    after = contents(store)
    assert {path: after[path] for path in kept} == kept
    assert open_store(store).spec("toy-image").constants["machine"]["torch"] == "1.0"


def test_an_accepted_feature_of_which_nothing_is_computed_gets_no_spec(few: Path, tmp_path: Path) -> None:
    store = tmp_path / "store.zarr"
    run_toys(few, store, features=("toy-image",))
    both = ("toy-image", "toy-audio")
    with pytest.raises(UserError, match=r"feature toy-image .* sampling.short is pad in the store, cycle here"):
        run_toys(few, store, features=both, padding="cycle")
    run_toys(few, store, features=both, padding="cycle", accept=("toy-image",))
    assert open_group(store, mode="r")["features/toy-image"].attrs["accepted"] == []
    assert open_store(store).spec("toy-audio").constants["sampling"]["short"] == "cycle"


def test_only_features_with_something_to_compute_are_loaded(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store.zarr"
    run_toys(few, store, features=("toy-image",))
    loaded: list[str] = []
    for kind in (toy_extractors.ToyImage, toy_extractors.ToyAudio):
        monkeypatch.setattr(kind, "load", lambda self, weights, device: loaded.append(self.name) or "")
    run_toys(few, store)
    assert loaded == ["toy-audio"]


def test_questions_alone_need_no_videos(few: Path, tmp_path: Path) -> None:
    (few / "videos").unlink()
    store = tmp_path / "store.zarr"
    summary = run_toys(few, store, features=())
    assert (summary.extracted, summary.encoded) == (0, 1)
    opened = open_store(store)
    assert (opened.video_ids, len(opened.question_rows)) == ([], 1)
    assert opened.question_feature_names[0].startswith("tokens-")


def test_a_run_without_question_features_appends_no_questions(few: Path, toy_manifest: Path, tmp_path: Path) -> None:
    store = tmp_path / "store.zarr"
    run_toys(few, store, features=("toy-audio",))
    before = contents(store)
    loaded = load_manifest(few)
    (question,) = loaded.questions["test"]
    asked = replace(loaded, questions={"test": (replace(question, text="Where is it?"),)})
    save_manifest(asked, few)
    run_toys(few, store, features=("toy-audio",), question_features=())
    assert contents(store) == before


def test_a_run_inherits_the_choices_of_its_own_features(few: Path, tmp_path: Path) -> None:
    store = tmp_path / "store.zarr"
    run_toys(few, store, features=("toy-audio",), padding="cycle")
    run_toys(few, store, features=("toy-image",))
    assert open_store(store).spec("toy-image").constants["sampling"]["short"] == "cycle"
    run_toys(few, store, features=("toy-clip",), padding="pad")
    assert run_toys(few, store, features=("toy-audio",)).extracted == 0
    assert run_toys(few, store, features=("toy-clip",)).extracted == 0
    with pytest.raises(UserError, match=r"choices of --padding \(toy-audio: cycle, toy-clip: pad\): extract them in"):
        run_toys(few, store, features=("toy-audio", "toy-clip"))


def test_accepted_rows_of_another_padding_are_verified_by_their_own_rule(
    few: Path, toy_manifest: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store.zarr"
    run_toys(few, store, features=("toy-audio",), seconds=9)
    options = {"seconds": 9, "padding": "cycle", "accept": ("toy-audio",), "features": ("toy-audio",)}
    run_toys(toy_manifest, store, **options)
    opened = open_store(store)
    is_complete = opened.state("toy-audio") == State.COMPLETE
    assert verify_store(opened) == []
    _, stops = opened.filled_steps("toy-audio")
    assert stops[:5][is_complete[:5]].max() < 9
    assert (stops[5:][is_complete[5:]] == 9).all()
    values = open_group(store, mode="r+")["features/toy-audio/values"]
    row = 5 + int(np.flatnonzero(is_complete[5:])[0])
    values[row, 8] = np.nan
    (problem,) = verify_store(open_store(store))
    assert "values are missing in 1 of 9 steps" in problem.message


def test_rows_of_questions_name_their_spec(few: Path, tmp_path: Path) -> None:
    store = tmp_path / "store.zarr"
    run_toys(few, store, features=())
    loaded = load_manifest(few)
    (question,) = loaded.questions["test"]
    save_manifest(
        replace(loaded, questions={"test": (question, replace(question, question_id="2", text="How many"))}), few
    )
    with patch("pipeline.extractors.question_tokens.QuestionTokens.constants", lambda self: {"version": 2}):
        (stored,) = open_store(store).question_feature_names
        run_toys(few, store, features=(), accept=(stored,))
    versions = {
        text: spec.constants["extractor"]["version"] for text, spec in open_store(store).question_specs(stored).items()
    }
    assert versions == {question.text: 1, "How many": 2}


def test_weights_are_downloaded_once_before_the_workers_start(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Network("toy", (PublishedFile("toy.pth", "http://127.0.0.1:9/toy.pth", "0" * 64),))
    monkeypatch.setattr(toy_extractors.ToyAudio, "networks", (network,), raising=False)
    monkeypatch.setattr(run_toys_module, "query_workers", None)
    store = tmp_path / "store.zarr"
    with pytest.raises(
        UserError, match=r"toy.pth cannot be downloaded .*: put the file from http://127.0.0.1:9/toy.pth"
    ):
        run_toys(few, store, features=("toy-audio",), weights=WeightsSource("pretrained", tmp_path / "cache"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty has no weights of toy: put one of these files there: toy\.pth"):
        run_toys(few, store, features=("toy-audio",), weights=WeightsSource("folder", tmp_path / "empty"))
    assert not store.exists()


def test_a_corrupt_file_is_replaced_by_a_good_one_under_a_new_manifest(few: Path, tmp_path: Path) -> None:
    store, loaded = tmp_path / "store.zarr", load_manifest(few)
    videos = few / "videos"
    originals = {path.name: path.read_bytes() for path in videos.iterdir()}
    videos.unlink()
    videos.mkdir()
    for name, data in originals.items():
        (videos / name).write_bytes(data)
    first, *others = loaded.videos
    (videos / first.path).write_bytes(b"an incomplete download")
    bad = replace(first, sha256=hashlib.sha256(b"an incomplete download").hexdigest())
    save_manifest(replace(loaded, videos=(bad, *others)), few)
    assert not run_toys(few, store, features=("toy-image",)).is_complete
    (videos / first.path).write_bytes(originals[first.path])
    save_manifest(loaded, few)
    assert run_toys(few, store, features=("toy-image",)).extracted == 0
    assert run_toys(few, store, features=("toy-image",), retry_failed=True).is_complete
    assert open_store(store).source_sha256()[0] == first.sha256
    save_manifest(replace(loaded, videos=(bad, *others)), few)
    with pytest.raises(UserError, match="the store was extracted from a file with sha256"):
        run_toys(few, store, features=("toy-image",))


def test_accepting_a_feature_that_the_run_does_not_have_is_refused(few: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--accept nosuch: this run has no such feature: it has .*toy-audio"):
        run_toys(few, tmp_path / "store.zarr", features=("toy-audio",), accept=("nosuch",))


def test_audio_features_name_the_decoder_of_their_audio(few: Path, tmp_path: Path) -> None:
    store = tmp_path / "store.zarr"
    run_toys(few, store, features=("toy-audio",), decoder="decord")
    run_toys(few, store, features=("toy-image",))
    opened = open_store(store)
    assert [opened.spec(name).constants["decoder"]["name"] for name in ("toy-audio", "toy-image")] == ["pyav", "pyav"]
    assert run_toys(few, store, features=("toy-audio",), decoder="torchcodec").extracted == 0
