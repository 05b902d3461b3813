"""`mavqa-inspect`: corruption is exit code 2, ids are printed without markup, ignored options are refused."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr
from click.testing import CliRunner, Result
from writing import writing

from pipeline.cli.extract import _show as show_summary
from pipeline.cli.inspect import inspect
from pipeline.run.coordinator import Summary
from pipeline.store.reader import open_store
from pipeline.store.schema import FeatureSpec, State
from pipeline.store.seal import digest_row
from pipeline.store.writer import FeatureRecord, VideoRecord, write_rows

LOUDNESS = FeatureSpec("loudness", "audio", ("channel",), (3,), "float32", {"version": 1})
IDS = ["[bold]a[bold]", ":cat:", "[odd] c", *(f"v{row}" for row in range(3, 17))]
STATES = {0: State.COMPLETE, 1: State.COMPLETE, 2: State.FAILED, 16: State.COMPLETE}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Three complete videos (the last in a separate chunk), one failed, 13 pending; some ids look like markup."""
    path = tmp_path / "s.zarr"
    with writing(path, 5) as writer:
        writer.append_videos(IDS)
        writer.add_spec(LOUDNESS)
        for row, state in STATES.items():
            values = np.full((5, 3), row + 1, "float32")
            digest = digest_row("loudness", IDS[row], values) if state is State.COMPLETE else ""
            if digest:
                write_rows(path, "loudness", row // 16 * 16, {row: values})
            states, reasons = {"audio": state, "visual": State.ABSENT}, {"audio": "no [red]header", "visual": ""}
            writer.record_videos([VideoRecord(row, "", states, {"audio": 5, "visual": 0}, reasons)])
            writer.record_features([FeatureRecord(row, "loudness", state, digest=digest)])
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "arrays").mkdir()
    return tmp_path / "arrays"


def chunk_of_v16(store: Path) -> Path:
    _, chunk = sorted(path for path in (store / "features/loudness/values").rglob("c*") if path.is_file())
    return chunk


def run_inspect(*arguments: object) -> Result:
    return CliRunner().invoke(inspect, [*map(str, arguments)])


@pytest.mark.parametrize("lost", ["videos", "videos/video_id", "videos/video_id/c"])
@pytest.mark.parametrize("more", [(), ("--verify",)])
def test_missing_ids_of_videos_with_features_are_reported_as_corruption(
    store: Path, lost: str, more: tuple[str, ...]
) -> None:
    assert run_inspect(store, *more).exit_code == 0
    shutil.rmtree(store / lost)
    shown = run_inspect(store, *more)
    assert shown.exit_code == 2
    assert "videos/video_id has no id for 4 rows that have the feature loudness: the store is corrupt" in shown.stderr
    assert len(shown.stderr.splitlines()) == 1


def test_a_killed_append_is_not_reported_as_corruption(store: Path) -> None:
    for path in ("videos/video_id", "features/loudness/state"):
        zarr.open_group(store, mode="r+", use_consolidated=False)[path].resize(40)
    with writing(store, 5) as writer:
        writer.consolidate()
    assert open_store(store).video_ids == IDS


def test_ids_reasons_and_complete_tables_are_printed_without_markup(store: Path, folder: Path) -> None:
    shown = run_inspect(store)
    assert "failed: [odd] c audio: no [red]header" in shown.stdout.splitlines()
    assert "│ loudness │ 17 5 3 │ float32 │ 3        │ 0      │ 1      │ 13      │" in shown.stdout
    long = "[x]" + "y" * 200
    zarr.open_group(store, mode="r+", use_consolidated=False)["videos/video_id"][1] = long
    for name in (IDS[0], long):
        np.save(folder / f"{name}.npy", np.ones((5, 3)))
    shown = run_inspect(store, "--reference", folder, "--feature", "loudness")
    assert f"│ {long} │" in shown.stdout


