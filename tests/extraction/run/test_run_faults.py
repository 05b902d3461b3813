"""Runs with faults: replaced or missing files, full disks, incomplete stores, and what is kept and reported."""

import errno
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pytest
import run_toys as run_toys_module
import toy_extractors
import zarr
from run_toys import SECONDS, contents, run_toys

import pipeline.run.coordinator
import pipeline.run.worker
import pipeline.store.writer
from pipeline.errors import UserError
from pipeline.inspection.verify import verify_store
from pipeline.manifests.manifest import load_manifest, save_manifest
from pipeline.media.decoder_process import DecoderProcess
from pipeline.store.location import has_store, locate
from pipeline.store.reader import open_store
from pipeline.store.schema import State
from pipeline.store.writer import write_rows


def states_of_videos(store: Path) -> dict[str, list[Any]]:
    opened = open_store(store)
    kinds = ("visual", "audio")
    return {
        "states": [opened.presence(kind).tolist() for kind in kinds],
        "steps": [opened.steps(kind).tolist() for kind in kinds],
        "sources": opened.source_sha256(),
    }


@pytest.mark.parametrize("order", [("toy-image", "toy-audio"), ("toy-audio", "toy-image")])
def test_features_added_one_at_a_time_give_the_bytes_of_one_run(
    order: tuple[str, str], toy_manifest: Path, tmp_path: Path
) -> None:
    run_toys(toy_manifest, tmp_path / "at-once.zarr")
    for name in order:
        run_toys(toy_manifest, tmp_path / "store.zarr", features=(name,))
    assert contents(tmp_path / "store.zarr") == contents(tmp_path / "at-once.zarr")
    assert verify_store(open_store(tmp_path / "store.zarr")) == []


def test_a_replaced_or_missing_file_gives_no_second_feature(toy_manifest: Path, tmp_path: Path) -> None:
    toys = load_manifest(toy_manifest)
    folder, store = tmp_path / "dataset", tmp_path / "store.zarr"
    shutil.copytree(toy_manifest / "videos", folder / "videos")
    videos = tuple(replace(video, sha256="") for video in toys.videos)
    save_manifest(replace(toys, videos=videos, questions={}), folder)
    run_toys(folder, store, features=("toy-image",))
    before = states_of_videos(store)
    rows = np.flatnonzero(open_store(store).state("toy-image") == State.COMPLETE)
    replaced, gone, pipe = (folder / "videos" / videos[row].path for row in rows[:3])
    original = {path: path.read_bytes() for path in (replaced, gone, pipe)}
    shutil.copyfile(gone, replaced)
    for path in (gone, pipe):
        path.unlink()
    os.mkfifo(pipe)
    summary = run_toys(folder, store, features=("toy-audio",))
    reasons = {failure["video_id"]: failure["reason"] for failure in summary.failures}
    assert len(reasons) == 3
    assert "the video's other features" in reasons[replaced.stem]
    assert reasons[gone.stem] == f"no file {gone.name} in the videos folder"
    assert reasons[pipe.stem] == f"{pipe.name} in the videos folder is not a regular file"
    assert states_of_videos(store) == before
    pipe.unlink()
    for path, data in original.items():
        path.write_bytes(data)
    assert run_toys(folder, store, features=("toy-audio",), retry_failed=True).is_complete
    assert verify_store(open_store(store)) == []


def recorded_batches(
    monkeypatch: pytest.MonkeyPatch, arrivals: list[float], recording: float, last: BaseException | None = None
):
    """Return the batches of items that arrive at `arrivals` if each batch takes `recording` seconds to record."""
    now = [0.0]
    monkeypatch.setattr(pipeline.run.coordinator.time, "monotonic", lambda: now[0])

    def outcomes():
        for number, arrival in enumerate(arrivals):
            now[0] = max(now[0], arrival)
            yield number
        if last is not None:
            raise last

    recorded = []
    try:
        for batch in pipeline.run.coordinator._batch_outcomes(outcomes()):
            recorded.append(list(batch))
            now[0] += recording
    except (OSError, KeyboardInterrupt):
        recorded.append("raised")
    return recorded


def test_fast_outcomes_are_recorded_together_and_slow_ones_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert recorded_batches(monkeypatch, [1, 2, 3, 4], 0.1) == [[0], [1], [2], [3]]
    assert recorded_batches(monkeypatch, [0, 1, 2, 3, 20, 21, 41], 9) == [[0], [1, 2, 3, 4], [5, 6]]
    assert recorded_batches(monkeypatch, [0, 1], 9, OSError()) == [[0], [1], "raised"]
    assert recorded_batches(monkeypatch, [0, 1], 9, KeyboardInterrupt()) == [[0], [1], "raised"]
    assert recorded_batches(monkeypatch, [], 9) == []


