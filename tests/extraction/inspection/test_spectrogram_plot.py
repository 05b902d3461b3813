"""`mavqa-inspect --spectrogram`: the sound of the file and what the store holds of it, on one axis of seconds."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from matplotlib import pyplot
from run_toys import SECONDS, run_toys

from pipeline.cli.inspect import inspect
from pipeline.extractors.networks.vggish_constants import HIGHEST_HZ
from pipeline.store.reader import FeatureStore, open_store
from pipeline.store.schema import State


@pytest.fixture(scope="module")
def store(toy_manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    path = tmp_path_factory.mktemp("spectrogram") / "store.zarr"
    run_toys(toy_manifest, path)
    return open_store(path)


def video_of(store: FeatureStore, folder: Path, state: State) -> Path:
    row = int(np.flatnonzero(store.state("toy-sound") == state)[0])
    return folder / "videos" / f"{store.video_ids[row]}.mp4"


def draw(store: FeatureStore, video: Path, picture: Path):
    options = ["--spectrogram", video, "--picture", picture]
    return CliRunner().invoke(inspect, [store.path, *map(str, options)])


def test_the_sound_stands_above_the_stored_features_on_the_same_seconds(store, toy_manifest, tmp_path, monkeypatch):
    monkeypatch.setattr(pyplot, "close", lambda figure: None)
    video = video_of(store, toy_manifest, State.COMPLETE)
    shown = draw(store, video, tmp_path / "sound.png")
    assert shown.exit_code == 0, shown.output
    assert shown.output.strip() == str(tmp_path / "sound.png")
    assert pyplot.imread(tmp_path / "sound.png").ndim == 3
    sound, features = pyplot.gcf().axes
    loudness = sound.collections[0].get_array()
    assert loudness.shape[0] == 64
    assert loudness.max() - loudness.min() > 20
    assert sound.get_ylim()[1] == pytest.approx(HIGHEST_HZ, rel=0.03)
    values = store.values("toy-sound")[store.rows[video.stem]]
    assert np.array_equal(features.images[0].get_array(), values[:SECONDS].T)
    assert tuple(features.images[0].get_extent()) == (0, SECONDS, 0, values.shape[1])
    assert features.get_xlim() == sound.get_xlim()
    assert "toy-sound" in features.get_ylabel()


def test_a_silent_file_and_a_stranger_are_refused_in_one_line(store, toy_manifest, tmp_path):
    silent = draw(store, video_of(store, toy_manifest, State.ABSENT), tmp_path / "none.png")
    assert silent.exit_code == 2
    assert "the sound is absent: there is nothing to draw" in silent.output
    stranger = draw(store, toy_manifest / "videos" / "stranger.mp4", tmp_path / "none.png")
    assert stranger.exit_code == 2
    assert "holds no video 'stranger'" in stranger.output
    assert not (tmp_path / "none.png").exists()


def test_the_place_of_the_picture_is_told_to_programs(store, toy_manifest, tmp_path):
    options = ["--spectrogram", video_of(store, toy_manifest, State.COMPLETE), "--picture", tmp_path / "p.png"]
    shown = CliRunner().invoke(inspect, [store.path, *map(str, options), "--json"])
    assert json.loads(shown.stdout) == {"format": 1, "picture": str(tmp_path / "p.png")}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gone/p.png", "gone is not there: make it, or name another"),
        ("p.xyz", "end its name in .png or"),
        ("p", "no such kind is drawn"),
    ],
)
def test_a_picture_that_cannot_be_written_is_refused_in_one_line(store, toy_manifest, tmp_path, name, message):
    shown = draw(store, video_of(store, toy_manifest, State.COMPLETE), tmp_path / name)
    assert shown.exit_code == 2
    assert message in shown.output
    assert len(shown.output.splitlines()) == 1
