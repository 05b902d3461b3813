"""Decode a file and count the frames that were decoded on the way."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from pipeline.media.decoders.pyav import decoder as pyav
from pipeline.media.decoders.pyav.decoder import PyAVDecoder
from pipeline.media.timeline import DecodeRequest, FrameSize

SIZE = FrameSize("stretch", 64)


FINE = FrameSize("stretch", 32, per_second=8)


REQUEST = DecodeRequest(seconds=20, frame_sizes=(SIZE,))


def decode(path, request=REQUEST, codecs=pyav.SKIPPING_CODECS):
    """Return the media and how many pictures were decoded in each pass over the file."""
    passes = []
    original = pyav._Pass._decode

    def count(self, stream, packet):
        if not passes or passes[-1][0] is not self:
            passes.append((self, Counter()))
        for event in original(self, stream, packet):
            passes[-1][1][stream.type] += 1
            yield event

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pyav, "SKIPPING_CODECS", codecs)
        patch.setattr(pyav._Pass, "_decode", count)
        media = PyAVDecoder().decode(path, request)
    return media, [counted["video"] for _, counted in passes]


def same(one, other) -> bool:
    tracks = one.visual == other.visual and one.audio == other.audio and one.frames.keys() == other.frames.keys()
    pictures = all(np.array_equal(frames, other.frames[size]) for size, frames in one.frames.items())
    return tracks and pictures and np.array_equal(one.waveform, other.waveform)


def same_where_noticed(media, whole) -> bool:
    """Compare all but the words of a pass that noticed nothing: damage of what is left out is not noticed."""
    reason = media.visual.reason or whole.visual.reason
    return same(replace(media, visual=replace(media.visual, reason=reason)), whole)
