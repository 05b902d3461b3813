"""`mavqa-inspect --reference`: comparing stored features with arrays of any length and order of axes."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from run_toys import run_toys
from writing import writing

from pipeline.cli.inspect import inspect
from pipeline.errors import UserError
from pipeline.inspection.compare import compare_with_reference
from pipeline.store.reader import FeatureStore, open_store
from pipeline.store.schema import FeatureSpec, State
from pipeline.store.writer import FeatureRecord, VideoRecord, write_rows


@pytest.fixture(scope="module")
def store(toy_manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    path = tmp_path_factory.mktemp("reference") / "store.zarr"
    run_toys(toy_manifest, path)
    return open_store(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "arrays").mkdir()
    return tmp_path / "arrays"


def list_complete(store: FeatureStore, feature: str) -> list[str]:
    return [store.video_ids[row] for row in np.flatnonzero(store.state(feature) == State.COMPLETE)]


def read_stored(store: FeatureStore, feature: str, video_id: str) -> np.ndarray:
    return np.asarray(store.values(feature)[store.rows[video_id]]).astype(np.float32)


def call(store: FeatureStore, *arguments: object) -> Result:
    return CliRunner().invoke(inspect, [store.path, *map(str, arguments)])


def test_equal_arrays_have_cosine_1_and_videos_missing_from_either_side_are_listed(
    store: FeatureStore, folder: Path
) -> None:
    first, second, *others = list_complete(store, "toy-audio")
    silent = store.video_ids[int(np.flatnonzero(store.state("toy-audio") == State.ABSENT)[0])]
    for video_id in (first, second):
        np.save(folder / f"{video_id}.npy", read_stored(store, "toy-audio", video_id))
    for name in (silent, "stranger"):
        np.save(folder / f"{name}.npy", np.ones((4, 2), np.float32))
    found = compare_with_reference(store, "toy-audio", folder)
    assert [video["cosine"] for video in found["videos"]] == [pytest.approx(1, abs=1e-12)] * 2
    assert found["summary"]["largest_difference"] == 0
    assert found["only_in_store"] == others
    assert {entry["video_id"]: entry["state"] for entry in found["only_in_reference"]} == {
        silent: "absent",
        "stranger": "unknown",
    }


def test_differing_rows_are_listed_and_their_video_comes_first(store: FeatureStore, folder: Path) -> None:
    for video_id in list_complete(store, "toy-audio"):
        np.save(folder / f"{video_id}.npy", read_stored(store, "toy-audio", video_id))
    changed = list_complete(store, "toy-audio")[3]
    values = read_stored(store, "toy-audio", changed)
    values[2] *= -1
    values[1, 1] += 0.25
    np.save(folder / f"{changed}.npy", values)
    worst, second, *_ = compare_with_reference(store, "toy-audio", folder)["videos"]
    before = read_stored(store, "toy-audio", changed)
    assert (worst["video_id"], worst["least_cosine_row"], worst["largest_difference_row"]) == (changed, 2, 2)
    assert worst["least_cosine"] == pytest.approx(-1)
    assert worst["largest_difference"] == pytest.approx(2 * abs(before[2]).max())
    assert 2 in worst["rows_unlike"]
    assert 0 not in worst["rows_unlike"]
    original, modified = before.ravel().astype(float), values.ravel().astype(float)
    assert worst["cosine"] == pytest.approx(original @ modified / np.linalg.norm(original) / np.linalg.norm(modified))
    assert second["rows_unlike"] == []


def test_only_the_common_first_steps_are_compared(store: FeatureStore, folder: Path) -> None:
    short, long = list_complete(store, "toy-audio")[:2]
    np.save(folder / f"{short}.npy", read_stored(store, "toy-audio", short)[:3])
    longer = np.concatenate([read_stored(store, "toy-audio", long), np.full((2, 2), 9, np.float32)])
    np.save(folder / f"{long}.npy", longer)
    found = {video["video_id"]: video for video in compare_with_reference(store, "toy-audio", folder)["videos"]}
    steps = {name: (v["steps_in_store"], v["steps_in_reference"], v["steps_compared"]) for name, v in found.items()}
    assert steps == {short: (4, 3, 3), long: (4, 6, 4)}
    assert all(video["largest_difference"] == 0 for video in found.values())


def test_steps_before_the_first_one_are_not_compared(tmp_path: Path, folder: Path) -> None:
    spec = FeatureSpec("loudness", "audio", ("channel",), (3,), "float32", {})
    values = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    values[:2] = np.nan
    both, none = dict.fromkeys(("audio", "visual"), State.COMPLETE), dict.fromkeys(("audio", "visual"), "")
    with writing(tmp_path / "s.zarr", 5) as writer:
        writer.append_videos(["long", "short"])
        writer.add_spec(spec)
        write_rows(tmp_path / "s.zarr", "loudness", 0, {0: values, 1: values})
        writer.record_videos(
            [VideoRecord(row, "", both, dict.fromkeys(both, 5), none, dict.fromkeys(both, 2)) for row in (0, 1)]
        )
        writer.record_features([FeatureRecord(row, "loudness", State.COMPLETE) for row in (0, 1)])
    reference = np.nan_to_num(values)
    reference[3] *= -1
    np.save(folder / "long.npy", reference)
    np.save(folder / "short.npy", reference[:2])
    found = compare_with_reference(open_store(tmp_path / "s.zarr"), "loudness", folder)
    (video,) = found["videos"]
    assert (video["rows_unlike"], video["least_cosine_row"], video["steps_compared"]) == ([3], 3, 3)
    assert found["refused"] == [{"video_id": "short", "reason": "has no row of step 2, the video's first"}]


@pytest.mark.parametrize(
    ("order", "axes"),
    [
        ((0, 1, 2, 3), "time channel height width"),
        ((0, 2, 3, 1), "time height width channel"),
        ((1, 0, 2, 3), "channel time height width"),
        ((2, 3, 1, 0), "height width channel time"),
    ],
)
def test_the_order_of_axes_is_detected(order: tuple[int, ...], axes: str, store: FeatureStore, folder: Path) -> None:
    video_id = list_complete(store, "toy-image")[0]
    np.save(folder / f"{video_id}.npy", read_stored(store, "toy-image", video_id).transpose(order))
    (video,) = compare_with_reference(store, "toy-image", folder)["videos"]
    assert (video["axes"], video["largest_difference"], video["steps_compared"]) == (axes, 0, 4)


def test_arrays_of_another_feature_are_refused_individually(store: FeatureStore, folder: Path) -> None:
    names = list_complete(store, "toy-image")
    bad = {
        "has shape [4, 3, 7, 7], expected [time, 3, 224, 224]": np.zeros((4, 3, 7, 7)),
        "has shape [4, 150528], expected [time, 3, 224, 224]": np.zeros((4, 3 * 224 * 224), np.float32),
        "has shape [3, 224, 224, 224], which is ambiguous": np.zeros((3, 224, 224, 224), np.uint8),
        "contains <U1, not numbers": np.full((4, 3, 2, 2), "a"),
        "cannot be read (Array can't be memory-mapped: Python objects": np.array([{}], dtype=object),
        "row 1 contains values that are not finite": np.stack([np.full((3, 224, 224), v) for v in (0, np.nan)]),
    }
    for name, array in zip(names, bad.values(), strict=False):
        np.save(folder / f"{name}.npy", array)
    (folder / f"{names[6]}.npy").write_bytes(b"no array")
    np.save(folder / f"{names[7]}.npy", read_stored(store, "toy-image", names[7]))
    shown = call(store, "--reference", folder, "--feature", "toy-image", "--json")
    assert shown.exit_code == 3
    document = json.loads(shown.stdout)
    reasons = [entry["reason"] for entry in document["refused"]]
    assert len(reasons) == 7
    assert reasons[2].endswith("several orders of its axes give time channel height width")
    assert all(reason.startswith(start) for reason, start in zip(reasons, [*bad, "cannot be read"], strict=True))
    assert [video["video_id"] for video in document["videos"]] == [names[7]]


def test_an_array_of_zeros_is_unlike_other_values(store: FeatureStore, folder: Path) -> None:
    video_id = list_complete(store, "toy-image")[0]
    np.save(folder / f"{video_id}.npy", np.zeros((4, 3, 224, 224), np.float32))
    (video,) = compare_with_reference(store, "toy-image", folder)["videos"]
    assert (video["cosine"], video["rows_unlike"]) == (0, [0, 1, 2, 3])


def test_a_table_of_the_least_similar_videos_is_printed(store: FeatureStore, folder: Path) -> None:
    for video_id in list_complete(store, "toy-audio"):
        np.save(folder / f"{video_id}.npy", read_stored(store, "toy-audio", video_id)[:3])
    shown = call(store, "--reference", folder, "--feature", "toy-audio")
    assert shown.exit_code == 0
    assert "toy-audio: 19 videos compared, mean cosine 1.000000" in shown.stdout
    assert "19 with another number of steps; 0 refused, 0 only in the store" in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--reference", "{folder}"), "--reference and --feature go together"),
        (("--feature", "toy-audio"), "--reference and --feature go together"),
        (("--reference", "{folder}/gone", "--feature", "toy-audio"), "gone does not exist: pass --reference"),
        (("--reference", "{folder}", "--feature", "toy-audio"), "contains no .npy"),
        (("--reference", "{folder}", "--feature", "toy"), "it holds toy-audio, toy-image"),
    ],
)
def test_errors_of_wrong_use_are_one_line(
    arguments: tuple[str, ...], message: str, store: FeatureStore, folder: Path
) -> None:
    shown = call(store, *(argument.format(folder=folder) for argument in arguments))
    assert shown.exit_code == 2
    assert message in shown.stderr
    assert len(shown.stderr.splitlines()) == 1


def test_a_folder_without_arrays_of_the_feature_raises(store: FeatureStore, folder: Path) -> None:
    np.save(folder / "stranger.npy", np.ones((4, 2), np.float32))
    with pytest.raises(UserError, match=r"no file is named <video id>\.npy"):
        compare_with_reference(store, "toy-audio", folder)
    np.save(folder / f"{list_complete(store, 'toy-audio')[0]}.npy", np.ones((4, 128), np.float32))
    with pytest.raises(UserError, match=r"has shape \[4, 128\], expected \[time, 2\]"):
        compare_with_reference(store, "toy-audio", folder)
