"""The decoder benchmark at small size: it reports existing differences and no others."""

from dataclasses import replace

import decoders
import media_maker
import numpy as np

from pipeline.media.decoders.interface import DecoderLoadError
from pipeline.media.decoders.registry import open_decoder


class Tampering:
    """PyAV, but the first pixel of the last frame differs by up to 9 levels and the audio is shifted by one sample."""

    def decode(self, path, request):
        media = open_decoder("pyav").decode(path, request)
        (size, frames), *_ = media.frames.items()
        frames = frames.copy()
        frames[-1, 0, 0, 0] = frames[-1, 0, 0, 0].astype(int) ^ 9
        return replace(media, frames={size: frames}, waveform=np.roll(media.waveform, 1))


def test_differences_are_reported(tmp_path):
    clip = media_maker.write_clip(tmp_path / "clip.mp4", media_maker.steady(2), (0, 2))
    pyav = open_decoder("pyav")
    same = decoders.measure(clip, {"pyav": pyav, "again": pyav}, 2, 1).split()
    assert (same[0], same[3:]) == ("clip.mp4", ["0", "0.000"])
    other = decoders.measure(clip, {"pyav": pyav, "tampering": Tampering()}, 2, 1)
    assert 1 <= int(other.split()[3]) <= 9
    assert other.endswith("tampering: the audio differs")


def test_frames_are_compared_at_full_size(tmp_path):
    clip = media_maker.write_clip(tmp_path / "clip.mp4", media_maker.steady(1))
    media = decoders.decode_full_size(
        open_decoder("pyav"), clip, decoders.DecodeRequest(frame_sizes=(decoders.SQUARE,))
    )
    assert media.frames[decoders.SQUARE].shape == (1, media_maker.HEIGHT, media_maker.WIDTH, 3)


def test_decoder_that_does_not_load_is_reported(monkeypatch, capsys):
    def refuse(name):
        raise DecoderLoadError(name, "it is not here", "fetch it")

    monkeypatch.setattr(decoders, "open_decoder", refuse)
    assert decoders.load_others() == {}
    assert "decoder decord does not load: it is not here: fetch it" in capsys.readouterr().out
