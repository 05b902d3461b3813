"""A clip whose video starts after its audio, from the file to the masks of a batch, with each padding."""

from pathlib import Path

import media_maker
import numpy as np
import pytest
import torch
from run_toys import run_toys

import mavqa
from pipeline.inspection.verify import verify_store
from pipeline.manifests.manifest import PADDING_TOKEN, Manifest, Question, Video, Vocabulary, save_manifest
from pipeline.store.schema import State

SECONDS, FIRST, STEPS = 8, 3, 6


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("late")
    (folder / "videos").mkdir()
    clip = folder / "videos" / "late.mov"
    pcm = {"audio_codec": "pcm_s16le", "audio_format": "s16"}
    media_maker.write_clip(clip, media_maker.steady(2.5, start=3.4), (0, 5.9), **pcm)
    question = Question("q", "late", "What shows ?", "What shows ?", "drum", "Visual Counting", "Visual")
    vocabulary = Vocabulary((PADDING_TOKEN, "What", "shows"), ("drum",))
    videos = (Video("late", "late.mov"),)
    save_manifest(Manifest("late", "1", "none", videos, {"test": (question,)}, vocabulary), folder)
    return folder


@pytest.mark.parametrize("padding", ["pad", "cycle"])
def test_steps_before_the_video_starts_are_masked(manifest: Path, tmp_path: Path, padding: str) -> None:
    store = tmp_path / "store.zarr"
    run_toys(manifest, store, seconds=SECONDS, padding=padding)
    opened = mavqa.open_store(store)
    assert opened.presence("visual").tolist() == opened.presence("audio").tolist() == [State.COMPLETE]
    assert opened.reasons("visual") == ["the video starts at second 3"]
    assert (opened.first_steps("visual").tolist(), opened.steps("visual").tolist()) == ([FIRST], [STEPS])
    assert (opened.first_steps("audio").tolist(), opened.steps("audio").tolist()) == ([0], [STEPS])
    assert verify_store(opened) == []

    frames = np.asarray(opened.values("toy-image")[0])
    starts = media_maker.steady(2.5, start=3.4)
    shown = [media_maker.read_number(frame.transpose(1, 2, 0)) for frame in frames[FIRST:STEPS]]
    assert shown == [media_maker.shown_at(starts, step + 0.5) for step in range(FIRST, STEPS)]
    if padding == "cycle":
        own = [3, 4, 5, 3, 4, 5, 3, 4]
        np.testing.assert_array_equal(frames, frames[own])
    else:
        assert np.isnan(frames[:FIRST]).all()
        assert np.isnan(frames[STEPS:]).all()
        np.testing.assert_array_equal(opened.read("toy-image", "late"), frames[:STEPS])

    dataset = mavqa.dataset(opened, manifest, "test", ["tokens", "toy-image", "toy-audio"], time_steps=SECONDS)
    batch = dataset.batch([0])
    available = [FIRST <= step < STEPS for step in range(SECONDS)]
    assert batch.visual_mask.tolist() == [available]
    assert batch.audio_mask.tolist() == [[step < STEPS for step in range(SECONDS)]]
    values = batch.visual["toy-image"][0]
    assert values.flatten(1).isfinite().all(1).tolist() == available
    torch.testing.assert_close(values[FIRST:STEPS], torch.from_numpy(frames[FIRST:STEPS]))
