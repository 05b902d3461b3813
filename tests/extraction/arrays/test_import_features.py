"""`mavqa-import-features`: published arrays become a store; what does not fit is refused or recorded."""

import hashlib
import json
import pickle
import re
import shutil
import weakref
from pathlib import Path

import numpy as np
import pages
import pytest
from array_folders import SECONDS, VIDEOS, content, make_array, run_import, write_arrays
from click.testing import CliRunner
from writing import writing

from pipeline.arrays import import_arrays, layouts
from pipeline.arrays.import_arrays import import_features
from pipeline.arrays.layouts import LAYOUTS
from pipeline.cli.extract import extract
from pipeline.cli.inspect import inspect
from pipeline.errors import UserError
from pipeline.extractors.registry import EXTRACTORS, QUESTION_EXTRACTORS, make_extractor, make_question_extractor
from pipeline.inspection.verify import verify_store
from pipeline.manifests.manifest import load_manifest
from pipeline.store.reader import open_store
from pipeline.store.schema import State
from pipeline.store.seal import digest_row
from pipeline.store.writer import StoreWriter


@pytest.fixture
def feats(tmp_path: Path) -> Path:
    write_arrays(tmp_path / "feats" / "vggish", "vggish")
    write_arrays(tmp_path / "feats" / "r2plus1d", "r2plus1d")
    return tmp_path / "feats"


def states(store: Path, feature: str) -> dict[str, str]:
    opened = open_store(store)
    return dict(zip(opened.video_ids, (State(code).name.lower() for code in opened.state(feature)), strict=True))


def reasons(store: Path, feature: str) -> dict[str, str]:
    opened = open_store(store)
    return {v: r for v, r in zip(opened.video_ids, opened.feature_reasons(feature), strict=True) if r}