def test_outcomes_that_could_not_be_recorded_are_not_repeated() -> None:
    batches = pipeline.run.coordinator._batch_outcomes(iter([0, 1]))
    assert next(batches) == [0]
    batches.close()
    assert list(batches) == []


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (errno.ENOSPC, "no space is left .*: free some"),
        (errno.EDQUOT, "no quota is left .*: free some"),
        (errno.EROFS, "it is read-only .*: mount it for writing"),
        (errno.EFBIG, "one of its files is larger than a process may write .*: raise its 'ulimit -f'"),
    ],
)
@pytest.mark.parametrize("where", [(pipeline.store.writer, "_scatter"), (pipeline.run.worker, "write_rows")])
def test_a_disk_that_cannot_be_written_is_a_one_line_error(
    where: tuple[Any, str], code: int, message: str, toy_manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(*where, refuse)
    with pytest.raises(UserError, match=rf"store\.zarr cannot be written, {message}"):
        run_toys(toy_manifest, tmp_path / "store.zarr", features=("toy-audio",))


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_a_store_that_cannot_be_written_is_an_error_only_if_something_is_pending(
    code: int, toy_manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store.zarr"
    run_toys(toy_manifest, store)
    before = contents(store)
    kept = {path: path.stat().st_mtime_ns for path in store.rglob("*")}

    def refuse(*arguments: Any, **options: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    assert run_toys(toy_manifest, store).extracted == 0
    with pytest.raises(UserError, match="cannot be written, and features of the manifest are pending: copy it"):
        run_toys(toy_manifest, store, features=("toy-image", "toy-clip"))
    assert contents(store) == before
    assert {path: path.stat().st_mtime_ns for path in store.rglob("*")} == kept


def test_a_store_whose_creation_was_killed_does_not_exist_yet(toy_manifest: Path, tmp_path: Path) -> None:
    store = tmp_path / "store.zarr"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zarr.Group, "update_attributes", lambda group, attributes: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_toys(toy_manifest, store)
    assert "zarr.json" in contents(store)
    assert not has_store(locate(store))
    assert run_toys(toy_manifest, store).is_complete
    assert open_store(store).seconds == SECONDS


def test_credentials_in_a_url_are_refused_and_not_repeated() -> None:
    with pytest.raises(UserError, match="contains credentials") as refusal:
        locate("s3://AKIAKEY:hunter2@bucket/store.zarr")
    assert "hunter2" not in str(refusal.value)


def test_a_partition_whose_workers_died_stays_pending_and_is_reported(toy_manifest: Path, tmp_path: Path) -> None:
    def lose_the_first(client: Any, task: Any, items: Any) -> Any:
        next(items)
        yield None
        yield from map(task, items)

    notes = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_toys_module, "stream", lose_the_first)
        summary = run_toys(toy_manifest, tmp_path / "store.zarr", on_progress=lambda step: notes.append(step.note))
    assert summary.extracted == 4
    assert summary.states["toy-image"]["pending"] == 16
    assert "workers died on one partition; run again to repeat it" in notes
    assert run_toys(toy_manifest, tmp_path / "store.zarr").is_complete


def test_a_file_that_is_replaced_while_it_is_decoded_fails(toy_manifest: Path, tmp_path: Path) -> None:
    toys = load_manifest(toy_manifest)
    folder, store = tmp_path / "dataset", tmp_path / "store.zarr"
    shutil.copytree(toy_manifest / "videos", folder / "videos")
    save_manifest(replace(toys, questions={}), folder)
    first, second = (folder / "videos" / video.path for video in toys.videos[:2])
    original = DecoderProcess.decode

    def decode(process: DecoderProcess, path: Path, request: Any) -> Any:
        media = original(process, path, request)
        if path == first:
            shutil.copyfile(second, tmp_path / "other.mp4")
            os.replace(tmp_path / "other.mp4", first)
        return media

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DecoderProcess, "decode", decode)
        summary = run_toys(folder, store)
    reasons = {failure["video_id"]: failure["reason"] for failure in summary.failures}
    cure = "pass --retry-failed when it is no longer written"
    assert reasons == {toys.videos[0].video_id: f"{first.name} was changed or replaced while it was decoded: {cure}"}
    assert open_store(store).source_sha256()[0] == ""


def test_a_file_without_a_feature_may_be_replaced(toy_manifest: Path, tmp_path: Path) -> None:
    toys = load_manifest(toy_manifest)
    folder, store = tmp_path / "dataset", tmp_path / "store.zarr"
    shutil.copytree(toy_manifest / "videos", folder / "videos")
    save_manifest(replace(toys, videos=tuple(replace(v, sha256="") for v in toys.videos), questions={}), folder)
    path = folder / "videos" / toys.videos[0].path
    good = path.read_bytes()
    path.write_bytes(b"not a video")
    assert not run_toys(folder, store).is_complete
    path.write_bytes(good)
    assert run_toys(folder, store, retry_failed=True).is_complete


def test_states_are_recorded_again_if_a_file_without_a_feature_is_replaced(toy_manifest: Path, tmp_path: Path) -> None:
    toys = load_manifest(toy_manifest)
    run_toys(toy_manifest, tmp_path / "known.zarr", features=("toy-audio",))
    audio = open_store(tmp_path / "known.zarr").presence("audio").tolist()
    loud, silent = (toys.videos[audio.index(state)] for state in (State.COMPLETE, State.ABSENT))
    folder, store = tmp_path / "dataset", tmp_path / "store.zarr"
    shutil.copytree(toy_manifest / "videos", folder / "videos")
    save_manifest(replace(toys, videos=(replace(loud, sha256=""), replace(silent, sha256="")), questions={}), folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toy_extractors.ToyAudio, "extract", refuse_to_extract)
        run_toys(folder, store, features=("toy-audio",))
    assert open_store(store).presence("audio").tolist() == [State.COMPLETE, State.ABSENT]
    assert open_store(store).state("toy-audio").tolist() == [State.FAILED, State.ABSENT]
    swap(folder / "videos" / loud.path, folder / "videos" / silent.path)
    run_toys(folder, store, features=("toy-audio",), retry_failed=True)
    assert open_store(store).presence("audio").tolist() == [State.ABSENT, State.ABSENT]
    assert open_store(store).source_sha256()[0] == silent.sha256
    (failure,) = run_toys(folder, store, features=("toy-image",)).failures
    assert failure["video_id"] == silent.video_id
    assert "the video's other features" in failure["reason"]


def test_a_file_deleted_before_a_run_is_resumed_leaves_no_values(toy_manifest: Path, tmp_path: Path) -> None:
    toys = load_manifest(toy_manifest)
    folder, store = tmp_path / "dataset", tmp_path / "store.zarr"
    shutil.copytree(toy_manifest / "videos", folder / "videos")
    save_manifest(replace(toys, videos=toys.videos[:3], questions={}), folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.store.writer.StoreWriter, "record_videos", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_toys(folder, store)
    assert not np.isnan(open_store(store).values("toy-image")[0]).all()
    assert verify_store(open_store(store)) == []
    (folder / "videos" / toys.videos[0].path).unlink()
    run_toys(folder, store)
    assert open_store(store).state("toy-image")[0] == State.FAILED
    assert verify_store(open_store(store)) == []


def refuse_to_extract(*arguments: Any) -> None:
    raise FloatingPointError("no numbers")


def swap(one: Path, other: Path) -> None:
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


def test_the_reason_of_a_corrupt_video_is_kept_when_a_feature_samples_fewer_frames(
    toy_manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = ("toy-clip", "toy-image")
    decode, record = DecoderProcess.decode, pipeline.store.writer.StoreWriter.record_features

    def decode_with_errors(process: DecoderProcess, path: Path, request: Any) -> Any:
        media = decode(process, path, request)
        frames = sum(size.per_second for size in request.frame_sizes)
        return replace(media, visual=replace(media.visual, reason=f"errors in {frames} frames"))

    def record_the_first(writer: Any, records: Any) -> None:
        record(writer, [entry for entry in records if entry.feature == "toy-clip"])
        if records:
            raise ZeroDivisionError

    monkeypatch.setattr(DecoderProcess, "decode", decode_with_errors)
    run_toys(toy_manifest, tmp_path / "expected.zarr", features=features)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.store.writer.StoreWriter, "record_features", record_the_first)
        with pytest.raises(ZeroDivisionError):
            run_toys(toy_manifest, tmp_path / "store.zarr", features=features)
    run_toys(toy_manifest, tmp_path / "store.zarr", features=features)
    assert contents(tmp_path / "store.zarr") == contents(tmp_path / "expected.zarr")
    assert open_store(tmp_path / "store.zarr").reasons("visual")[0] == "errors in 5 frames"


def test_a_hung_worker_that_continues_after_the_store_was_created_again_writes_nothing(
    toy_manifest: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store.zarr"
    late = []

    def hang(*arguments: Any) -> set[int]:
        late.append(arguments)
        return set()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.run.worker, "write_rows", hang)
        run_toys(toy_manifest, store, features=("toy-clip",))
    shutil.rmtree(store)
    run_toys(toy_manifest, store, features=("toy-clip",), normalisation="trained")
    before = contents(store)
    assert late
    for arguments in late:
        with pytest.raises(UserError, match="was it created again"):
            write_rows(*arguments)
    assert contents(store) == before
