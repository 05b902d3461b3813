"""Decode a file and count the decoded frames. Not a test."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from pipeline.media.decoders.pyav import decoder as pyav_decoder
from pipeline.media.decoders.pyav.decoder import PyAVDecoder
from pipeline.media.timeline import DecodeRequest, FrameSize

SIZE = FrameSize("stretch", 64)


FINE = FrameSize("stretch", 32, per_second=8)


REQUEST = DecodeRequest(seconds=20, frame_sizes=(SIZE,))


def decode(path, request=REQUEST, codecs=pyav_decoder.SKIPPING_CODECS):
    """Return the media and the number of frames that were decoded in each pass over the file."""
    passes = []
    original = pyav_decoder._DecodingPass._decode

    def count(self, stream, packet):
        if not passes or passes[-1][0] is not self:
            passes.append((self, Counter()))
        for event in original(self, stream, packet):
            passes[-1][1][stream.type] += 1
            yield event

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pyav_decoder, "SKIPPING_CODECS", codecs)
        patch.setattr(pyav_decoder._DecodingPass, "_decode", count)
        media = PyAVDecoder().decode(path, request)
    return media, [counted["video"] for _, counted in passes]


def is_same(one, other) -> bool:
    tracks = one.visual == other.visual and one.audio == other.audio and one.frames.keys() == other.frames.keys()
    frames = all(np.array_equal(images, other.frames[size]) for size, images in one.frames.items())
    return tracks and frames and np.array_equal(one.waveform, other.waveform)


def is_same_except_missing_reason(media, full) -> bool:
    """Compare with a full pass; `media` may have no reason, because errors in skipped frames are not noticed."""
    reason = media.visual.reason or full.visual.reason
    return is_same(replace(media, visual=replace(media.visual, reason=reason)), full)