def test_ids_and_reasons_of_a_run_are_printed_without_markup(capsys: pytest.CaptureFixture[str]) -> None:
    failure = {"video_id": ":cat:", "feature": "loudness", "reason": "no [red]header"}
    show_summary(Summary("s.zarr", 1, failures=[failure]))
    assert "failed: :cat: (loudness): no [red]header" in capsys.readouterr().err.splitlines()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--verify", "--reference", "x", "--feature", "loudness"), "--verify and --reference cannot be combined"),
        (("--verify", "--feature", "loudness"), "--verify and --reference cannot be combined"),
        (("--spectrogram", "v.mp4", "--reference", "x"), "--reference and --spectrogram cannot be combined"),
        (("--spectrogram", "v.mp4", "--verify"), "--verify and --spectrogram cannot be combined"),
        (("--image", "p.png"), "--image is the file that --spectrogram writes: pass --spectrogram VIDEO as well"),
        (("--picture", "p.png"), "--image is the file that --spectrogram writes: pass --spectrogram VIDEO as well"),
    ],
)
def test_options_that_would_be_ignored_are_refused(store: Path, arguments: tuple[str, ...], message: str) -> None:
    shown = run_inspect(store, *arguments)
    assert shown.exit_code == 2
    assert message in shown.stderr
    assert len(shown.stderr.splitlines()) == 1


def test_complete_rows_with_missing_values_differ_and_the_store_is_corrupt(store: Path, folder: Path) -> None:
    chunk_of_v16(store).unlink()
    for name in (":cat:", "v16"):
        np.save(folder / f"{name}.npy", np.full((5, 3), 2))
    options = ("--reference", folder, "--feature", "loudness")
    shown, table = run_inspect(store, *options, "--json"), run_inspect(store, *options)
    assert (shown.exit_code, table.exit_code) == (2, 2)
    message = "is corrupt: complete rows of loudness have missing values in 1 videos: extract it again"
    assert message in shown.stderr
    document = json.loads(shown.stdout, parse_constant=pytest.fail)
    lost, intact = document["videos"]
    assert (lost["video_id"], lost["rows_unlike"]) == ("v16", [0, 1, 2, 3, 4])
    assert (lost["cosine"], lost["least_cosine"], lost["largest_difference"]) == (None, None, None)
    assert (intact["cosine"], intact["rows_unlike"]) == (pytest.approx(1), [])
    assert document["summary"]["videos_damaged"] == document["summary"]["videos_with_rows_unlike"] == 1
    assert document["summary"]["cosine_least"] == pytest.approx(1)
    assert "none (0)" in table.stdout
    (folder / ":cat:.npy").unlink()
    summary = json.loads(run_inspect(store, *options, "--json").stdout, parse_constant=pytest.fail)["summary"]
    assert summary["row_cosine_least"] is summary["cosine_median"] is summary["largest_difference"] is None


def test_an_unreadable_chunk_is_reported_as_corruption(store: Path, folder: Path) -> None:
    chunk = chunk_of_v16(store)
    chunk.write_bytes(chunk.read_bytes()[:12])
    np.save(folder / "v16.npy", np.ones((5, 3)))
    shown = run_inspect(store, "--reference", folder, "--feature", "loudness")
    assert shown.exit_code == 2
    assert "features/loudness/values cannot be read" in shown.stderr
    assert len(shown.stderr.splitlines()) == 1


@pytest.mark.parametrize("scale", [1e307, 1e160, 1e-200, 5e-324])
def test_very_large_and_very_small_references_have_the_same_direction(store: Path, folder: Path, scale: float) -> None:
    np.save(folder / "v16.npy", np.full((5, 3), scale))
    document = json.loads(run_inspect(store, "--reference", folder, "--feature", "loudness", "--json").stdout)
    (video,) = document["videos"]
    assert (video["cosine"], video["least_cosine"], video["rows_unlike"]) == (pytest.approx(1), pytest.approx(1), [])


def test_anything_but_one_array_in_a_regular_file_is_refused_by_name(store: Path, folder: Path) -> None:
    with (folder / "v16.npy").open("wb") as file:
        np.savez(file, values=np.ones((5, 3)))
    os.mkfifo(folder / f"{IDS[0]}.npy")
    np.save(folder / ":cat:.npy", np.ones((5, 3)))
    shown = run_inspect(store, "--reference", folder, "--feature", "loudness", "--json")
    assert shown.exit_code == 3
    reasons = {entry["video_id"]: entry["reason"] for entry in json.loads(shown.stdout)["refused"]}
    assert reasons[IDS[0]] == "is not a regular file"
    assert reasons["v16"].startswith("cannot be read (the magic string is not correct")


