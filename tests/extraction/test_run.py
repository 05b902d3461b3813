"""What a run decides: what is pending, what may be mixed, what is refused before any work."""

import errno
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import run_toys as run_toys_module
import zarr
from run_toys import SECONDS, contents, run_toys

import pipeline.extraction
import pipeline.run
import pipeline.store.writer
from pipeline.child import DecodingChild
from pipeline.failure import UserError
from pipeline.manifest import load_manifest, save_manifest
from pipeline.run import StoredChoices, stored_choices
from pipeline.store.location import locate
from pipeline.store.reader import open_group, open_store
from pipeline.store.schema import State
from pipeline.store.writer import write_rows
from pipeline.verify import summarise_store, verify_store
from pipeline.weights import WeightsSource


@pytest.fixture(scope="module")
def made(toy_manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("made") / "store.zarr"
    run_toys(toy_manifest, store)
    return store


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "store.zarr"))


@pytest.fixture
def manifest(toy_manifest: Path, tmp_path: Path) -> Path:
    """A copy that may be changed; the clips are the same."""
    folder = tmp_path / "manifest"
    shutil.copytree(toy_manifest, folder, ignore=shutil.ignore_patterns("videos"))
    (folder / "videos").symlink_to(toy_manifest / "videos")
    return folder


def change(manifest: Path, **changes: object) -> Path:
    save_manifest(replace(load_manifest(manifest), **changes), manifest)  # type: ignore[arg-type]
    return manifest


def test_the_store_says_what_the_clips_have_and_is_whole(made: Path) -> None:
    store = open_store(made)
    assert verify_store(store) == []
    assert (store.presence("audio") == State.ABSENT).sum() == 1
    assert (store.presence("visual") == State.ABSENT).sum() == 1
    document = summarise_store(store)
    assert document["features"]["toy-sound"]["complete"] == 19
    assert document["features"]["toy-sound"]["spec"]["constants"]["weights"]["weights"] == "seeded"
    json.dumps(document)


def test_verification_finds_a_hole_in_a_complete_row_and_a_value_in_a_hole(store: Path) -> None:
    import zarr

    opened = open_store(store)
    complete = int(np.flatnonzero(opened.state("toy-sound") == State.COMPLETE)[0])
    absent = int(np.flatnonzero(opened.state("toy-sound") == State.ABSENT)[0])
    values = zarr.open_group(store, mode="r+")["features/toy-sound/values"]
    values[complete, 1] = np.nan
    values[absent] = 1
    problems = verify_store(open_store(store))
    assert len(problems) == 2
    assert any("1 of 4 steps have holes" in problem for problem in problems)
    assert any("the state is absent" in problem for problem in problems)


def test_other_questions_about_the_same_videos_extract_nothing_again(store: Path, manifest: Path) -> None:
    asked = load_manifest(manifest).questions["test"]
    other = tuple(replace(q, question_id=f"other-{q.question_id}") for q in asked[:5])
    summary = run_toys(change(manifest, release="second", questions={"test": other}), store)
    assert summary.extracted == 0
    assert summary.is_whole


def test_a_new_feature_leaves_the_others_untouched(toy_manifest: Path, tmp_path: Path) -> None:
    store = tmp_path / "store.zarr"
    run_toys(toy_manifest, store, features=("toy-sound",))
    before = {p: p.stat().st_mtime_ns for p in (store / "features/toy-sound").rglob("*") if p.is_file()}
    run_toys(toy_manifest, store)
    assert before == {p: p.stat().st_mtime_ns for p in (store / "features/toy-sound").rglob("*") if p.is_file()}
    assert verify_store(open_store(store)) == []


def test_videos_that_come_later_are_appended_and_only_they_are_extracted(toy_manifest: Path, tmp_path: Path) -> None:
    whole = load_manifest(toy_manifest)
    folder, store = tmp_path / "part", tmp_path / "store.zarr"
    part = replace(whole, videos=whole.videos[:10], questions={})
    save_manifest(part, folder)
    (folder / "videos").symlink_to(toy_manifest / "videos")
    assert run_toys(folder, store).extracted == 10
    assert run_toys(toy_manifest, store).extracted == 10
    opened = open_store(store)
    assert opened.video_ids == [video.video_id for video in whole.videos]
    assert verify_store(opened) == []


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"short": "cycle"}, "sampling.short is pad in the store, cycle here"),
        ({"weights": WeightsSource("seeded", seed=1)}, "weights.seed is 0 in the store, 1 here"),
    ],
)
def test_other_settings_are_refused_with_what_differs_unless_accepted(
    settings: dict[str, object], named: str, store: Path, manifest: Path
) -> None:
    with pytest.raises(UserError, match=named):
        run_toys(manifest, store, **settings)
    accepted = run_toys(manifest, store, accept=("toy-picture", "toy-sound"), **settings)
    assert accepted.extracted == 0


