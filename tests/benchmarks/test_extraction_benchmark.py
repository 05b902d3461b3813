"""The comparison of mavqa with the official recipe, on a clip of two seconds: results and output, not speed."""

import extraction
import numpy as np
import pytest

SECONDS = 2


@pytest.mark.nightly
def test_both_recipes_compute_the_same_features_and_promises_are_printed(tmp_path, capsys):
    clip = extraction.make_clip(tmp_path / "clip.mp4", SECONDS)
    found = extraction.measure(clip, tmp_path, SECONDS, 1)
    found |= extraction.measure_wall_time(clip, tmp_path, SECONDS, cores=2, rounds=1)
    official = {name: np.load(tmp_path / f"{name}.npy") for name in ("maps", "audio")}
    store = extraction.open_store(tmp_path / "mavqa.zarr")
    for name, feature in (("maps", "resnet18-map"), ("audio", "vggish")):
        stored = np.asarray(store.values(feature)[0], np.float64)
        assert stored.shape == official[name].shape
        # The difference due to JPEG, 16-bit samples and another resampler.
        assert np.linalg.norm(stored - official[name]) < 0.2 * np.linalg.norm(official[name])
    assert found["opened"] == 1
    assert 0 < found["relative error"] <= 1e-3
    assert {"official", "mavqa", "decode", "resnet18-map", "vggish"} <= found.keys()
    assert found["mavqa, wall time"] > 0 < found["official, wall time"]
    extraction.print_parts(found)
    extraction.print_promises(found)
    shown = capsys.readouterr().out
    assert shown.count("promised") == 6
    assert "compress and write" in shown


def test_a_broken_promise_is_reported(capsys):
    kept = {"mavqa / bare networks": 1.2, "official / mavqa": 2.1, "opened": 1}
    kept |= {"official, wall time": 2.5, "mavqa, wall time": 1.1}
    kept |= {"bytes stored": 30, "bytes of float32": 100, "relative error": 2e-4}
    assert extraction.print_promises(kept)
    broken = {
        "mavqa / bare networks": 1.3,
        "official / mavqa": 1.9,
        "opened": 2,
        "bytes stored": 34,
        "relative error": 0.1,
    }
    for name, value in {**broken, "mavqa, wall time": 1.3}.items():
        assert not extraction.print_promises({**kept, name: value}), name
    assert capsys.readouterr().out.count("BROKEN") == 6
