"""The program that sets ours beside the official recipe, on a clip of two seconds: what it prints, not how fast."""

import extraction
import numpy as np

SECONDS = 2


def test_both_recipes_make_the_same_features_and_the_promises_are_printed(tmp_path, capsys):
    clip = extraction.make_clip(tmp_path / "clip.mp4", SECONDS)
    found = extraction.measure(clip, tmp_path, SECONDS, 1)
    found |= extraction.on_the_wall(clip, tmp_path, SECONDS, cores=2, rounds=1)
    official = {name: np.load(tmp_path / f"{name}.npy") for name in ("maps", "sound")}
    store = extraction.open_store(tmp_path / "ours.zarr")
    for name, feature in (("maps", "resnet18-map"), ("sound", "vggish")):
        ours = np.asarray(store.values(feature)[0], np.float64)
        assert ours.shape == official[name].shape
        # What JPEG, 16 bits and another resampler leave.
        assert np.linalg.norm(ours - official[name]) < 0.2 * np.linalg.norm(official[name])
    assert found["opened"] == 1
    assert 0 < found["relative error"] <= 1e-3
    assert all(found[name] > 0 for name in ("official", "ours", "decode", "resnet18-map", "vggish"))
    assert 0.1 < found["ours on the wall"] / found["official on the wall"] < 10
    extraction.print_parts(found)
    extraction.print_promises(found)
    shown = capsys.readouterr().out
    assert shown.count("promised") == 6
    assert "compress and write" in shown


def test_a_broken_promise_is_named(capsys):
    kept = {"ours / bare networks": 1.2, "official / ours": 2.1, "opened": 1}
    kept |= {"official on the wall": 2.5, "ours on the wall": 1.1}
    kept |= {"bytes stored": 30, "bytes of float32": 100, "relative error": 2e-4}
    assert extraction.print_promises(kept)
    broken = {
        "ours / bare networks": 1.3,
        "official / ours": 1.9,
        "opened": 2,
        "bytes stored": 34,
        "relative error": 0.1,
    }
    for name, value in {**broken, "ours on the wall": 1.3}.items():
        assert not extraction.print_promises({**kept, name: value}), name
    assert capsys.readouterr().out.count("BROKEN") == 6
