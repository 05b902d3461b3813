"""The benchmark of loading at small size: all ways read the same stand-ins, and every verdict is printed."""

import argparse
import random
from pathlib import Path

import loading
import numpy as np
import pytest
from stand_ins import SHARE_OF_ZEROS, StoredFeature


@pytest.fixture
def stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(loading, "MAP", (4, 3, 3))
    monkeypatch.setitem(loading.FEATURES, "resnet18-map", StoredFeature("visual", (4, 3, 3), "float16"))
    loading.write_stand_ins(tmp_path, 20)
    return tmp_path


def test_the_store_and_the_arrays_have_the_same_values(stand_ins: Path) -> None:
    questions = loading.dataset(stand_ins, "none")
    batch = questions.batch([0, 99])
    for position, video in enumerate(("00000000", "00000019")):
        for name, features in (("vggish", batch.audio), ("resnet18-map", batch.visual)):
            stored = np.load(stand_ins / name / f"{video}.npy")[::6]
            np.testing.assert_array_equal(features[name][position].numpy(), stored)
    assert np.mean(batch.visual["resnet18-map"].numpy() == 0) == pytest.approx(SHARE_OF_ZEROS, abs=0.05)


def test_the_reads_of_the_release_never_take_a_negative_from_the_own_video(stand_ins: Path) -> None:
    videos = [f"{number:08d}" for number in range(3)]
    load, own = loading.whole_arrays(stand_ins, videos), np.load(stand_ins / "resnet18-map" / "00000001.npy")
    random.seed(0)
    for _ in range(20):
        audio, maps, negatives = load(1)
        np.testing.assert_array_equal(maps, own[::6])
        assert not any(np.array_equal(negative, frame) for negative in negatives for frame in own)
    assert audio.shape == (10, 128)


def test_every_way_and_every_verdict_is_printed(
    stand_ins: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = argparse.Namespace(out=stand_ins, rounds=3, workers=0, official=None, device="cpu")
    monkeypatch.setattr(loading.subprocess, "run", lambda *arguments, **kept: argparse.Namespace(stdout="0.5"))
    loading.build_cache(stand_ins)
    loading.print_times(options, 4)
    loading.print_cold(options)
    loading.print_growth(options)
    loading.print_memory(options)
    printed = capsys.readouterr().out
    for way in loading.WAYS:
        assert f"  {way}" in printed
    assert "times as fast as official (>= 30: " in printed
    assert "times the floor (<= 1.3: " in printed


def test_the_memory_of_a_way_is_measured(stand_ins: Path) -> None:
    loading.build_cache(stand_ins)
    for way in ("official", "disk"):
        options = argparse.Namespace(out=stand_ins, workers=0, official=None, memory=way)
        assert 0.05 < loading.measure_memory(options) < 20