def written_at(store: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in store.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_has_the_axes_of_the_extractor(name, manifest):
    layout = LAYOUTS[name]
    assert name in {**EXTRACTORS, **QUESTION_EXTRACTORS}
    made = (
        make_question_extractor(name, load_manifest(manifest).vocabulary)
        if layout.is_of_questions
        else make_extractor(name)
    )
    assert (made.modality, tuple(made.dims), tuple(made.shape), made.dtype) == (
        *(layout.modality, layout.dims, layout.shape, layout.dtype),
    )


def test_the_page_lists_the_layouts():
    text = pages.page("arrays.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w-]+)` \| (`.+`) \| (\[.+\]) \|", text, re.MULTILINE)
    listed = {name: (tuple(re.findall("`(.+?)`", folders)), shape) for name, folders, shape in rows}
    assert listed == {name: (layout.folders, layout.describe_shape()) for name, layout in LAYOUTS.items()}


def test_arrays_become_a_store_with_their_provenance(manifest, store, feats):
    write_arrays(feats / "maps", "resnet18-map", VIDEOS[:2])
    arguments = ("--from", feats / "vggish", "--from", f"resnet18-map={feats / 'maps'}", "--seconds", SECONDS)
    shown = run_import(manifest, store, *arguments, "--made-by", "the authors", "--json")
    assert shown.exit_code == 3
    document = json.loads(shown.stdout)
    assert (document["imported"], document["states"]["vggish"]["complete"]) == (19, 17)
    assert document["failures"][0] == {"video_id": "v02", "feature": "resnet18-map", "reason": "no array v02.npy"}
    opened = open_store(store)
    for feature, folder in (("vggish", "vggish"), ("resnet18-map", "maps")):
        path = feats / folder / "v01.npy"
        values = opened.read(feature, "v01")
        assert values.dtype == LAYOUTS[feature].dtype
        np.testing.assert_array_equal(values, np.load(path))
        assert opened.array_sha256(feature)[1] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert opened.digests(feature)[1] == digest_row(feature, "v01", values)
    assert opened.array_sha256("resnet18-map")[2] == ""
    assert opened.source_sha256() == [""] * len(VIDEOS)
    spec = opened.spec("vggish")
    assert spec.is_imported
    assert spec.constants["imported"] == {"made_by": "the authors"}
    assert opened.steps("audio").tolist() == [SECONDS] * len(VIDEOS)
    assert verify_store(opened) == []


def test_a_rerun_writes_nothing_and_later_arrays_are_added(manifest, store, feats):
    (feats / "vggish" / "v03.npy").rename(feats / "aside.npy")
    arguments = ("--from", feats / "vggish", "--seconds", SECONDS)
    assert run_import(manifest, store, *arguments).exit_code == 3
    before = content(store), written_at(store)
    assert "nothing to import" in run_import(manifest, store, *arguments).stderr
    assert (content(store), written_at(store)) == before
    (feats / "aside.npy").rename(feats / "vggish" / "v03.npy")
    shown = run_import(manifest, store, "--from", feats / "vggish", "--from", feats / "r2plus1d", "--json")
    assert shown.exit_code == 0
    assert json.loads(shown.stdout)["imported"] == 1 + len(VIDEOS)
    whole = store.with_name("whole.zarr")
    run_import(manifest, whole, *arguments, "--from", feats / "r2plus1d")
    assert open_store(store).digest == open_store(whole).digest
    assert verify_store(open_store(store)) == []


class Killed(BaseException):
    pass


def stop(*arguments, **settings):
    raise Killed


def test_a_stopped_import_resumes_to_the_same_bytes(manifest, store, feats, monkeypatch):
    sources, loaded = {"vggish": feats / "vggish"}, load_manifest(manifest)
    import_features(loaded, str(store), sources, seconds=SECONDS)
    expected = content(store)
    steps = ((import_arrays, "write_rows"), (StoreWriter, "record_videos"), (StoreWriter, "record_features"))
    for owner, name in steps:
        shutil.rmtree(store)
        original, calls = getattr(owner, name), []

        def stop_at_the_second(*arguments, original=original, calls=calls, **settings):
            calls.append(arguments)
            if len(calls) == 2:
                raise Killed
            return original(*arguments, **settings)

        with monkeypatch.context() as patched:
            patched.setattr(owner, name, stop_at_the_second)
            with pytest.raises(Killed):
                import_features(loaded, str(store), sources, seconds=SECONDS)
        assert import_features(loaded, str(store), sources).is_complete
        assert content(store) == expected, name


def test_a_missing_array_is_a_failure_unless_the_user_says_that_the_modality_is_absent(manifest, store, feats):
    (feats / "vggish" / "v00.npy").unlink()
    arguments = ("--from", feats / "vggish", "--from", feats / "r2plus1d", "--seconds", SECONDS)
    assert run_import(manifest, store, *arguments).exit_code == 3
    assert reasons(store, "vggish") == {"v00": "no array v00.npy"}
    assert run_import(manifest, store, *arguments, "--absent", "audio").exit_code == 0
    opened = open_store(store)
    assert states(store, "vggish")["v00"] == "absent"
    assert (opened.presence("audio")[0], opened.presence("visual")[0]) == (State.ABSENT, State.COMPLETE)
    assert verify_store(opened) == []
    # What is absent stays so without the option.
    assert run_import(manifest, store, *arguments).exit_code == 0
    # A modality with another feature is not absent.
    write_arrays(feats / "res18", "resnet18-pooled", VIDEOS[1:])
    assert run_import(manifest, store, "--from", feats / "res18", "--absent", "visual").exit_code == 3
    assert states(store, "resnet18-pooled")["v00"] == "failed"


def test_short_arrays_leave_steps_missing_and_long_ones_are_cut(manifest, store, tmp_path):
    feats = write_arrays(tmp_path / "vggish", "vggish", VIDEOS[2:])
    write_arrays(feats, "vggish", VIDEOS[:1], steps=SECONDS - 1)
    write_arrays(feats, "vggish", VIDEOS[1:2], steps=SECONDS + 1)
    shown = run_import(manifest, store, "--from", feats, "--seconds", SECONDS, "--json")
    assert shown.exit_code == 0
    assert json.loads(shown.stdout)["notes"] == [
        "vggish: 1 arrays have more than 3 steps and are cut to 3",
        "vggish: 1 arrays have fewer than 3 steps; the others are missing",
    ]
    opened = open_store(store)
    assert opened.steps("audio")[:3].tolist() == [2, 3, 3]
    np.testing.assert_array_equal(opened.read("vggish", "v01"), make_array("vggish", "v01", SECONDS + 1)[:SECONDS])
    assert np.isnan(opened.values("vggish")[0, 2]).all()
    assert verify_store(opened) == []
    short = write_arrays(tmp_path / "short", "vggish", steps=2)
    shown = run_import(manifest, tmp_path / "other.zarr", "--from", f"vggish={short}")
    assert "have fewer than 60 steps; the others are missing; none has more than 2: pass --sec" in shown.stderr


def _nan(path: Path) -> None:
    values = np.load(path)
    values[1, 3] = np.nan
    np.save(path, values)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


def _pickle(path: Path) -> None:
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)