def test_a_short_video_cycles_where_that_was_asked_for(toy_manifest: Path, tmp_path: Path) -> None:
    store = tmp_path / "store.zarr"
    run_toys(toy_manifest, store, seconds=6, short="cycle")
    opened = open_store(store)
    row = int(np.flatnonzero(opened.state("toy-sound") == State.COMPLETE)[0])
    values = opened.values("toy-sound")[row]
    np.testing.assert_array_equal(values[4:6], values[0:2])
    assert opened.steps("audio")[row] == 4
    assert verify_store(opened) == []


def test_several_frames_of_a_second_make_one_row_of_it_and_cycle_with_it(toy_manifest: Path, tmp_path: Path) -> None:
    padded, cycled = tmp_path / "padded.zarr", tmp_path / "cycled.zarr"
    run_toys(toy_manifest, padded, features=("toy-clip", "toy-picture"), seconds=6)
    run_toys(toy_manifest, cycled, features=("toy-clip",), seconds=6, short="cycle")
    clips, others = open_store(padded), open_store(cycled)
    assert verify_store(clips) == verify_store(others) == []
    assert (
        clips.spec("toy-clip").constants["sampling"]["rule"]
        == "frames shown at the middles of 4 equal parts of each second"
    )
    assert clips.spec("toy-picture").constants["sampling"]["rule"] == "frame shown at the middle of each second"
    row = int(np.flatnonzero(clips.state("toy-clip") == State.COMPLETE)[0])
    values, again = clips.values("toy-clip")[row], others.values("toy-clip")[row]
    assert clips.steps("visual")[row] == 4
    np.testing.assert_array_equal(again, np.concatenate([values[:4], values[:2]]))


