"""The program that sets ours beside the official recipe, on a clip of two seconds: what it prints, not how fast."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

PROGRAM = Path(__file__).resolve().parents[2] / "benchmarks" / "extraction.py"
SECONDS = 2


@pytest.fixture(scope="module")
def program():
    spec = importlib.util.spec_from_file_location("benchmark_extraction", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_both_recipes_make_the_same_features_and_the_promises_are_printed(program, tmp_path, capsys):
    clip = program.make_clip(tmp_path / "clip.mp4", SECONDS)
    found = program.measure(clip, tmp_path, SECONDS, 1)
    official = {name: np.load(tmp_path / f"{name}.npy") for name in ("maps", "sound")}
    store = program.open_store(tmp_path / "ours.zarr")
    for name, feature in (("maps", "resnet18-map"), ("sound", "vggish")):
        ours = np.asarray(store.values(feature)[0], np.float64)
        assert ours.shape == official[name].shape
        # What JPEG, 16 bits and another resampler leave.
        assert np.linalg.norm(ours - official[name]) < 0.2 * np.linalg.norm(official[name])
    assert found["opened"] == 1
    assert 0 < found["relative error"] <= 1e-3
    assert all(found[name] > 0 for name in ("official", "ours", "decode", "resnet18-map", "vggish"))
    program.print_parts(found)
    program.print_promises(found)
    shown = capsys.readouterr().out
    assert shown.count("promised") == 5
    assert "compress and write" in shown


def test_a_broken_promise_is_named(program, capsys):
    kept = {"ours": 1.2, "official": 3, "bare resnet18-map": 0.9, "bare vggish": 0.1, "opened": 1}
    kept |= {"bytes stored": 30, "bytes of float32": 100, "relative error": 2e-4}
    assert program.print_promises(kept)
    for name, value in (("ours", 1.3), ("official", 2.3), ("opened", 2), ("bytes stored", 34), ("relative error", 0.1)):
        assert not program.print_promises({**kept, name: value}), name
    assert capsys.readouterr().out.count("BROKEN") == 5
