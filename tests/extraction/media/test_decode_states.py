"""States and reasons of files that are missing a modality, corrupt, or not media files."""

import logging
import re
import socket
import threading
from dataclasses import replace
from pathlib import Path

import av
import media_maker
import numpy as np
import pytest
import soundfile

from pipeline.media.decoder_process import DecoderProcess, Limits
from pipeline.media.decoders.pyav import collectors
from pipeline.media.timeline import DecodeRequest, FrameSize, Track
from pipeline.store.schema import State

SIZE = FrameSize("stretch", 64)
REQUEST = DecodeRequest(seconds=20, frame_sizes=(SIZE,))
SECONDS_PER_FILE = 30


def decode(decoder, path, request=REQUEST):
    return decoder.decode(Path(path), request)


@pytest.fixture
def clip(tmp_path):
    return media_maker.write_clip(tmp_path / "clip.mp4", media_maker.steady(6), (0, 6))


def corrupt(path, share_from, share_to):
    """Overwrite a part of an MP4 file's media data, given as shares of its length."""
    data = bytearray(path.read_bytes())
    begin = data.index(b"mdat") + 4
    end = data.rindex(b"moov") - 4
    first, last = (round(begin + (end - begin) * share) for share in (share_from, share_to))
    data[first:last] = b"\xff" * (last - first)
    path.write_bytes(data)


def test_no_audio(decoder, tmp_path):
    media = decode(decoder, media_maker.write_clip(tmp_path / "clip.mp4", media_maker.steady(3)))
    assert (media.visual.state, media.visual.steps) == (State.COMPLETE, 3)
    assert (media.audio.state, media.audio.steps, len(media.waveform)) == (State.ABSENT, 0, 0)


def test_no_video(decoder, tmp_path):
    media = decode(decoder, media_maker.write_clip(tmp_path / "clip.mp4", audio=(0, 3)))
    assert (media.visual.state, media.visual.steps, media.frames) == (State.ABSENT, 0, {})
    assert (media.audio.state, media.audio.steps) == (State.COMPLETE, 3)


def test_black_and_silent_is_complete(decoder, tmp_path):
    import av
    import numpy as np

    path = tmp_path / "clip.mkv"
    with av.open(str(path), "w") as container:
        video = container.add_stream("ffv1", rate=10)
        video.width, video.height, video.pix_fmt = 64, 48, "bgra"
        audio = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        for number in range(20):
            frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24").reformat(format="bgra")
            frame.pts = number
            container.mux(video.encode(frame))
            block = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
            block.sample_rate, block.pts = 8000, number * 800
            container.mux(audio.encode(block))
    media = decode(decoder, path)
    assert (media.visual.state, media.audio.state) == (State.COMPLETE, State.COMPLETE)
    assert (media.visual.steps, media.audio.steps) == (2, 2)
    assert not media.waveform.any()
    assert not media.frames[SIZE].any()


def test_empty_file(decoder, tmp_path):
    (tmp_path / "clip.mp4").touch()
    media = decode(decoder, tmp_path / "clip.mp4")
    assert media.visual == media.audio
    assert (media.visual.state, media.visual.reason) == (State.FAILED, "the file is empty (0 bytes)")


def test_missing_file(decoder, tmp_path):
    assert decode(decoder, tmp_path / "clip.mp4").visual.reason == "the file does not exist"


@pytest.mark.parametrize("suffix", ["mp4", "wav", "mp3"])
def test_file_that_is_not_media(decoder, tmp_path, suffix):
    path = tmp_path / f"clip.{suffix}"
    path.write_bytes(b"this is a shopping list: bread, milk, eggs\n" * 300)
    media = decode(decoder, path)
    assert media.audio.state is State.FAILED
    assert "cannot be" in media.audio.reason