def test_several_frames_of_a_second_are_refused_under_the_rule_that_counts_single_ones(
    toy_manifest: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store.zarr"
    with pytest.raises(UserError, match="toy-clip reads 4 of each second: give --short pad or cycle"):
        run_toys(toy_manifest, store, features=("toy-picture", "toy-clip"), short="released")
    assert not store.exists()


def test_a_store_of_one_choice_of_constants_refuses_the_other(toy_manifest: Path, tmp_path: Path) -> None:
    store = tmp_path / "store.zarr"
    run_toys(toy_manifest, store, features=("toy-clip",), normalisation="trained")
    with pytest.raises(UserError, match=r"toy-clip .* extractor\.normalisation is 2 in the store, 1 here"):
        run_toys(toy_manifest, store, features=("toy-clip",))
    run_toys(toy_manifest, store, features=("toy-clip",), normalisation="trained")


def test_a_file_that_is_not_the_manifests_or_not_there_is_a_recorded_failure(
    toy_manifest: Path, tmp_path: Path
) -> None:
    whole = load_manifest(toy_manifest)
    first, second, *rest = whole.videos
    folder, store = tmp_path / "wrong", tmp_path / "store.zarr"
    videos = (replace(first, sha256="0" * 64), replace(second, path="gone.mp4"), *rest)
    save_manifest(replace(whole, videos=videos, questions={}), folder)
    (folder / "videos").symlink_to(toy_manifest / "videos")
    summary = run_toys(folder, store)
    assert not summary.is_whole
    reasons = {failure["video_id"]: failure["reason"] for failure in summary.failures}
    assert f"that of the manifest or of the video's other features {'0' * 64}" in reasons[first.video_id]
    assert "no file gone.mp4" in reasons[second.video_id]
    assert run_toys(folder, store).extracted == 0
    assert run_toys(folder, store, retry_failed=True).extracted == 2


def videos_of(store: Path) -> dict[str, list[Any]]:
    opened = open_store(store)
    kinds = ("visual", "audio")
    return {
        "states": [opened.presence(kind).tolist() for kind in kinds],
        "steps": [opened.steps(kind).tolist() for kind in kinds],
        "sources": opened.source_sha256(),
    }


@pytest.mark.parametrize("order", [("toy-picture", "toy-sound"), ("toy-sound", "toy-picture")])
def test_a_feature_added_later_leaves_what_is_known_of_the_videos(
    order: tuple[str, str], toy_manifest: Path, tmp_path: Path
) -> None:
    run_toys(toy_manifest, tmp_path / "at-once.zarr")
    for name in order:
        run_toys(toy_manifest, tmp_path / "store.zarr", features=(name,))
    assert contents(tmp_path / "store.zarr") == contents(tmp_path / "at-once.zarr")
    assert verify_store(open_store(tmp_path / "store.zarr")) == []


def test_a_file_that_was_replaced_or_is_gone_gives_no_second_feature(toy_manifest: Path, tmp_path: Path) -> None:
    whole = load_manifest(toy_manifest)
    folder, store = tmp_path / "dataset", tmp_path / "store.zarr"
    shutil.copytree(toy_manifest / "videos", folder / "videos")
    videos = tuple(replace(video, sha256="") for video in whole.videos)
    save_manifest(replace(whole, videos=videos, questions={}), folder)
    run_toys(folder, store, features=("toy-picture",))
    before = videos_of(store)
    rows = np.flatnonzero(open_store(store).state("toy-picture") == State.COMPLETE)
    replaced, gone, pipe = (folder / "videos" / videos[row].path for row in rows[:3])
    original = {path: path.read_bytes() for path in (replaced, gone, pipe)}
    shutil.copyfile(gone, replaced)
    for path in (gone, pipe):
        path.unlink()
    os.mkfifo(pipe)
    summary = run_toys(folder, store, features=("toy-sound",))
    reasons = {failure["video_id"]: failure["reason"] for failure in summary.failures}
    assert len(reasons) == 3
    assert "of the video's other features" in reasons[replaced.stem]
    assert reasons[gone.stem] == f"no file {gone.name} in the videos folder"
    assert reasons[pipe.stem] == f"no plain file {pipe.name} in the videos folder"
    assert videos_of(store) == before
    pipe.unlink()
    for path, data in original.items():
        path.write_bytes(data)
    assert run_toys(folder, store, features=("toy-sound",), retry_failed=True).is_whole
    assert verify_store(open_store(store)) == []


def gathered(
    monkeypatch: pytest.MonkeyPatch, arrivals: list[float], recording: float, last: BaseException | None = None
):
    """Return what is recorded together where items come at `arrivals` and a recording takes so many seconds."""
    now = [0.0]
    monkeypatch.setattr(pipeline.run.time, "monotonic", lambda: now[0])

    def outcomes():
        for number, arrival in enumerate(arrivals):
            now[0] = max(now[0], arrival)
            yield number
        if last is not None:
            raise last

    together = []
    try:
        for batch in pipeline.run._gather_fast(outcomes()):
            together.append(list(batch))
            now[0] += recording
    except OSError:
        together.append("raised")
    return together


def test_what_comes_fast_is_recorded_together_and_what_comes_slowly_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gathered(monkeypatch, [1, 2, 3, 4], 0.1) == [[0], [1], [2], [3]]
    assert gathered(monkeypatch, [0, 1, 2, 3, 20, 21, 41], 9) == [[0], [1, 2, 3, 4], [5, 6]]
    assert gathered(monkeypatch, [0, 1], 9, OSError()) == [[0], [1], "raised"]
    assert gathered(monkeypatch, [], 9) == []


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "no space is left .*: free some"),
        (errno.EDQUOT, "no quota is left .*: free some"),
        (errno.EROFS, "it is read-only .*: mount it for writing"),
        (errno.EFBIG, "a file of it is larger than a process may write .*: raise its 'ulimit -f'"),
    ],
)
@pytest.mark.parametrize("where", [(pipeline.store.writer, "_scatter"), (pipeline.extraction, "write_rows")])
def test_a_disk_that_takes_no_more_is_told_in_one_line(
    where: tuple[Any, str], code: int, words: str, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(*where, refuse)
    with pytest.raises(UserError, match=rf"store\.zarr cannot be written, {words}"):
        run_toys(manifest, tmp_path / "store.zarr", features=("toy-sound",))


def test_a_store_whose_making_was_killed_is_none_yet(toy_manifest: Path, tmp_path: Path) -> None:
    store = tmp_path / "store.zarr"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zarr.Group, "update_attributes", lambda group, attributes: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_toys(toy_manifest, store)
    assert "zarr.json" in contents(store)
    assert stored_choices(str(store)) == StoredChoices()
    assert run_toys(toy_manifest, store).is_whole
    assert stored_choices(str(store)).seconds == SECONDS


def test_credentials_in_a_url_are_refused_and_not_repeated() -> None:
    with pytest.raises(UserError, match="holds credentials") as refusal:
        locate("s3://AKIAKEY:hunter2@bucket/store.zarr")
    assert "hunter2" not in str(refusal.value)


def test_a_partition_whose_workers_died_stays_pending_and_is_told(toy_manifest: Path, tmp_path: Path) -> None:
    def lose_the_first(client: Any, task: Any, items: Any) -> Any:
        next(items)
        yield None
        yield from map(task, items)

    notes = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_toys_module, "stream", lose_the_first)
        summary = run_toys(toy_manifest, tmp_path / "store.zarr", on_progress=lambda step: notes.append(step.note))
    assert summary.extracted == 4
    assert summary.states["toy-picture"]["pending"] == 16
    assert "workers died over one partition; run again to redo it" in notes
    assert run_toys(toy_manifest, tmp_path / "store.zarr").is_whole


