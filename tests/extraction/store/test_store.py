"""Guarantees of a store: unwritten rows read as missing, one writer, plain readers, corruption is reported and kept."""

import json
import os
import shutil
from itertools import pairwise
from pathlib import Path

import dask.array
import numpy as np
import pytest
import xarray
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from writing import writing

from pipeline.errors import UserError
from pipeline.inspection.verify import Problem, verify_store
from pipeline.store.location import locate
from pipeline.store.reader import open_store, read_steps
from pipeline.store.schema import STORE_FORMAT, FeatureSpec, State, spec_differences
from pipeline.store.seal import digest_row
from pipeline.store.writer import FeatureRecord, VideoRecord, write_rows

LOUDNESS = FeatureSpec("loudness", "audio", ("channel",), (3,), "float32", {"version": 1})
MAPS = FeatureSpec("maps", "visual", ("channel", "height", "width"), (8, 160, 160), "float16", {"version": 1})
WORDS = FeatureSpec("words", "question", ("token",), (4,), "int32", {})


def create_store(path: Path, videos: int = 20) -> Path:
    with writing(path, 5) as writer:
        writer.append_videos([f"v{number}" for number in range(videos)])
        writer.add_spec(LOUDNESS)
        writer.add_spec(MAPS)
    return path


def read_indices(path: Path) -> None:
    store = open_store(path)
    store.presence("visual")
    store.state("loudness")


def test_a_row_that_was_never_written_reads_as_missing(tmp_path: Path) -> None:
    store = open_store(create_store(tmp_path / "s.zarr"))
    assert repr(store) == f"<FeatureStore {tmp_path / 's.zarr'}: 20 videos of 5 s; loudness, maps>"
    assert np.isnan(store.values("loudness")[:]).all()
    assert np.isnan(store.values("maps")[3]).all()
    assert (store.state("loudness") == State.PENDING).all()


@pytest.mark.parametrize("steps", [[0, 1, 2], [0, 3, 6], [5], [7, 2], [1, 2, 4], [3, 3], [2, 1, 0]])
def test_steps_are_read_in_the_requested_order(tmp_path: Path, steps: list[int]) -> None:
    array = zarr.create_array(tmp_path / "a.zarr", shape=(2, 8, 3), chunks=(1, 1, 3), shards=(1, 8, 3), dtype="int32")
    array[:] = np.arange(48).reshape(2, 8, 3)
    np.testing.assert_array_equal(read_steps(array, slice(1, 2), np.array(steps)), array[1:2][:, steps])
    np.testing.assert_array_equal(read_steps(array, slice(0, 2), np.array(steps)), array[:][:, steps])


def test_rows_written_by_workers_are_read_back_and_the_rest_stays_missing(tmp_path: Path) -> None:
    path = create_store(tmp_path / "s.zarr")
    maps = np.random.default_rng(0).normal(size=(4, 8, 160, 160)).astype("float16")
    write_rows(path, "maps", 16, {17: maps})
    write_rows(path, "loudness", 16, {16: np.ones((5, 3), "float32"), 18: np.zeros((2, 3), "float32")})
    store = open_store(path)
    np.testing.assert_array_equal(store.values("maps")[17, :4], maps)
    assert np.isnan(store.values("maps")[17, 4]).all()
    assert (store.values("loudness")[16] == 1).all()
    assert np.isnan(store.values("loudness")[17]).all()
    assert np.isnan(store.values("loudness")[18, 2:]).all()


@pytest.mark.parametrize(("first_row", "row"), [(0, 16), (8, 9), (16, 3)])
def test_rows_outside_an_aligned_partition_are_refused(tmp_path: Path, first_row: int, row: int) -> None:
    path = create_store(tmp_path / "s.zarr")
    with pytest.raises(ValueError, match="aligned partition"):
        write_rows(path, "loudness", first_row, {row: np.ones((5, 3), "float32")})


@pytest.mark.parametrize("shape", [(5, 4), (6, 3)])
def test_values_of_another_shape_or_of_more_seconds_are_refused(tmp_path: Path, shape: tuple[int, int]) -> None:
    path = create_store(tmp_path / "s.zarr", videos=1)
    with pytest.raises(ValueError, match="do not fit"):
        write_rows(path, "loudness", 0, {0: np.ones(shape, "float32")})