def test_a_file_without_any_stream_is_failed_and_not_absent(decoder, tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_text("1\n00:00:00,000 --> 00:00:02,000\nWhat a cello!\n")
    media = decode(decoder, path)
    assert media.visual == media.audio == Track(State.FAILED, reason="the file contains neither video nor audio")


@pytest.mark.parametrize(("rate", "is_supported"), [(999, False), (1_000, True), (192_000, True), (192_001, False)])
def test_audio_at_an_unsupported_sample_rate_is_failed(decoder, tmp_path, rate, is_supported):
    path = tmp_path / "audio.wav"
    soundfile.write(path, np.zeros(rate, np.float32), rate)
    media = decode(decoder, path)
    assert (media.visual.state, media.audio.state is State.COMPLETE) == (State.ABSENT, is_supported)
    assert len(media.waveform) == (rate if is_supported else 0)
    assert (f"audio at {rate:,} Hz" in media.audio.reason) != is_supported


def test_samples_that_are_not_finite_are_missing_and_too_many_fail_the_audio(decoder, tmp_path):
    samples = np.full((8000, 2), 0.25, np.float32)
    samples[100, 0] = np.nan
    soundfile.write(tmp_path / "one.wav", samples, 8000, subtype="FLOAT")
    samples[:2000, 1] = np.inf
    soundfile.write(tmp_path / "many.wav", samples, 8000, subtype="FLOAT")
    one, many = (decode(decoder, tmp_path / f"{name}.wav") for name in ("one", "many"))
    assert one.audio.state is State.COMPLETE
    assert np.flatnonzero(one.waveform != 0.25).tolist() == [100]
    assert many.audio == Track(State.FAILED, reason="only 75% of its time has audio that could be decoded")


def test_playlist_does_not_cause_a_download(decoder, tmp_path):
    clients = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(1)
        answering = threading.Thread(target=_hang_up, args=(server, clients))
        answering.start()
        address = f"http://127.0.0.1:{server.getsockname()[1]}/clip.ts"
        path = tmp_path / "list.m3u8"
        path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:6\n#EXTINF:6,\n{address}\n#EXT-X-ENDLIST\n")
        assert decode(decoder, path).visual.state is State.FAILED
        answering.join()
    assert clients == []


def _hang_up(server, clients):
    try:
        connection, address = server.accept()
    except TimeoutError:
        return
    clients.append(address)
    connection.close()


def test_truncated_file_is_decoded_up_to_its_end(decoder, tmp_path):
    path = media_maker.write_clip(tmp_path / "clip.mkv", media_maker.steady(8), (0, 8))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    media = decode(decoder, path)
    assert media.visual.state is State.COMPLETE
    assert media.audio.state is State.COMPLETE
    assert 3 <= media.visual.steps <= 5
    numbers = [media_maker.read_number(image) for image in media.frames[SIZE]]
    assert numbers[:-1] == [12 + 25 * step for step in range(media.visual.steps - 1)]


def test_reason_of_a_file_whose_reading_fails_before_its_end(decoder, tmp_path):
    path = media_maker.write_clip(tmp_path / "clip.nut", media_maker.steady(4), (0, 4))
    with av.open(str(path)) as container:
        starts = [packet.pos for packet in container.demux(audio=0) if packet.size]
    path.write_bytes(path.read_bytes()[: starts[len(starts) * 2 // 5] - 2])
    media = decode(decoder, path)
    reason = "reading stopped before the end of the file: Invalid data found when processing input"
    assert media.audio == Track(State.COMPLETE, 2, reason)
    assert media.visual.steps == 2
    assert media.visual.reason.startswith(media.audio.reason)


def test_truncated_before_its_index_cannot_be_opened(decoder, clip):
    data = clip.read_bytes()
    clip.write_bytes(data[: data.rindex(b"moov") - 4])
    media = decode(decoder, clip)
    assert (media.visual.state, media.audio.state) == (State.FAILED, State.FAILED)
    assert media.visual.reason.startswith("cannot be opened: ")


def test_reason_counts_lost_packets(decoder, clip):
    corrupt(clip, 0.5, 0.503)
    media = decode(decoder, clip)
    tracks = [media.visual, media.audio]
    assert [track.state for track in tracks] == [State.COMPLETE, State.COMPLETE]
    assert [track.steps for track in tracks] == [6, 6]
    assert any("could not be decoded" in track.reason for track in tracks)


@pytest.mark.parametrize("kind", ["visual", "audio"])
def test_steps_before_the_first_decodable_packet_are_no_steps(decoder, clip, monkeypatch, kind):
    collector = {"visual": collectors.FrameCollector, "audio": collectors.AudioCollector}[kind]
    add = collector.add

    def lose_start(self, event):
        add(self, replace(event, frame=None, error="broken") if event.start < 2.4 else event)

    monkeypatch.setattr(collector, "add", lose_start)
    media = decode(decoder, clip)
    tracks = {"visual": media.visual, "audio": media.audio}
    late = tracks.pop(kind)
    assert (late.state, late.first, late.steps) == (State.COMPLETE, 2, 6)
    name = {"visual": "video", "audio": "audio"}[kind]
    assert re.match(rf"the {name} starts at second 2; \d+ of \d+ {name} packets could not be decoded", late.reason)
    assert [(track.state, track.first, track.steps) for track in tracks.values()] == [(State.COMPLETE, 0, 6)]


def test_corrupt_seconds_fail_both_modalities(decoder, clip):
    corrupt(clip, 0.3, 0.8)
    media = decode(decoder, clip)
    assert media.visual.state is State.FAILED
    assert "have no frame" in media.visual.reason
    assert media.audio.state is State.FAILED
    assert "of its time has audio that could be decoded" in media.audio.reason
    assert media.frames == {}
    assert len(media.waveform) == 0


def test_corruption_of_all_media_data_fails_both_modalities(decoder, clip):
    corrupt(clip, 0, 1)
    media = decode(decoder, clip)
    assert (media.visual.state, media.audio.state) == (State.FAILED, State.FAILED)
    assert media.visual.reason.startswith("no frame could be decoded; 150 of 150 video packets")
    assert media.audio.reason.startswith("no audio could be decoded")


def test_frame_with_too_many_pixels_is_failed(decoder, clip):
    media = decode(decoder, clip, DecodeRequest(frame_sizes=(SIZE,), max_pixels=192 * 128 - 1))
    assert (media.visual.state, media.audio.state) == (State.FAILED, State.COMPLETE)
    assert media.visual.reason == "a frame of 192x128 has more than 24575 pixels (to allow more: --max-pixels)"


def test_a_modality_that_is_not_requested_is_pending_and_does_not_move_t0(decoder, tmp_path):
    path = media_maker.write_clip(
        tmp_path / "clip.mov",
        media_maker.steady(4, start=9),
        (8, 13),
        audio_codec="pcm_s16le",
        audio_format="s16",
    )
    both = decode(decoder, path)
    audio_only = decode(decoder, path, DecodeRequest(frame_sizes=()))
    visual_only = decode(decoder, path, DecodeRequest(seconds=20, frame_sizes=(SIZE,), wants_audio=False))
    assert (audio_only.visual.state, visual_only.audio.state) == (State.PENDING, State.PENDING)
    assert (audio_only.waveform == both.waveform).all()
    assert visual_only.visual == both.visual


def test_nothing_is_printed(decoder, clip, capfd, caplog):
    corrupt(clip, 0.3, 0.8)
    with caplog.at_level(logging.DEBUG):
        decode(decoder, clip)
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []


@pytest.mark.real
@pytest.mark.parametrize(
    "decoder",
    ["pyav", *(pytest.param(name, marks=pytest.mark.nightly) for name in ("torchcodec", "decord"))],
    indirect=True,
)
def test_states_of_real_files_match_the_index(decoder, shared_data):
    rows = (shared_data / "media" / "INDEX.tsv").read_text(encoding="utf-8").splitlines()
    records = [dict(zip(rows[0].split("\t"), row.split("\t"), strict=False)) for row in rows[1:]]
    assert len(records) >= 70
    with DecoderProcess(decoder.name, Limits(wall_seconds=SECONDS_PER_FILE)) as process:
        for record in records:
            media = process.decode(shared_data / "media" / record["file"], REQUEST)
            states = (media.visual.state, media.audio.state)
            assert states == expected_states(record), (record["file"], media.visual, media.audio)
            for track in (media.visual, media.audio):
                assert track.reason or track.state is not State.FAILED


UNDECODABLE = {"odd/sample_fragmented_uuid.mp4", "odd/invalid-bitstream.webm", "odd/sample_ac4.mp4"}
NOT_OPENED = {"odd/zero_length.webm", "odd/sample_fragmented_sideloaded_track.mp4"}


def expected_states(record):
    """Return the states (visual, audio) according to the columns and notes of the index."""
    name = record["file"]
    if name in NOT_OPENED:
        return State.FAILED, State.FAILED
    decoded = State.FAILED if name in UNDECODABLE else State.COMPLETE
    visual = decoded if record["video_codec"] else State.ABSENT
    audio = decoded if record["audio_codec"] else State.ABSENT
    return visual, audio
