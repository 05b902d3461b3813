"""`mavqa-export`: complete rows become the arrays of the releases, and come back as the same store."""

import json
from pathlib import Path

import numpy as np
import pytest
from array_folders import SECONDS, VIDEOS, make_array, make_manifest, run_import, write_arrays
from click.testing import CliRunner, Result
from writing import writing

from pipeline.arrays import export_arrays
from pipeline.arrays.layouts import LAYOUTS
from pipeline.cli.export import export
from pipeline.errors import UserError
from pipeline.store.reader import open_store
from pipeline.store.schema import State
from pipeline.store.seal import digest_row
from pipeline.store.writer import FeatureRecord, VideoRecord, write_rows

SENTENCES = "clip-vit-b32-sentence"


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_manifest(tmp_path_factory.mktemp("manifest"))


@pytest.fixture(scope="module")
def store(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seventeen videos with VGGish, of which v00 has no audio, two with maps, and two question texts."""
    folder = tmp_path_factory.mktemp("store")
    write_arrays(folder / "vggish", "vggish", VIDEOS[1:])
    write_arrays(folder / "res18_14x14", "resnet18-map", VIDEOS[:2])
    write_arrays(folder / "clip_qst", SENTENCES, ("0", "1"), steps=1)
    sources = [word for name in ("vggish", "res18_14x14", "clip_qst") for word in ("--from", folder / name)]
    run_import(manifest, folder / "store.zarr", *sources, "--absent", "audio", "--seconds", SECONDS)
    return folder / "store.zarr"


def run_export(store: Path, out: Path, *arguments: object) -> Result:
    return CliRunner().invoke(export, list(map(str, (store, "--out", out, *arguments))))


def written(out: Path) -> dict[str, tuple[int, int]]:
    """Return {path: (inode, time)} of all arrays: a rewritten file has another inode."""
    return {str(p.relative_to(out)): (p.stat().st_ino, p.stat().st_mtime_ns) for p in sorted(out.rglob("*.npy"))}


def test_arrays_have_the_names_shapes_and_type_of_the_release(store, manifest, tmp_path):
    out = tmp_path / "feats"
    shown = run_export(store, out, "--manifest", manifest, "--json")
    assert shown.exit_code == 3  # fifteen maps have failed
    assert shown.stderr.startswith("24 arrays to write, 0.002 GB; ")
    document = json.loads(shown.stdout)
    assert document == json.loads((out / "export.json").read_text())
    assert document["folders"] == {"vggish": "vggish", "resnet18-map": "res18_14x14", SENTENCES: "clip_qst"}
    assert document["written"] == {"vggish": 16, "resnet18-map": 2, SENTENCES: 6}
    missing = {(entry["feature"], entry["video_id"]): entry for entry in document["missing"]}
    assert missing["vggish", "v00"]["state"] == "absent"
    assert missing["resnet18-map", "v16"]["reason"] == "no array v16.npy"
    assert len(missing) == 16
    for folder, feature, name, leading in (
        ("vggish", "vggish", "v01", SECONDS),
        ("res18_14x14", "resnet18-map", "v00", SECONDS),
        ("clip_qst", SENTENCES, "1", 1),
    ):
        values = np.load(out / folder / f"{name}.npy")
        assert (values.dtype, values.shape) == (np.float32, (leading, *LAYOUTS[feature].shape))
        np.testing.assert_array_equal(values, make_array(feature, name, leading))
    # Every question has an array, those of one text the same.
    for name in ("2", "3", "5"):
        assert (out / "clip_qst" / f"{name}.npy").read_bytes() == (out / "clip_qst" / "0.npy").read_bytes()
    assert not list(out.rglob("*.partial"))


def test_an_exported_store_imports_to_the_same_store(store, manifest, tmp_path):
    out, again = tmp_path / "feats", tmp_path / "again.zarr"
    run_export(store, out, "--manifest", manifest)
    sources = [word for path in sorted(out.glob("*/")) for word in ("--from", path)]
    run_import(manifest, again, *sources, "--absent", "audio", "--seconds", SECONDS)
    assert open_store(again).digest == open_store(store).digest
    for name in ("state", "reason"):
        path = f"features/vggish/{name}"
        assert open_store(again)._read(path).tolist() == open_store(store)._read(path).tolist()


def test_a_stopped_export_writes_only_what_is_not_finished(store, tmp_path, monkeypatch):
    out = tmp_path / "feats"
    original, calls = export_arrays._save, []

    def stop(path, values):
        calls.append(path)
        if len(calls) == 16:
            raise KeyboardInterrupt
        return original(path, values)

    with monkeypatch.context() as patched:
        patched.setattr(export_arrays, "_save", stop)
        stopped = run_export(store, out, "--features", "vggish")
    assert stopped.exit_code == 130
    assert "finished arrays are kept, run the same command again to resume" in stopped.stderr
    before = written(out)
    shown = run_export(store, out, "--features", "vggish")
    assert shown.exit_code == 0
    # The first partition was recorded, fifteen arrays of it; that of the second was not.
    assert "1 written, 15 written before, 1 absent" in shown.stderr
    assert {name: facts for name, facts in written(out).items() if name in list(before)[:15]} == dict(
        list(before.items())[:15]
    )
    finished = written(out)
    assert "0 arrays to write" in run_export(store, out, "--features", "vggish").stderr
    assert written(out) == finished
    # A file that was cut, and one that is lost, are written again.
    (out / "vggish" / "v05.npy").write_bytes(b"")
    (out / "vggish" / "v06.npy").unlink()
    assert run_export(store, out, "--features", "vggish", "--json").exit_code == 0
    changed = {name for name, facts in written(out).items() if finished[name] != facts}
    assert changed == {"vggish/v05.npy", "vggish/v06.npy"}
    np.testing.assert_array_equal(np.load(out / "vggish" / "v05.npy"), make_array("vggish", "v05"))


def write_store(path: Path, steps: tuple[tuple[int, int], ...], value: float = 0) -> None:
    """Write a store of VGGish whose i-th video has the steps [first, stop) of `steps`; a step's value is its number."""
    spec = LAYOUTS["vggish"].spec({})
    rows = {}
    for row, (first, stop) in enumerate(steps):
        rows[row] = np.repeat(np.arange(stop, dtype=np.float32)[:, None], 128, axis=1) + np.float32(value)
        rows[row][:first] = np.nan
    with writing(path, 4) as writer:
        if not writer.video_ids():
            writer.append_videos([f"v{row}" for row in rows])
            writer.add_spec(spec)
        writer.unseal()
        write_rows(path, "vggish", 0, rows)
        complete = {"audio": State.COMPLETE, "visual": State.PENDING}
        reasons = dict.fromkeys(complete, "")
        writer.record_videos(
            [
                VideoRecord(row, "", complete, {"audio": stop, "visual": 0}, reasons, {"audio": first, "visual": 0})
                for row, (first, stop) in enumerate(steps)
            ]
        )
        digests = {row: digest_row("vggish", f"v{row}", values) for row, values in rows.items()}
        writer.record_features(
            [FeatureRecord(row, "vggish", State.COMPLETE, digest=digest) for row, digest in digests.items()]
        )
        writer.seal()


@pytest.mark.parametrize(
    ("padding", "expected"),
    [("repeat", [[0, 1, 2, 3], [0, 1, 1, 1], [2, 2, 2, 3]]), ("none", [[0, 1, 2, 3], [0, 1], [2, 2, 2, 3]])],
)
def test_steps_that_a_video_does_not_have_are_repeated_or_left_out(padding, expected, tmp_path):
    write_store(tmp_path / "store.zarr", ((0, 4), (0, 2), (2, 4)))
    shown = run_export(tmp_path / "store.zarr", tmp_path / "feats", "--padding", padding, "--json")
    assert shown.exit_code == 0
    found = [np.load(tmp_path / "feats" / "vggish" / f"v{row}.npy")[:, 0].tolist() for row in range(3)]
    assert found == expected
    assert json.loads(shown.stdout)["short"] == [
        {"video_id": "v1", "feature": "vggish", "steps": [0, 2]},
        {"video_id": "v2", "feature": "vggish", "steps": [2, 4]},
    ]


def test_an_array_is_written_again_if_the_store_or_the_padding_changed(tmp_path):
    store, out = tmp_path / "store.zarr", tmp_path / "feats"
    write_store(store, ((0, 4), (0, 2)))
    run_export(store, out)
    assert "1 arrays to write" in run_export(store, out, "--padding", "none").stderr
    write_store(store, ((0, 4), (0, 2)), value=1)
    assert "2 arrays to write" in run_export(store, out, "--padding", "none").stderr
    assert np.load(out / "vggish" / "v1.npy")[:, 0].tolist() == [1, 2]


def test_extracted_features_have_no_hash_of_an_array(tmp_path):
    write_store(tmp_path / "store.zarr", ((0, 4),))
    with pytest.raises(UserError, match="vggish was extracted from videos: its rows are from no array"):
        open_store(tmp_path / "store.zarr").array_sha256("vggish")


def test_values_that_are_not_what_was_computed_are_not_exported(tmp_path):
    write_store(tmp_path / "store.zarr", ((0, 4), (0, 2)))
    write_rows(tmp_path / "store.zarr", "vggish", 0, {0: np.full((4, 128), 7, np.float32)})
    refused = run_export(tmp_path / "store.zarr", tmp_path / "feats")
    assert refused.exit_code == 2
    assert "vggish of 'v0' is not what was computed for it: the store is corrupt" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--features", "tokens"), "feature 'tokens' is unknown: choose one of vggish, resnet18-map"),
        (("--features", ","), "--features names no feature: choose from vggish, resnet18-map"),
        (("--features", "r2plus1d"), "has no feature r2plus1d: it has resnet18-map, vggish"),
        (("--features", SENTENCES), f"--features {SENTENCES}: its arrays are named by question ids: pass --manifest"),
    ],
)
def test_what_cannot_be_exported_is_refused(arguments, message, store, tmp_path):
    refused = run_export(store, tmp_path / "feats", *arguments)
    assert refused.exit_code == 2
    assert message in refused.stderr
    assert not (tmp_path / "feats").exists()


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(store, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1_000_000})
    monkeypatch.setattr(export_arrays.shutil, "disk_usage", lambda folder: usage)
    refused = run_export(store, tmp_path / "feats" / "deep", "--features", "resnet18-map")
    assert refused.exit_code == 2
    assert "has 0.0 GB free, the export needs 0.0 GB: free some, pass another --out" in refused.stderr
    assert not (tmp_path / "feats").exists()