@pytest.mark.parametrize(
    ("valid", "corrupt"), [(b"(5, 3), ", b"(5, 3,  "), (b"(5, 3), }" + b" " * 20, b"(%d,), }" % 2**70)]
)
def test_an_array_with_a_corrupt_header_is_refused_by_name(
    store: Path, folder: Path, valid: bytes, corrupt: bytes
) -> None:
    for name in ("v16", ":cat:"):
        np.save(folder / f"{name}.npy", np.ones((5, 3)))
    original = (folder / "v16.npy").read_bytes()
    assert valid in original
    (folder / "v16.npy").write_bytes(original.replace(valid, corrupt.ljust(len(valid))))
    shown = run_inspect(store, "--reference", folder, "--feature", "loudness", "--json")
    assert shown.exit_code == 3
    (refused,) = json.loads(shown.stdout)["refused"]
    assert refused["video_id"] == "v16"
    assert refused["reason"].startswith("cannot be read (")


@pytest.mark.parametrize("header", [b"{1: 2, 'a': 3}", b"{[]: 1}", b"-" * 6000 + b"1"])
def test_an_array_with_a_malicious_header_is_refused_by_name(store: Path, folder: Path, header: bytes) -> None:
    np.save(folder / ":cat:.npy", np.ones((5, 3)))
    (folder / "v16.npy").write_bytes(b"\x93NUMPY\x01\x00" + (len(header) + 1).to_bytes(2, "little") + header + b"\n")
    shown = run_inspect(store, "--reference", folder, "--feature", "loudness", "--json")
    assert shown.exit_code == 3
    (refused,) = json.loads(shown.stdout)["refused"]
    assert refused["reason"].startswith("cannot be read (")


def test_names_that_are_not_utf8_are_escaped_in_json(store: Path, folder: Path) -> None:
    np.save(folder / "v16.npy", np.ones((5, 3)))
    np.save(folder / os.fsdecode(b"\xff.npy"), np.ones((5, 3)))
    shown = run_inspect(store, "--reference", folder, "--feature", "loudness", "--json")
    assert shown.exit_code == 0
    document = json.loads(shown.stdout_bytes.decode())
    assert document["only_in_reference"] == [{"video_id": os.fsdecode(b"\xff"), "state": "unknown"}]


def test_the_summary_counts_videos_and_rows(store: Path, folder: Path) -> None:
    angled = np.ones((5, 3))
    angled[3] = 1, 1, 0.72  # cosine 0.986
    arrays = {IDS[0]: np.ones((5, 3)), ":cat:": angled, "v16": np.tile([1.0, 0, 0], (5, 1))}
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    document = json.loads(run_inspect(store, "--reference", folder, "--feature", "loudness", "--json").stdout)
    summary, videos = document["summary"], {video["video_id"]: video for video in document["videos"]}
    assert videos[":cat:"]["rows_unlike"] == [3]
    assert videos[":cat:"]["least_cosine"] == pytest.approx(2.72 / np.sqrt(3 * (2 + 0.72**2)))
    assert summary["cosine_median"] == videos[":cat:"]["cosine"] > summary["cosine_mean"]
    assert summary["cosine_least"] == pytest.approx(1 / np.sqrt(3))
    (folder / "v16.npy").unlink()
    summary = json.loads(run_inspect(store, "--reference", folder, "--feature", "loudness", "--json").stdout)["summary"]
    assert summary["row_cosine_least"] == videos[":cat:"]["least_cosine"] < summary["cosine_least"]


def test_verification_says_what_it_cannot_check_after_a_stopped_run(store: Path) -> None:
    shown = run_inspect(store, "--verify")
    assert shown.exit_code == 0
    assert "verified: complete rows have the values that were computed" in shown.stdout
    assert "not verified: that no state or id was lost, because the last run was stopped" in shown.stdout
    with writing(store, 5) as writer:
        writer.seal()
    assert "not verified" not in run_inspect(store, "--verify").stdout
    assert json.loads(run_inspect(store, "--json").stdout)["is_sealed"]