@settings(max_examples=15)
@given(order=st.permutations(range(20)), cuts=st.lists(st.integers(1, 19), max_size=3))
def test_rows_written_in_any_order_and_parts_give_the_same_store(
    order: list[int], cuts: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = create_store(tmp_path_factory.mktemp("any") / "s.zarr")
    values = np.arange(20 * 5 * 3, dtype="float32").reshape(20, 5, 3)
    bounds = [0, *sorted(set(cuts)), 20]
    for start, stop in pairwise(bounds):
        part = order[start:stop]
        for first_row in (0, 16):
            rows = {row: values[row] for row in part if first_row <= row < first_row + 16}
            if rows:
                write_rows(path, "loudness", first_row, rows)
    np.testing.assert_array_equal(open_store(path).values("loudness")[:], values)


def test_states_reasons_and_steps_are_recorded_by_row(tmp_path: Path) -> None:
    path = create_store(tmp_path / "s.zarr")
    record = VideoRecord(
        row=18,
        source_sha256="abc",
        states={"visual": State.COMPLETE, "audio": State.ABSENT},
        steps={"visual": 4, "audio": 0},
        reasons={"visual": "", "audio": "no audio stream"},
        firsts={"visual": 2, "audio": 0},
    )
    with writing(path, 5) as writer:
        writer.record_videos([record])
        writer.record_features([FeatureRecord(18, "loudness", State.ABSENT, "no audio stream")])
    store = open_store(path)
    assert store.presence("audio")[18] == State.ABSENT
    assert (store.first_steps("visual")[18], store.steps("visual")[18]) == (2, 4)
    assert store.reasons("audio")[17:19] == ["", "no audio stream"]
    assert store.state("loudness").tolist() == [0] * 18 + [State.ABSENT, 0]
    with writing(path, 5) as writer:
        replaced = dict.fromkeys(("visual", "audio"), State.FAILED)
        writer.record_videos(
            [VideoRecord(18, "def", replaced, dict.fromkeys(replaced, 0), dict.fromkeys(replaced, ""))]
        )
    assert open_store(path).first_steps("visual")[18] == 0


def test_one_video_is_read_in_the_steps_that_it_has(tmp_path: Path) -> None:
    path, values = create_store(tmp_path / "s.zarr"), np.arange(12, dtype="float32").reshape(4, 3)
    write_rows(path, "loudness", 16, {17: values})
    states = {"audio": State.COMPLETE, "visual": State.ABSENT}
    complete = VideoRecord(17, "abc", states, {"audio": 4, "visual": 0}, {"audio": "", "visual": "no frames"})
    with writing(path, 5) as writer:
        writer.record_videos([complete])
        reasons = {17: (State.COMPLETE, ""), 18: (State.FAILED, "decoder killed")}
        writer.record_features([FeatureRecord(row, "loudness", *found) for row, found in reasons.items()])
    store = open_store(path)
    np.testing.assert_array_equal(store.read("loudness", "v17"), values)
    for feature, video_id, reason in [
        ("loudness", "v18", r"loudness of video 'v18' is failed \(decoder killed\)"),
        ("loudness", "v3", "loudness of video 'v3' is pending"),
        ("loudness", "v99", "has no video 'v99'"),
        ("brightness", "v17", "has no features/brightness"),
    ]:
        with pytest.raises(UserError, match=reason):
            store.read(feature, video_id)


def test_rows_before_the_first_step_are_missing_and_verified(tmp_path: Path) -> None:
    path, values = create_store(tmp_path / "s.zarr"), np.arange(12, dtype="float32").reshape(4, 3)
    values[:2] = np.nan
    states = {"audio": State.COMPLETE, "visual": State.ABSENT}
    write_rows(path, "loudness", 16, {17: values})
    with writing(path, 5) as writer:
        late = {"audio": 2, "visual": 0}
        steps, reasons = {"audio": 4, "visual": 0}, {"audio": "", "visual": ""}
        writer.record_videos([VideoRecord(17, "abc", states, steps, reasons, late)])
        digest = digest_row("loudness", "v17", values)
        writer.record_features([FeatureRecord(17, "loudness", State.COMPLETE, digest=digest)])
    store = open_store(path)
    assert verify_store(store) == []
    np.testing.assert_array_equal(store.read("loudness", "v17"), values)
    for row, problem in (
        (1, "the row has values before its first step, 2"),
        (3, "the state is complete, but values are missing in 1 of 2 steps"),
        (4, "the row has values after its 4 steps"),
    ):
        changed = np.pad(values, ((0, 1), (0, 0)), constant_values=np.nan)
        changed[row] = np.nan if row == 3 else 1
        write_rows(path, "loudness", 16, {17: changed})
        assert verify_store(open_store(path)) == [Problem(f"loudness of v17: {problem}", "loudness", 17)]
    zarr.open_array(path / "videos/first_audio", mode="r+")[17] = 4
    problem = "the state is complete, but it has 0 steps"
    assert verify_store(open_store(path)) == [Problem(f"loudness of v17: {problem}", "loudness", 17)]


def test_a_new_state_replaces_a_failure_or_a_state_of_lower_rank(tmp_path: Path) -> None:
    path = create_store(tmp_path / "s.zarr", videos=1)
    found = [(State.FAILED, "once"), (State.FAILED, "twice"), (State.COMPLETE, ""), (State.FAILED, "gone")]
    seen = []
    for state, reason in found:
        states, reasons = dict.fromkeys(("visual", "audio"), state), dict.fromkeys(("visual", "audio"), reason)
        with writing(path, 5) as writer:
            writer.record_videos([VideoRecord(0, "abc", states, {"visual": 0, "audio": 0}, reasons)])
        store = open_store(path)
        seen.append((State(store.presence("audio")[0]), store.reasons("audio")[0]))
    assert seen == [*found[:3], found[2]]


def test_nothing_is_written_for_a_modality_that_was_not_decoded(tmp_path: Path) -> None:
    path = create_store(tmp_path / "s.zarr", videos=2)
    both = {"visual": State.COMPLETE, "audio": State.COMPLETE}
    steps, reasons = {"visual": 2, "audio": 3}, {"visual": "errors were concealed", "audio": ""}
    with writing(path, 5) as writer:
        writer.record_videos([VideoRecord(0, "abc", both, steps, reasons)])
        before = {file: file.stat().st_mtime_ns for file in path.glob("videos/*visual*/c/0")}
        pending = both | {"visual": State.PENDING}
        writer.record_videos([VideoRecord(1, "abc", pending, steps | {"visual": 0}, reasons | {"visual": ""})])
    assert len(before) == 3
    assert before == {file: file.stat().st_mtime_ns for file in before}


def test_a_stopped_append_leaves_nothing_that_verification_reports(tmp_path: Path) -> None:
    path = create_store(tmp_path / "s.zarr", videos=3)
    zarr.open_group(path, mode="r+", use_consolidated=False)["features/loudness/digest"].resize(5)
    assert verify_store(open_store(path)) == []


def test_all_accepted_specs_are_kept(tmp_path: Path) -> None:
    versions = [FeatureSpec("loudness", "audio", ("channel",), (3,), "float32", {"version": at}) for at in (1, 2, 3)]
    with writing(create_store(tmp_path / "s.zarr", videos=1), 5) as writer:
        for index, version in enumerate(versions):
            writer.add_spec(version, index)
        assert writer.feature_specs("loudness") == versions


@pytest.mark.parametrize("dtype", ["int32", "float16"])
def test_questions_without_a_feature_are_recognised_by_its_fill_value(tmp_path: Path, dtype: str) -> None:
    spec = FeatureSpec("words", "question", ("token",), (4,), dtype, {})
    with writing(tmp_path / "s.zarr", 5) as writer:
        writer.append_questions(["who plays", "how many"])
        writer.add_spec(spec)
        writer.write_questions("words", np.array([1]), np.zeros((1, 4), dtype))
        assert writer.question_texts("words") == {"how many"}


def test_appended_videos_and_questions_do_not_change_existing_rows(tmp_path: Path) -> None:
    path = create_store(tmp_path / "s.zarr")
    write_rows(path, "loudness", 16, {19: np.full((5, 3), 7, "float32")})
    with writing(path, 5) as writer:
        assert writer.append_questions(["who plays", "how many"]) == {"who plays": 0, "how many": 1}
        writer.add_spec(WORDS)
        writer.write_questions("words", np.array([1]), np.full((1, 4), 5, "int32"))
        writer.append_videos(["late"])
        assert writer.append_questions(["how many", "where"])["where"] == 2
        assert writer.question_texts("words") == {"how many"}
    store = open_store(path)
    assert store.rows["late"] == 20
    assert (store.values("loudness")[19] == 7).all()
    assert store.question_values("words")[:].tolist() == [[-1] * 4, [5] * 4, [-1] * 4]


def test_a_second_writer_is_refused_while_the_first_is_active(tmp_path: Path) -> None:
    path = create_store(tmp_path / "s.zarr")
    with (
        writing(path, 5),
        pytest.raises(UserError, match="another run"),
        writing(path, 5),
    ):
        pass
    with writing(path, 5):
        pass


def test_a_writer_creates_missing_folders_and_removes_partial_files_of_a_killed_one(tmp_path: Path) -> None:
    path = create_store(tmp_path / "new" / "folder" / "s.zarr")
    complete = {file for file in path.rglob("*") if file.is_file()}
    for partial in ("zarr.0.partial", "features/loudness/values/c.0.0.0.1.partial"):
        (path / partial).parent.mkdir(exist_ok=True)
        (path / partial).touch()
    with writing(path, 5):
        assert {file for file in path.rglob("*") if file.is_file()} == complete


def test_a_writer_that_refuses_a_store_releases_its_lock(tmp_path: Path) -> None:
    path = create_store(tmp_path / "s.zarr")
    zarr.open_group(path, mode="r+").update_attributes({"mavqa_format": 99})
    with pytest.raises(UserError, match="has format 99"), writing(path, 5):
        pass
    zarr.open_group(path, mode="r+").update_attributes({"mavqa_format": STORE_FORMAT})
    with writing(path, 5):
        pass


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no unwritable folder on this system")
@pytest.mark.parametrize("folder", ["/proc", "/proc/nothing"])
def test_an_unwritable_folder_is_refused(folder: str) -> None:
    with (
        pytest.raises(UserError, match=r"s\.zarr cannot be created: pass"),
        writing(f"{folder}/s.zarr", 5),
    ):
        pass


@pytest.mark.parametrize("path", ["file", "file/s.zarr", "file/stores/s.zarr", "loop.zarr"])
def test_a_path_that_cannot_become_a_folder_is_refused(tmp_path: Path, path: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop.zarr").symlink_to("loop.zarr")
    with (
        pytest.raises(UserError, match="cannot be created: pass"),
        writing(tmp_path / path, 5),
    ):
        pass


@pytest.mark.parametrize("target_exists", [True, False])
def test_a_new_store_may_be_a_link_to_an_empty_or_missing_folder(tmp_path: Path, target_exists: bool) -> None:
    target, link = tmp_path / "elsewhere" / "s.zarr", tmp_path / "link.zarr"
    if target_exists:
        target.mkdir(parents=True)
    link.symlink_to(target)
    create_store(link)
    assert open_store(target).feature_names == open_store(link).feature_names == ["loudness", "maps"]


def test_a_second_writer_through_a_link_is_refused(tmp_path: Path) -> None:
    path, link = create_store(tmp_path / "s.zarr"), tmp_path / "elsewhere" / "link.zarr"
    link.parent.mkdir()
    link.symlink_to(path)
    with (
        writing(path, 5),
        pytest.raises(UserError, match="another run"),
        writing(link, 5),
    ):
        pass
    with writing(link, 5):
        pass


def test_the_size_of_a_store_is_reported_while_a_run_renames_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = create_store(tmp_path / "s.zarr")
    listed = list(os.walk(path))
    before = locate(path).bytes_stored("")
    monkeypatch.setattr(os, "walk", lambda folder: [(str(path), [], ["gone.partial"]), *listed])
    assert locate(path).bytes_stored("") == before > 0


def test_the_store_opens_in_plain_zarr_dask_and_xarray_with_named_dimensions(tmp_path: Path) -> None:
    path = create_store(tmp_path / "s.zarr")
    values = zarr.open_group(path, mode="r")["features/maps/values"]
    assert values.metadata.dimension_names == ("video", "time", "channel", "height", "width")
    assert dask.array.from_zarr(values).shape == (20, 5, 8, 160, 160)
    tree = xarray.open_datatree(path, engine="zarr", consolidated=True)
    assert tree["features/loudness"]["values"].dims == ("video", "time", "channel")
    assert tree["videos"]["video_id"].dims == ("video",)
    assert xarray.open_zarr(path, group="features/loudness")["state"].dims == ("video",)


def test_corruption_is_one_error_and_the_writer_changes_nothing(tmp_path: Path) -> None:
    path = create_store(tmp_path / "s.zarr")
    (path / "zarr.json").write_text("{ trunca")
    files = sorted(str(file) for file in path.rglob("*"))
    with pytest.raises(UserError, match="corrupt"):
        open_store(path)
    with pytest.raises(UserError, match="corrupt"), writing(path, 5):
        pass
    assert sorted(str(file) for file in path.rglob("*")) == files


@pytest.mark.parametrize("lost", ["videos", "features"])
def test_a_store_without_root_metadata_is_not_created_again(tmp_path: Path, lost: str) -> None:
    path = create_store(tmp_path / "s.zarr", videos=1)
    (path / "zarr.json").unlink()
    shutil.rmtree(path / lost)
    files = sorted(str(file) for file in path.rglob("*"))
    with pytest.raises(UserError, match="without its root metadata: it is corrupt"), writing(path, 5):
        pass
    assert sorted(str(file) for file in path.rglob("*")) == files


@pytest.mark.parametrize("lost", ["videos/visual", "videos/video_id", "features/loudness/state"])
def test_a_missing_array_is_reported_as_corruption(tmp_path: Path, lost: str) -> None:
    path = create_store(tmp_path / "s.zarr")
    root = json.loads((path / "zarr.json").read_text())
    del root["consolidated_metadata"]["metadata"][lost]
    (path / "zarr.json").write_text(json.dumps(root))
    shutil.rmtree(path / lost)
    with pytest.raises(UserError, match="corrupt"):
        read_indices(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (3, "cannot be read .'name' is missing or not of type str"),
        ({"shape": 3}, "cannot be read .'shape' is missing or not of type list"),
        ({"constants": None}, "cannot be read .'constants' is missing or not of type dict"),
        ({"constants": {"weights": 3}}, "does not match its fingerprint"),
        ({"shape": [9]}, "does not match its fingerprint"),
    ],
)
def test_a_corrupt_spec_is_reported_as_corruption(tmp_path: Path, changes: object, message: str) -> None:
    path = create_store(tmp_path / "s.zarr")
    spec = {**LOUDNESS.to_json(), **changes} if isinstance(changes, dict) else changes
    feature = zarr.open_group(path, mode="r+", use_consolidated=False)["features/loudness"]
    feature.update_attributes({"spec": spec})
    with writing(path, 5) as writer:
        writer.consolidate()
    with pytest.raises(UserError, match=f"s.zarr: the spec of features/loudness {message}.*: the store is corrupt"):
        open_store(path).spec("loudness")


@pytest.mark.parametrize("attributes", [{"spec": {}}, {"accepted": 3}, {"accepted": [{"spec": {}}]}])
def test_a_writer_reports_a_corrupt_spec(tmp_path: Path, attributes: dict) -> None:
    path = create_store(tmp_path / "s.zarr")
    zarr.open_group(path, mode="r+", use_consolidated=False)["features/loudness"].update_attributes(attributes)
    with writing(path, 5) as writer, pytest.raises(UserError, match="the spec of features/loudness cannot"):
        writer.feature_specs("loudness")


@pytest.mark.parametrize("seconds", ["x", 0, None, 2.5])
def test_an_invalid_number_of_seconds_is_reported_as_corruption(tmp_path: Path, seconds: object) -> None:
    path = create_store(tmp_path / "s.zarr")
    zarr.open_group(path, mode="r+").update_attributes({"seconds": seconds})
    with pytest.raises(UserError, match=f"'seconds' is {seconds!r}, not a number of seconds: the store is corrupt"):
        open_store(path)


def test_other_formats_other_lengths_and_foreign_folders_are_refused(tmp_path: Path) -> None:
    path = create_store(tmp_path / "s.zarr")
    with pytest.raises(ValueError, match="5 seconds per video, not 60"), writing(path, 60):
        pass
    remedy = "extract it again into another --store, or use the version that wrote it"
    for other in (1, 99):
        zarr.open_group(path, mode="r+").update_attributes({"mavqa_format": other})
        refusal = f"has format {other}, this version of mavqa uses 2: {remedy}"
        with pytest.raises(UserError, match=refusal):
            open_store(path)
        with pytest.raises(UserError, match=refusal), writing(path, 5):
            pass
    foreign = tmp_path / "holiday"
    foreign.mkdir()
    (foreign / "photo.jpg").touch()
    with pytest.raises(UserError, match="not a feature store"), writing(foreign, 5):
        pass
    with pytest.raises(UserError, match="no feature store at"):
        open_store(tmp_path / "nothing")


def test_the_seconds_of_a_store_are_those_of_the_run_that_creates_its_first_feature(tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    with writing(path, 60) as writer:
        writer.append_videos(["a"])
    with writing(path, 5) as writer:
        writer.add_spec(LOUDNESS)
    assert open_store(path).seconds == 5
    assert open_store(path).values("loudness").shape[1] == 5


def test_differences_name_the_constant_and_both_values() -> None:
    other = FeatureSpec("loudness", "audio", ("channel",), (3,), "float32", {"version": 2, "machine": {"threads": 1}})
    assert spec_differences(LOUDNESS, other, ("machine",)) == ["version is 1 in the store, 2 here"]
    assert spec_differences(LOUDNESS, LOUDNESS) == []
    assert LOUDNESS.fingerprint != other.fingerprint


@pytest.mark.parametrize("part", ["videos/video_id", "features/loudness/state", "features/loudness/values"])
def test_a_truncated_chunk_is_reported_as_corruption(tmp_path: Path, part: str) -> None:
    path = create_store(tmp_path / "s.zarr")
    write_rows(path, "loudness", 0, {0: np.random.default_rng(0).normal(size=(5, 3)).astype("float32")})
    with writing(path, 5) as writer:
        writer.record_features([FeatureRecord(0, "loudness", State.COMPLETE)])
    chunk = next(file for file in (path / part).rglob("*") if file.is_file() and file.name != "zarr.json")
    chunk.write_bytes(chunk.read_bytes()[:12])
    message = f"{part} cannot be read"
    if part.endswith("values"):
        assert any(message in problem.message for problem in verify_store(open_store(path)))
    else:
        with pytest.raises(UserError, match=message):
            open_store(path).state("loudness")


def test_xarray_selects_videos_seconds_and_questions_by_name(tmp_path: Path) -> None:
    path, values = create_store(tmp_path / "s.zarr"), np.arange(15, dtype="float32").reshape(5, 3)
    write_rows(path, "loudness", 16, {17: values})
    with writing(path, 5) as writer:
        writer.append_videos(["late"])
        writer.append_questions(["a?"])
        writer.add_spec(WORDS)
        rows = writer.append_questions(["b?"])
        writer.write_questions("words", np.array([rows["b?"]]), np.full((1, 4), 7))
    loudness = xarray.open_zarr(path, group="features/loudness")["values"]
    np.testing.assert_array_equal(loudness.sel(video="v17", time=slice(2, 3)), values[2:4])
    assert loudness.video.values.tolist() == [*(f"v{row}" for row in range(20)), "late"]
    assert xarray.open_zarr(path, group="questions/words")["values"].sel(question="b?").values.tolist() == [7] * 4


def test_a_chunk_that_cannot_be_read_is_named_and_its_other_rows_are_lost_when_it_is_written(tmp_path: Path) -> None:
    path, values = create_store(tmp_path / "s.zarr"), np.ones((5, 3), "float32")
    assert write_rows(path, "loudness", 16, {17: values}) == set()
    (chunk,) = (path / "features/loudness/values").glob("c*")
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 1
    chunk.write_bytes(content)
    with pytest.raises(ValueError, match="checksum"):
        open_store(path).values("loudness")[17]
    assert write_rows(path, "loudness", 16, {18: values}) == {16, 17, 19}
    assert np.isnan(open_store(path).values("loudness")[17]).all()


def test_a_store_that_is_not_as_it_was_sealed_is_not_written(tmp_path: Path) -> None:
    path = create_store(tmp_path / "s.zarr")
    with writing(path, 5) as writer:
        writer.seal()
    zarr.open_array(path / "videos/steps_audio", mode="r+")[3] = 4
    with writing(path, 5) as writer:
        assert writer.video_ids()
        with pytest.raises(UserError, match=r"not those of the last run: the store is corrupt"):
            writer.append_videos(["new"])
