"""Side data of frames: what is not needed fails no file, and the orientation in EXIF data is applied."""

import struct

import av
import media_maker
import numpy as np
import pytest

from pipeline.media.decoders.registry import open_decoder
from pipeline.media.timeline import DecodeRequest, FrameSize, Track
from pipeline.store.schema import State

SIZE = FrameSize("stretch", 64)
REQUEST = DecodeRequest(seconds=5, frame_sizes=(SIZE,))
SECONDS = 2
UPRIGHT, MIRRORED, UPSIDE_DOWN, TRANSPOSED, TURNED = 1, 2, 3, 5, 6
# The stored image that looks upright after the orientation is applied.
STORED = {
    UPRIGHT: lambda image: image,
    MIRRORED: lambda image: image[:, ::-1],
    UPSIDE_DOWN: lambda image: image[::-1, ::-1],
    TRANSPOSED: lambda image: image.transpose(1, 0, 2),
    TURNED: lambda image: np.rot90(image),
}


def exif(orientation):
    """Return an APP1 segment with EXIF data: the orientation, or no entry if it is None."""
    entry = b"" if orientation is None else struct.pack("<HHIHH", 0x112, 3, 1, orientation, 0)
    body = b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entry) // 12) + entry + bytes(4)
    return b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body


def write_camera_clip(path, orientation):
    """Write JPEG frames with EXIF data, five each second, and audio."""
    stored = STORED[orientation or UPRIGHT]
    with av.open(str(path), "w") as container:
        video = container.add_stream("mjpeg", rate=5)
        height, width = stored(media_maker.draw(0)).shape[:2]
        video.width, video.height, video.pix_fmt = width, height, "yuvj444p"
        audio = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        for number in range(5 * SECONDS):
            image = np.ascontiguousarray(stored(media_maker.draw(number)))
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuvj444p")
            frame.pts = number
            for packet in video.encode(frame):
                with_exif = av.Packet(bytes(packet)[:2] + exif(orientation) + bytes(packet)[2:])
                with_exif.stream, with_exif.pts, with_exif.dts = video, packet.pts, packet.dts
                with_exif.time_base, with_exif.is_keyframe = packet.time_base, True
                container.mux(with_exif)
        for block in media_maker.audio_blocks((0, SECONDS), 8000, "mono", "s16"):
            container.mux(audio.encode(block))
    return path


@pytest.mark.parametrize("orientation", [None, *STORED])
def test_exif_data_of_frames(decoder, tmp_path, orientation):
    media = decoder.decode(write_camera_clip(tmp_path / "clip.avi", orientation), REQUEST)
    assert (media.visual.state, media.audio) == (State.COMPLETE, Track(State.COMPLETE, SECONDS))
    assert [media_maker.read_number(image) for image in media.frames[SIZE]] == [2, 7]


def test_libraries_without_exif_orientation_are_not_used_for_oriented_frames(decoder, tmp_path):
    media = decoder.decode(write_camera_clip(tmp_path / "clip.avi", UPSIDE_DOWN), REQUEST)
    expected = open_decoder("pyav").decode(tmp_path / "clip.avi", REQUEST)
    assert np.array_equal(media.frames[SIZE], expected.frames[SIZE])
    assert ("orientation" in media.visual.reason) == (decoder.name != "pyav")