BROKEN = {
    "NaN": (_nan, "{}.npy row 1 contains values that are not finite"),
    "truncated": (_truncate, "{}.npy cannot be read (mmap length is greater than file size)"),
    "objects": (_pickle, "{}.npy cannot be read (Array can't be memory-mapped: Python objects in dtype.)"),
    "a pickle": (lambda path: path.write_bytes(pickle.dumps([1])), "{}.npy cannot be read (the magic string is not"),
    "empty": (lambda path: path.write_bytes(b""), "{}.npy cannot be read (EOF: reading magic string"),
    "no steps": (lambda path: np.save(path, np.zeros((0, 128), np.float32)), "{}.npy has shape [0, 128], expected"),
    "other axes": (
        lambda path: np.save(path, np.zeros((128, 3), np.float32)),
        "{}.npy has shape [128, 3], expected [time, 128]",
    ),
    "integers": (
        lambda path: np.save(path, np.zeros((3, 128), int)),
        "{}.npy contains int64, not floating-point numbers",
    ),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "{}.npy is not a regular file"),
    "a loop of links": (lambda path: (path.unlink(), path.symlink_to(path)), "{}.npy cannot be read ("),
}


def test_an_array_that_cannot_be_used_fails_alone_with_its_reason(manifest, store, feats):
    broken = dict(zip(VIDEOS, BROKEN.values(), strict=False))
    for video, (break_array, _) in broken.items():
        break_array(feats / "vggish" / f"{video}.npy")
    shown = run_import(manifest, store, "--from", feats / "vggish", "--seconds", SECONDS, "--json")
    assert shown.exit_code == 3
    failures = json.loads(shown.stdout)["failures"]
    assert [failure["video_id"] for failure in failures] == list(broken)
    for failure in failures:
        assert failure["reason"].startswith(broken[failure["video_id"]][1].format(failure["video_id"]))
        assert "\n" not in failure["reason"]
    assert list(states(store, "vggish").values())[len(broken) :] == ["complete"] * (len(VIDEOS) - len(broken))
    assert verify_store(open_store(store)) == []


def test_features_of_one_modality_have_the_same_steps(manifest, store, feats):
    write_arrays(feats / "res18", "resnet18-pooled", steps=SECONDS)
    write_arrays(feats / "res18", "resnet18-pooled", VIDEOS[:1], steps=2)
    run_import(manifest, store, "--from", feats / "r2plus1d", "--seconds", SECONDS)
    assert run_import(manifest, store, "--from", feats / "res18").exit_code == 3
    assert reasons(store, "resnet18-pooled") == {"v00": "v00.npy has 2 steps, the video's other visual features have 3"}
    assert verify_store(open_store(store)) == []


def test_a_length_that_a_stopped_run_recorded_does_not_bind_another_array(manifest, store, feats, monkeypatch):
    sources, loaded = {"vggish": feats / "vggish"}, load_manifest(manifest)
    with monkeypatch.context() as patched:
        patched.setattr(StoreWriter, "record_features", stop)
        with pytest.raises(Killed):
            import_features(loaded, str(store), sources, seconds=SECONDS)
    write_arrays(feats / "vggish", "vggish", VIDEOS[:1], steps=2)
    assert import_features(loaded, str(store), sources).is_complete
    assert open_store(store).steps("audio")[:2].tolist() == [2, 3]
    assert verify_store(open_store(store)) == []


def test_values_that_become_infinite_in_the_stores_type_fail(manifest, store, tmp_path):
    folder = write_arrays(tmp_path / "res18_14x14", "resnet18-map", VIDEOS[:2])
    values = make_array("resnet18-map", "v00")
    values[2, 0, 0, 0] = 1e6
    np.save(folder / "v00.npy", values)
    run_import(manifest, store, "--from", folder, "--seconds", SECONDS)
    assert reasons(store, "resnet18-map")["v00"] == "v00.npy row 2 contains values that are too large for float16"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("vggish={feats}/none",), "--from vggish={feats}/none: the folder does not exist"),
        (("vggish={feats}",), "--from vggish={feats}: the folder contains no .npy: pass the one with a file per video"),
        (("vgish={feats}/vggish",), "feature 'vgish' is unknown (did you mean 'vggish'?): choose one of vggish, "),
        (("{feats}",), "--from {feats}: no release names a folder 'feats': pass --from FEATURE={feats}"),
        (("{feats}/vggish", "vggish={feats}/x"), "--from names vggish twice, {feats}/vggish and {feats}/x"),
        (
            ("resnet18-map={feats}/r2plus1d",),
            "no array can be imported: v00.npy has shape [3, 512] (that of resnet18-pooled, r2plus1d), expected [time, "
            "512, 14, 14]; pass the folder of this feature's arrays",
        ),
        (
            ("vggish={feats}/strangers",),
            "none of its 1 arrays, such as x.npy, is named after a video of the manifest, such as v00: pass another",
        ),
        (("vggish={feats}/nan",), "no array can be imported: v01.npy row 0 contains values that are not finite"),
        (("clip-vit-b32-words={feats}/vggish",), "is named after a question of the manifest, such as 0: pass another"),
    ],
)
def test_what_fits_nothing_is_refused_before_anything_is_written(arguments, message, manifest, store, feats):
    write_arrays(feats / "strangers", "vggish", ("x",))
    (feats / "nan").mkdir()
    for name in VIDEOS[:2]:
        np.save(feats / "nan" / f"{name}.npy", np.full((3, 128), np.nan, np.float32))
    words = [word for source in arguments for word in ("--from", source.format(feats=feats))]
    shown = run_import(manifest, store, *words, "--seconds", SECONDS)
    assert shown.exit_code == 2
    assert message.format(feats=feats) in shown.stderr
    assert not store.exists()


