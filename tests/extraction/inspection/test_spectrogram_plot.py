"""`mavqa-inspect --spectrogram`: the mel spectrogram and the stored audio features on a common axis of seconds."""

import json
from pathlib import Path

import media_maker
import numpy as np
import pytest
from click.testing import CliRunner
from matplotlib import pyplot
from run_toys import SECONDS, run_toys

from pipeline.cli.inspect import inspect
from pipeline.extractors.networks.vggish_constants import HIGHEST_HZ
from pipeline.inspection import spectrogram_plot
from pipeline.manifests.manifest import save_manifest
from pipeline.manifests.sources.folder import build
from pipeline.store.reader import FeatureStore, open_store
from pipeline.store.schema import State


@pytest.fixture(scope="module")
def store(toy_manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    path = tmp_path_factory.mktemp("spectrogram") / "store.zarr"
    run_toys(toy_manifest, path)
    return open_store(path)


def video_of(store: FeatureStore, folder: Path, state: State) -> Path:
    row = int(np.flatnonzero(store.state("toy-audio") == state)[0])
    return folder / "videos" / f"{store.video_ids[row]}.mp4"


def plot(store: FeatureStore, video: Path, image: Path):
    options = ["--spectrogram", video, "--picture", image]
    return CliRunner().invoke(inspect, [store.path, *map(str, options)])


def test_the_spectrogram_is_above_the_stored_features_on_the_same_seconds(store, toy_manifest, tmp_path, monkeypatch):
    monkeypatch.setattr(pyplot, "close", lambda figure: None)
    video = video_of(store, toy_manifest, State.COMPLETE)
    shown = plot(store, video, tmp_path / "audio.png")
    assert shown.exit_code == 0, shown.output
    assert shown.output.strip() == str(tmp_path / "audio.png")
    assert pyplot.imread(tmp_path / "audio.png").ndim == 3
    spectrogram, features = pyplot.gcf().axes
    decibels = spectrogram.collections[0].get_array()
    assert decibels.shape[0] == 64
    assert decibels.max() - decibels.min() > 20
    assert spectrogram.get_ylim()[1] == pytest.approx(HIGHEST_HZ, rel=0.03)
    values = store.values("toy-audio")[store.rows[video.stem]]
    assert np.array_equal(features.images[0].get_array(), values[:SECONDS].T)
    assert tuple(features.images[0].get_extent()) == (0, SECONDS, 0, values.shape[1])
    assert features.get_xlim() == spectrogram.get_xlim()
    assert "toy-audio" in features.get_ylabel()


def test_a_video_without_audio_and_an_unknown_video_raise(store, toy_manifest, tmp_path):
    silent = plot(store, video_of(store, toy_manifest, State.ABSENT), tmp_path / "none.png")
    assert silent.exit_code == 2
    assert "audio is absent: choose a video with audio" in silent.output
    stranger = plot(store, toy_manifest / "videos" / "stranger.mp4", tmp_path / "none.png")
    assert stranger.exit_code == 2
    assert "does not contain video 'stranger'" in stranger.output
    assert not (tmp_path / "none.png").exists()


def test_nested_videos_are_found_by_their_path_and_by_their_content_if_several_ids_fit(tmp_path):
    paths = ["a.mp4", "videos/a.mp4", "sub/deep/b.mp4"]
    for seconds, path in enumerate(paths, start=1):
        (tmp_path / "videos" / path).parent.mkdir(parents=True, exist_ok=True)
        media_maker.write_clip(tmp_path / "videos" / path, audio=(0, seconds))
    save_manifest(build("clips", tmp_path / "videos").manifest, tmp_path)
    run_toys(tmp_path, tmp_path / "store.zarr", ("toy-audio",), question_features=())
    nested = open_store(tmp_path / "store.zarr")
    found = [spectrogram_plot._find_id(tmp_path / "videos" / path, nested) for path in paths]
    assert found == ["a", "videos__a", "sub__deep__b"]
    assert plot(nested, tmp_path / "videos" / "sub" / "deep" / "b.mp4", tmp_path / "b.png").exit_code == 0


def test_the_json_document_contains_the_path_of_the_image(store, toy_manifest, tmp_path):
    options = ["--spectrogram", video_of(store, toy_manifest, State.COMPLETE), "--picture", tmp_path / "p.png"]
    shown = CliRunner().invoke(inspect, [store.path, *map(str, options), "--json"])
    assert json.loads(shown.stdout) == {"format": 1, "picture": str(tmp_path / "p.png")}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gone/p.png", "gone does not exist: create it, or name another"),
        ("p.xyz", "end the name in .png or"),
        ("p", "unknown image format"),
    ],
)
def test_the_error_for_an_image_that_cannot_be_written_is_one_line(store, toy_manifest, tmp_path, name, message):
    shown = plot(store, video_of(store, toy_manifest, State.COMPLETE), tmp_path / name)
    assert shown.exit_code == 2
    assert message in shown.output
    assert len(shown.output.splitlines()) == 1
