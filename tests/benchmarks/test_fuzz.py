"""The fuzzing benchmark at small size: copies are reproducible from seeds, and its run records every outcome."""

import random

import fuzz
import media_maker
import pytest


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    media_maker.write_clip(folder / "clip.mp4", media_maker.steady(2), (0, 2), size=(64, 64))
    return folder


@pytest.mark.parametrize("name", ["flip", "header", "truncate", "shuffle"])
def test_a_seed_always_changes_a_clip_in_the_same_way(name, clips):
    data = (clips / "clip.mp4").read_bytes()
    copies = [fuzz.MUTATIONS[name](data, random.Random(seed)) for seed in range(6)]
    assert copies == [fuzz.MUTATIONS[name](data, random.Random(seed)) for seed in range(6)]
    assert len(set(copies)) > 2
    assert all(len(copy) == len(data) for copy in copies) == (name != "truncate")


def test_shuffled_boxes_are_the_same_boxes_in_another_order(clips):
    data = (clips / "clip.mp4").read_bytes()
    kinds = [kind for _, kind, _ in fuzz.boxes(data)]
    assert {b"ftyp", b"moov", b"trak", b"stts", b"mdat"} <= set(kinds)
    copies = [fuzz.shuffle_boxes(data, random.Random(seed)) for seed in range(8)]
    assert all(sorted(copy) == sorted(data) for copy in copies)
    assert len(set(copies)) > 2


def test_copies_are_extracted_measured_and_counted(clips, tmp_path, capsys):
    fuzz.write_copies(clips, tmp_path / "videos", range(8))
    measured = fuzz.Measurements()
    summary = fuzz.extract_copies(tmp_path, measured)
    assert summary.videos == len(measured.seconds) == 8
    assert all(counts["pending"] == 0 for counts in summary.states.values())
    assert max(measured.peak_bytes.values()) > 10_000_000
    assert fuzz.print_outcomes(summary, measured)
    printed = capsys.readouterr().out
    assert "8 copies" in printed
    assert printed.count("kept") == 3
    measured.seconds["000000"] = 31.0
    assert not fuzz.print_outcomes(summary, measured)
    assert "BROKEN  no file takes more than 30 s" in capsys.readouterr().out


def test_a_folder_without_small_clips_is_an_error(tmp_path):
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(fuzz.UserError, match="contains no clip of at most 20 MB"):
        fuzz.write_copies(tmp_path, tmp_path / "copies", range(1))
