"""The program that compares decoders, at small size: a difference that is there is told, and one that is not is not."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import media_maker
import numpy as np
import pytest

from pipeline.decode import DecoderLoadError, open_decoder

PROGRAM = Path(__file__).resolve().parents[2] / "benchmarks" / "decoders.py"


@pytest.fixture(scope="module")
def program():
    spec = importlib.util.spec_from_file_location("benchmark_decoders", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Tampering:
    """PyAV, but the last picture's first pixel is 9 levels off and the sound is off by one sample."""

    def decode(self, path, request):
        media = open_decoder("pyav").decode(path, request)
        (size, frames), *_ = media.frames.items()
        frames = frames.copy()
        frames[-1, 0, 0, 0] = frames[-1, 0, 0, 0].astype(int) ^ 9
        return replace(media, frames={size: frames}, waveform=np.roll(media.waveform, 1))


def test_differences_are_told(program, tmp_path):
    clip = media_maker.write_clip(tmp_path / "clip.mp4", media_maker.steady(2), (0, 2))
    pyav = open_decoder("pyav")
    same = program.measure(clip, {"pyav": pyav, "again": pyav}, 2, 1).split()
    assert (same[0], same[3:]) == ("clip.mp4", ["0", "0.000"])
    other = program.measure(clip, {"pyav": pyav, "tampering": Tampering()}, 2, 1)
    assert 1 <= int(other.split()[3]) <= 9
    assert other.endswith("tampering: the sound differs")


def test_pictures_are_compared_as_large_as_they_are(program, tmp_path):
    clip = media_maker.write_clip(tmp_path / "clip.mp4", media_maker.steady(1))
    whole = program.decode_whole(open_decoder("pyav"), clip, program.DecodeRequest(frame_sizes=(program.SQUARE,)))
    assert whole.frames[program.SQUARE].shape == (1, media_maker.HEIGHT, media_maker.WIDTH, 3)


def test_a_decoder_that_does_not_load_is_named(program, monkeypatch, capsys):
    def refuse(name):
        raise DecoderLoadError(name, "it is not here", "fetch it")

    monkeypatch.setattr(program, "open_decoder", refuse)
    assert program.load_others() == {}
    assert "decoder decord does not load: it is not here: fetch it" in capsys.readouterr().out
