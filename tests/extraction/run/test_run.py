"""Decisions of a run: what is pending, which settings may be mixed, what is refused before any work."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import toy_extractors
import zarr
from run_toys import run_toys

from pipeline.errors import UserError
from pipeline.extractors.weights import WeightsSource
from pipeline.inspection.verify import summarise_store, verify_store
from pipeline.manifests.manifest import load_manifest, save_manifest
from pipeline.store.reader import open_group, open_store
from pipeline.store.schema import State


@pytest.fixture
def store(extracted_store: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(extracted_store, tmp_path / "store.zarr"))


@pytest.fixture
def manifest(toy_manifest: Path, tmp_path: Path) -> Path:
    """A copy that tests may change, with the same clips."""
    folder = tmp_path / "manifest"
    shutil.copytree(toy_manifest, folder, ignore=shutil.ignore_patterns("videos"))
    (folder / "videos").symlink_to(toy_manifest / "videos")
    return folder


def change(manifest: Path, **changes: object) -> Path:
    save_manifest(replace(load_manifest(manifest), **changes), manifest)  # type: ignore[arg-type]
    return manifest


def test_the_store_records_absent_modalities_and_passes_verification(extracted_store: Path) -> None:
    store = open_store(extracted_store)
    assert verify_store(store) == []
    assert (store.presence("audio") == State.ABSENT).sum() == 1
    assert (store.presence("visual") == State.ABSENT).sum() == 1
    document = summarise_store(store)
    assert document["features"]["toy-audio"]["complete"] == 19
    files = [path for path in (extracted_store / "features" / "toy-audio").rglob("*") if path.is_file()]
    assert document["features"]["toy-audio"]["bytes_stored"] == sum(path.stat().st_size for path in files)
    assert document["features"]["toy-audio"]["spec"]["constants"]["weights"]["weights"] == "seeded"
    json.dumps(document)


def test_a_spec_has_the_seconds_and_what_its_own_modality_depends_on(extracted_store: Path) -> None:
    store = open_store(extracted_store)
    audio, visual = (store.spec(name).constants for name in ("toy-audio", "toy-image"))
    assert audio["sampling"] == {"rule": "audio of each second", "seconds": 4, "short": "pad"}
    assert visual["sampling"]["seconds"] == 4
    assert "soundfile" in audio["decoder"]["version"]
    assert "soundfile" not in visual["decoder"]["version"]


def test_verification_finds_missing_values_of_complete_rows_and_values_of_absent_ones(store: Path) -> None:
    opened = open_store(store)
    complete = int(np.flatnonzero(opened.state("toy-audio") == State.COMPLETE)[0])
    absent = int(np.flatnonzero(opened.state("toy-audio") == State.ABSENT)[0])
    values = zarr.open_group(store, mode="r+")["features/toy-audio/values"]
    values[complete, 1] = np.nan
    values[absent] = 1
    pending = zarr.open_group(store, mode="r+")["features/toy-image/state"]
    pending[0] = State.PENDING
    problems = verify_store(open_store(store))
    messages = [problem.message for problem in problems]
    assert len(messages) == 3
    assert "index arrays" in messages[0]
    assert any("values are missing in 1 of 4 steps" in message for message in messages)
    assert any("the state is absent" in message for message in messages)


def test_verification_finds_lost_steps_and_questions_with_missing_values(store: Path) -> None:
    root = open_group(store, mode="r+")
    (tokens,) = open_store(store).question_feature_names
    root[f"questions/{tokens}/values"][3, 2:] = -1
    root[f"questions/{tokens}/values"][4] = -1
    shutil.rmtree(store / "videos/steps_audio/c")
    for chunk in (store / "features/toy-audio/values").glob("c.*"):
        chunk.unlink()
    (text,) = (text for text, row in open_store(store).question_rows.items() if row == 3)
    other = next(text for text, row in open_store(store).question_rows.items() if row == 4)
    messages = [problem.message for problem in verify_store(open_store(store))]
    assert "index arrays" in messages[0]
    differs = "its values are not those that were computed for it"
    assert messages[1:3] == [f"{tokens} of question {question!r}: {differs}" for question in (text, other)]
    assert len(messages) == 22
    assert messages[3].endswith("the state is complete, but it has 0 steps")


def test_verification_names_the_questions_of_an_unreadable_chunk(store: Path) -> None:
    (chunk,) = (store / "questions").glob("tokens*/values/c*")
    chunk.write_bytes(chunk.read_bytes()[:20])
    first, *_, last = open_store(store).question_rows
    (problem,) = verify_store(open_store(store))
    assert f"of the questions from {first!r} to {last!r}: " in problem.message
    assert "/values cannot be read" in problem.message


def test_other_questions_about_the_same_videos_extract_no_video(store: Path, manifest: Path) -> None:
    questions = load_manifest(manifest).questions["test"]
    other = tuple(replace(question, question_id=f"other-{question.question_id}") for question in questions[:5])
    summary = run_toys(change(manifest, release="second", questions={"test": other}), store)
    assert summary.extracted == 0
    assert summary.is_complete


def test_a_new_feature_does_not_change_the_others(toy_manifest: Path, tmp_path: Path) -> None:
    store = tmp_path / "store.zarr"
    run_toys(toy_manifest, store, features=("toy-audio",))
    before = {p: p.stat().st_mtime_ns for p in (store / "features/toy-audio").rglob("*") if p.is_file()}
    run_toys(toy_manifest, store)
    assert before == {p: p.stat().st_mtime_ns for p in (store / "features/toy-audio").rglob("*") if p.is_file()}
    assert verify_store(open_store(store)) == []


def test_new_videos_are_appended_and_only_they_are_extracted(toy_manifest: Path, tmp_path: Path) -> None:
    toys = load_manifest(toy_manifest)
    folder, store = tmp_path / "part", tmp_path / "store.zarr"
    part = replace(toys, videos=toys.videos[:10], questions={})
    save_manifest(part, folder)
    (folder / "videos").symlink_to(toy_manifest / "videos")
    assert run_toys(folder, store).extracted == 10
    assert run_toys(toy_manifest, store).extracted == 10
    opened = open_store(store)
    assert opened.video_ids == [video.video_id for video in toys.videos]
    assert verify_store(opened) == []


@pytest.mark.parametrize(
    ("settings", "difference"),
    [
        ({"padding": "cycle"}, "sampling.short is pad in the store, cycle here"),
        ({"weights": WeightsSource("seeded", seed=1)}, "weights.seed is 0 in the store, 1 here"),
    ],
)
def test_other_settings_are_refused_with_the_difference_unless_accepted(
    settings: dict[str, object], difference: str, store: Path, manifest: Path
) -> None:
    with pytest.raises(UserError, match=difference):
        run_toys(manifest, store, **settings)
    accepted = run_toys(manifest, store, accept=("toy-image", "toy-audio"), **settings)
    assert accepted.extracted == 0


def test_networks_are_loaded_once_for_all_partitions_and_use_the_threads_of_their_specs(
    toy_manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = []
    threads = torch.get_num_threads()

    def load(*arguments: object) -> str:
        loads.append(arguments)
        torch.set_num_threads(3)
        return ""

    monkeypatch.setattr(toy_extractors.ToyAudio, "load", load)
    try:
        assert run_toys(toy_manifest, tmp_path / "store.zarr", features=("toy-audio",)).extracted == 20
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)
    assert len(loads) == 1
    assert open_store(tmp_path / "store.zarr").spec("toy-audio").constants["machine"]["threads"] == 1


def test_a_short_video_is_repeated_with_padding_cycle(toy_manifest: Path, tmp_path: Path) -> None:
    store = tmp_path / "store.zarr"
    run_toys(toy_manifest, store, seconds=6, padding="cycle")
    opened = open_store(store)
    row = int(np.flatnonzero(opened.state("toy-audio") == State.COMPLETE)[0])
    values = opened.values("toy-audio")[row]
    np.testing.assert_array_equal(values[4:6], values[0:2])
    assert opened.steps("audio")[row] == 4
    assert verify_store(opened) == []


def test_several_frames_per_second_are_one_time_step_and_are_repeated_with_it(
    toy_manifest: Path, tmp_path: Path
) -> None:
    padded, cycled = tmp_path / "padded.zarr", tmp_path / "cycled.zarr"
    run_toys(toy_manifest, padded, features=("toy-clip", "toy-image"), seconds=6)
    run_toys(toy_manifest, cycled, features=("toy-clip",), seconds=6, padding="cycle")
    with_padding, with_cycle = open_store(padded), open_store(cycled)
    assert verify_store(with_padding) == verify_store(with_cycle) == []
    rules = {name: with_padding.spec(name).constants["sampling"]["rule"] for name in with_padding.feature_names}
    assert rules == {
        "toy-clip": "frames shown at the middles of 4 equal parts of each second",
        "toy-image": "frame shown at the middle of each second",
    }
    row = int(np.flatnonzero(with_padding.state("toy-clip") == State.COMPLETE)[0])
    values, repeated = with_padding.values("toy-clip")[row], with_cycle.values("toy-clip")[row]
    assert with_padding.steps("visual")[row] == 4
    np.testing.assert_array_equal(repeated, np.concatenate([values[:4], values[:2]]))


def test_several_frames_per_second_are_refused_with_padding_released(toy_manifest: Path, tmp_path: Path) -> None:
    store = tmp_path / "store.zarr"
    with pytest.raises(UserError, match="toy-clip samples 4 per second: pass --padding pad or cycle"):
        run_toys(toy_manifest, store, features=("toy-image", "toy-clip"), padding="released")
    assert not store.exists()


def test_a_run_inherits_the_normalisation_of_the_store_and_refuses_another(toy_manifest: Path, tmp_path: Path) -> None:
    store = tmp_path / "store.zarr"
    run_toys(toy_manifest, store, features=("toy-clip",), normalisation="trained")
    with pytest.raises(UserError, match=r"toy-clip .* extractor\.normalisation is 2 in the store, 1 here"):
        run_toys(toy_manifest, store, features=("toy-clip",), normalisation="published")
    assert run_toys(toy_manifest, store, features=("toy-clip",)).extracted == 0


def test_released_audio_is_another_feature_of_the_same_videos(toy_manifest: Path, tmp_path: Path) -> None:
    stores = {choice: tmp_path / f"{choice}.zarr" for choice in ("resampled", "released")}
    for choice, store in stores.items():
        run_toys(toy_manifest, store, features=("toy-audio",), audio=choice)
    with pytest.raises(UserError, match=r"toy-audio .* extractor\.audio is released in the store, nothing here"):
        run_toys(toy_manifest, stores["released"], features=("toy-audio",), audio="resampled")
    resampled, released = (open_store(str(store)) for store in stores.values())
    np.testing.assert_array_equal(resampled.steps("audio"), released.steps("audio"))
    np.testing.assert_array_equal(resampled.state("toy-audio"), released.state("toy-audio"))
    video = np.flatnonzero(resampled.state("toy-audio") == State.COMPLETE)[0]
    loudness = [store.values("toy-audio")[video, 0, 0] for store in (resampled, released)]
    assert loudness[1] == pytest.approx(loudness[0] * 0.5**0.5, rel=0.02)  # Mono audio, 3 dB quieter.


def test_a_file_with_another_sha256_and_a_missing_file_are_recorded_failures(
    toy_manifest: Path, tmp_path: Path
) -> None:
    toys = load_manifest(toy_manifest)
    first, second, *rest = toys.videos
    folder, store = tmp_path / "changed", tmp_path / "store.zarr"
    videos = (replace(first, sha256="0" * 64), replace(second, path="gone.mp4"), *rest)
    save_manifest(replace(toys, videos=videos, questions={}), folder)
    (folder / "videos").symlink_to(toy_manifest / "videos")
    summary = run_toys(folder, store)
    assert not summary.is_complete
    reasons = {failure["video_id"]: failure["reason"] for failure in summary.failures}
    assert f"but the manifest or the video's other features have {'0' * 64}" in reasons[first.video_id]
    assert "no file gone.mp4" in reasons[second.video_id]
    assert run_toys(folder, store).extracted == 0
    assert run_toys(folder, store, retry_failed=True).extracted == 2


def test_rows_record_the_index_of_their_spec(toy_manifest: Path, tmp_path: Path) -> None:
    toys, store = load_manifest(toy_manifest), tmp_path / "store.zarr"
    few = tmp_path / "few"
    save_manifest(replace(toys, videos=toys.videos[:5], questions={}), few)
    (few / "videos").symlink_to(toy_manifest / "videos")
    run_toys(few, store, features=("toy-clip",))
    run_toys(toy_manifest, store, features=("toy-clip",), normalisation="trained", accept=("toy-clip",))
    made_by = open_group(store, mode="r")["features/toy-clip/made_by"][:]
    assert made_by[:5].max() == 0
    complete = open_store(store).state("toy-clip") == State.COMPLETE
    assert set(made_by[5:][complete[5:]].tolist()) == {1}


def test_a_manifest_of_other_files_or_unknown_videos_is_refused_and_the_store_is_unchanged(
    store: Path, manifest: Path
) -> None:
    before = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    loaded = load_manifest(manifest)
    other_files = (replace(loaded.videos[0], sha256="f" * 64), *loaded.videos[1:])
    with pytest.raises(UserError, match="the manifest lists ffff"):
        run_toys(change(manifest, videos=other_files), store)
    question = loaded.questions["test"][0]
    unknown_video = {"test": (replace(question, video_id="ghost"),)}
    with pytest.raises(UserError, match="'ghost', which"):
        run_toys(change(manifest, videos=loaded.videos, questions=unknown_video), store)
    unknown_word = {"test": (replace(question, text="Who is the zorblax?"),)}
    with pytest.raises(UserError, match="zorblax"):
        run_toys(change(manifest, questions=unknown_word), store)
    no_text = {"test": (*loaded.questions["test"], replace(question, question_id="s", text=""))}
    with pytest.raises(UserError, match="question s of split test has no text"):
        run_toys(change(manifest, questions=no_text), store, question_features=())
    with pytest.raises(UserError, match="lists no videos"):
        run_toys(change(manifest, videos=(), questions={}), store)
    assert before == {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}


def test_a_folder_without_the_videos_is_refused_before_a_store_is_created(manifest: Path, tmp_path: Path) -> None:
    (manifest / "videos").unlink()
    store = tmp_path / "new.zarr"
    with pytest.raises(UserError, match="does not exist: put the videos of"):
        run_toys(manifest, store)
    (manifest / "videos").mkdir()
    with pytest.raises(UserError, match="contains none of the 20 videos"):
        run_toys(manifest, store)
    assert not store.exists()


def test_a_path_that_is_too_long_fails_its_video_alone(manifest: Path, tmp_path: Path) -> None:
    first, *rest = load_manifest(manifest).videos
    renamed = replace(first, path="a" * 300 + ".mp4")
    change(manifest, videos=(renamed, *rest), questions={})
    (failure,) = run_toys(manifest, tmp_path / "store.zarr", features=("toy-audio",)).failures
    assert failure["video_id"] == first.video_id
    assert failure["reason"].endswith("cannot be read: File name too long")


def test_a_run_that_computes_nothing_records_no_accepted_spec(store: Path, toy_manifest: Path) -> None:
    with pytest.raises(UserError, match=r"short is pad in the store, cycle here.*--accept toy-"):
        run_toys(toy_manifest, store, padding="cycle")
    run_toys(toy_manifest, store, padding="cycle", accept=("toy-image", "toy-audio"))
    for name in ("toy-image", "toy-audio"):
        assert open_group(store, mode="r")[f"features/{name}"].attrs["accepted"] == []


def hints_of(manifest: Path, store: Path, **options: object) -> list[str]:
    """Return the hints of an extraction of the loudness."""
    notes: list[str] = []
    run_toys(manifest, store, ("toy-audio",), lambda progress: notes.append(progress.note), **options)
    return [note for note in notes if note.startswith("hint: ")]


def test_a_time_axis_far_longer_than_all_videos_gets_one_hint(manifest: Path, tmp_path: Path) -> None:
    change(manifest, videos=load_manifest(manifest).videos[:2], questions={})
    (hint,) = hints_of(manifest, tmp_path / "long.zarr", seconds=60)
    assert hint.startswith("hint: the longest of 2 videos has 4 seconds, the store 60 time steps")
    assert "extract with --seconds 4 into another --store" in hint
    assert hints_of(manifest, tmp_path / "long.zarr", seconds=60) == []
    assert hints_of(manifest, tmp_path / "short.zarr", seconds=7) == []
    assert hints_of(manifest, tmp_path / "cycle.zarr", seconds=60, padding="cycle") == []
    assert summarise_store(open_store(tmp_path / "long.zarr"))["longest_seconds"] == 4