def test_rows_say_which_accepted_description_made_them(toy_manifest: Path, tmp_path: Path) -> None:
    whole, store = load_manifest(toy_manifest), tmp_path / "store.zarr"
    few = tmp_path / "few"
    save_manifest(replace(whole, videos=whole.videos[:5], questions={}), few)
    (few / "videos").symlink_to(toy_manifest / "videos")
    run_toys(few, store, features=("toy-clip",))
    run_toys(toy_manifest, store, features=("toy-clip",), normalisation="trained", accept=("toy-clip",))
    made_by = open_group(store, mode="r")["features/toy-clip/made_by"][:]
    assert made_by[:5].max() == 0
    complete = open_store(store).state("toy-clip") == State.COMPLETE
    assert set(made_by[5:][complete[5:]].tolist()) == {1}


def test_a_file_that_is_replaced_while_it_is_decoded_costs_its_video(toy_manifest: Path, tmp_path: Path) -> None:
    whole = load_manifest(toy_manifest)
    folder, store = tmp_path / "dataset", tmp_path / "store.zarr"
    shutil.copytree(toy_manifest / "videos", folder / "videos")
    save_manifest(replace(whole, questions={}), folder)
    first, second = (folder / "videos" / video.path for video in whole.videos[:2])
    original = DecodingChild.decode

    def decode(child: DecodingChild, path: Path, request: Any) -> Any:
        media = original(child, path, request)
        if path == first:
            shutil.copyfile(second, tmp_path / "other.mp4")
            os.replace(tmp_path / "other.mp4", first)
        return media

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DecodingChild, "decode", decode)
        summary = run_toys(folder, store)
    reasons = {failure["video_id"]: failure["reason"] for failure in summary.failures}
    assert reasons == {whole.videos[0].video_id: f"{first.name} was changed or replaced while it was decoded"}
    assert open_store(store).source_sha256()[0] == ""


def test_a_file_that_never_gave_a_feature_may_be_replaced(toy_manifest: Path, tmp_path: Path) -> None:
    whole = load_manifest(toy_manifest)
    folder, store = tmp_path / "dataset", tmp_path / "store.zarr"
    shutil.copytree(toy_manifest / "videos", folder / "videos")
    save_manifest(replace(whole, videos=tuple(replace(v, sha256="") for v in whole.videos), questions={}), folder)
    path = folder / "videos" / whole.videos[0].path
    good = path.read_bytes()
    path.write_bytes(b"not a film")
    assert not run_toys(folder, store).is_whole
    path.write_bytes(good)
    assert run_toys(folder, store, retry_failed=True).is_whole


def test_a_worker_that_wakes_up_when_the_store_was_made_anew_writes_nothing(toy_manifest: Path, tmp_path: Path) -> None:
    store = tmp_path / "store.zarr"
    late = []

    def hang(*arguments: Any) -> None:
        late.append(arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.extraction, "write_rows", hang)
        run_toys(toy_manifest, store, features=("toy-clip",))
    shutil.rmtree(store)
    run_toys(toy_manifest, store, features=("toy-clip",), normalisation="trained")
    before = contents(store)
    assert late
    for arguments in late:
        with pytest.raises(UserError, match="was it made anew"):
            write_rows(*arguments)
    assert contents(store) == before


def test_a_manifest_of_other_files_or_unknown_videos_is_refused_and_the_store_stays(
    store: Path, manifest: Path
) -> None:
    before = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    loaded = load_manifest(manifest)
    wrong = (replace(loaded.videos[0], sha256="f" * 64), *loaded.videos[1:])
    with pytest.raises(UserError, match="the manifest names ffff"):
        run_toys(change(manifest, videos=wrong), store)
    ghost = {"test": (replace(loaded.questions["test"][0], video_id="ghost"),)}
    with pytest.raises(UserError, match="'ghost', which"):
        run_toys(change(manifest, videos=loaded.videos, questions=ghost), store)
    words = {"test": (replace(loaded.questions["test"][0], text="Who is the zorblax?"),)}
    with pytest.raises(UserError, match="zorblax"):
        run_toys(change(manifest, questions=words), store)
    assert before == {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}


def test_a_folder_without_the_videos_is_refused_before_a_store_is_made(manifest: Path, tmp_path: Path) -> None:
    (manifest / "videos").unlink()
    store = tmp_path / "new.zarr"
    with pytest.raises(UserError, match="does not exist: put the videos of"):
        run_toys(manifest, store)
    (manifest / "videos").mkdir()
    with pytest.raises(UserError, match="holds none of the 20 videos"):
        run_toys(manifest, store)
    assert not store.exists()