def test_imported_and_extracted_features_of_videos_are_never_mixed(manifest, store, feats, tmp_path):
    run_import(manifest, store, "--from", feats / "vggish", "--seconds", SECONDS)
    before = content(store)
    videos = tmp_path / "videos"
    videos.mkdir()
    words = ["--manifest", manifest, "--store", store, "--videos", videos, "--weights", "seeded"]
    for features in ("vggish", "resnet18-map,tokens"):
        refused = CliRunner().invoke(extract, [*map(str, words), "--features", features])
        assert refused.exit_code == 2
        assert f"store {store} has vggish imported from arrays, which extracted features of" in refused.stderr
    assert content(store) == before
    for wrong, message in (
        (("--made-by", "else"), "vggish in {store} was imported with --made-by '', not 'else': pass the same, leave"),
        (("--seconds", 4), "has 3 seconds per video, not 4: pass --seconds 3 or another --store"),
    ):
        refused = run_import(manifest, store, "--from", feats / "vggish", *wrong)
        assert refused.exit_code == 2
        assert message.format(store=store) in refused.stderr
    assert content(store) == before
    # Features of questions are added as to any other store.
    added = CliRunner().invoke(extract, [*map(str, words), "--features", "tokens"])
    assert added.exit_code == 0, added.stderr
    assert verify_store(open_store(store)) == []

    extracted = tmp_path / "extracted.zarr"
    with writing(extracted, SECONDS) as writer:
        writer.add_spec(LAYOUTS["r2plus1d"].spec({}))
    refused = run_import(manifest, extracted, "--from", feats / "vggish", "--seconds", SECONDS)
    assert refused.exit_code == 2
    assert f"store {extracted} has r2plus1d from mavqa-extract, which imported features are never" in refused.stderr


def test_inspection_shows_and_repairs_an_imported_store(manifest, store, feats):
    run_import(manifest, store, "--from", feats / "vggish", "--seconds", SECONDS)
    assert "imported" in CliRunner().invoke(inspect, [str(store)]).stdout
    chunk = next(path for path in (store / "features" / "vggish" / "values").glob("c.*"))
    chunk.write_bytes(chunk.read_bytes()[:-3])
    repaired = CliRunner().invoke(inspect, [str(store), "--verify", "--repair"])
    assert "are pending: run mavqa-import-features again" in repaired.stderr
    assert run_import(manifest, store, "--from", feats / "vggish").exit_code == 0
    assert verify_store(open_store(store)) == []


def test_an_array_is_open_only_while_it_is_read(manifest, store, feats, monkeypatch):
    """So that memory does not grow with the number of videos."""
    opened: list[weakref.ref] = []
    alive = []
    original = layouts.open_array

    def remember(*arguments, **settings):
        array = original(*arguments, **settings)
        opened.append(weakref.ref(array))
        alive.append(sum(reference() is not None for reference in opened))
        return array

    monkeypatch.setattr(layouts, "open_array", remember)
    assert run_import(manifest, store, "--from", feats / "vggish", "--seconds", SECONDS).exit_code == 0
    assert len(alive) >= 2 * len(VIDEOS)
    assert max(alive) <= 2


def test_names_that_the_command_would_not_pass_are_refused(manifest, store, feats):
    loaded = load_manifest(manifest)
    with pytest.raises(UserError, match=r"modality 'sound' is unknown.*: choose one of audio, visual"):
        import_features(loaded, str(store), {"vggish": feats / "vggish"}, absent=["sound"])
    with pytest.raises(UserError, match=r"feature 'res18_14x14' is unknown.*: choose one of vggish"):
        import_features(loaded, str(store), {"res18_14x14": feats / "vggish"})
    assert not store.exists()
