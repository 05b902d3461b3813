"""The synthetic clips: real MP4 files whose video and audio agree with the scene."""

import random
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import av
import numpy as np
import pytest

from pipeline.synthetic.audio import LEVEL_GAIN, SAMPLE_RATE_HZ, TIMBRES, synthesize_note, synthesize_waveform
from pipeline.synthetic.difficulty import DIFFICULTIES
from pipeline.synthetic.mp4 import write_clip
from pipeline.synthetic.render import (
    FLOOR_ROW,
    FRAMES_PER_SECOND,
    LIGHT_ROW,
    LIGHT_SIZE,
    SIZE,
    render_frame,
    render_frames,
    render_stage,
)
from pipeline.synthetic.scene import INSTRUMENTS, Movement, Performer, Scene, sample_scene
from pipeline.synthetic.sprites import COLOURS

SECONDS = 4
VIOLIN = Performer("violin", "middle", 0.5, start=1, stop=3, level=3, tempo=2, pitch=0.0)
SOLO = Scene("v", SECONDS, "indoor", (VIOLIN,), has_voiceover=False, has_audio=True, has_visual=True)


def make_waveform(scene: Scene) -> np.ndarray:
    return synthesize_waveform(scene, np.random.default_rng(0))


def write(path: Path, scene: Scene) -> Path:
    frames = render_frames(scene) if scene.has_visual else None
    waveform = make_waveform(scene) if scene.has_audio else None
    write_clip(path, frames, FRAMES_PER_SECOND, waveform, SAMPLE_RATE_HZ)
    return path


def decode(path: Path, kind: str) -> list[av.VideoFrame | av.AudioFrame]:
    with av.open(str(path)) as container:
        return list(container.decode(**{kind: 0}))


def measure_loudness(waveform: np.ndarray) -> np.ndarray:
    """Return the root mean square of each second."""
    padded = np.pad(waveform, (0, SECONDS * SAMPLE_RATE_HZ - len(waveform)))
    return np.sqrt((padded.reshape(SECONDS, -1) ** 2).mean(1))


def test_a_clip_has_h264_video_and_aac_audio_of_equal_length_that_start_at_zero(tmp_path: Path) -> None:
    path = write(tmp_path / "v.mp4", SOLO)
    with av.open(str(path)) as container:
        assert [stream.codec_context.name for stream in container.streams] == ["h264", "aac"]
    frames, blocks = decode(path, "video"), decode(path, "audio")
    assert [frame.time for frame in frames] == [i / FRAMES_PER_SECOND for i in range(SECONDS * FRAMES_PER_SECOND)]
    assert (frames[0].width, frames[0].height) == (SIZE, SIZE)
    assert blocks[0].time == 0
    assert SECONDS - 0.064 < sum(block.samples for block in blocks) / SAMPLE_RATE_HZ <= SECONDS
    assert [file.name for file in tmp_path.iterdir()] == ["v.mp4"]


@pytest.mark.parametrize(("missing", "kept"), [("has_audio", "video"), ("has_visual", "audio")])
def test_a_missing_track_is_not_in_the_file(tmp_path: Path, missing: str, kept: str) -> None:
    path = write(tmp_path / "v.mp4", replace(SOLO, **{missing: False}))
    with av.open(str(path)) as container:
        assert [stream.type for stream in container.streams] == [kept]
    assert decode(path, kept)


def test_a_second_with_notes_has_energy_and_a_silent_one_none_before_and_after_the_codec(tmp_path: Path) -> None:
    assert (measure_loudness(make_waveform(SOLO)) > 0).tolist() == [False, True, True, False]
    blocks = decode(write(tmp_path / "v.mp4", SOLO), "audio")
    loudness = measure_loudness(np.concatenate([block.to_ndarray()[0] for block in blocks]))
    assert loudness[1:3].min() > 0.02
    assert loudness[[0, 3]].max() < 0.001


def test_decoded_frames_equal_the_rendered_ones_up_to_compression(tmp_path: Path) -> None:
    frames = decode(write(tmp_path / "v.mp4", SOLO), "video")
    decoded = frames[12].to_ndarray(format="rgb24").astype(float)
    assert np.abs(decoded - render_frame(SOLO, 12)).mean() < 4


def test_an_instrument_moves_only_while_it_plays() -> None:
    for name in INSTRUMENTS:
        scene = replace(SOLO, performers=(replace(VIOLIN, instrument=name),))
        seconds = np.array(list(render_frames(scene))).reshape(SECONDS, FRAMES_PER_SECOND, SIZE, SIZE, 3)
        moves = [bool((second != second[0]).any()) for second in seconds]
        assert moves == [False, True, True, False], name


def test_a_louder_level_means_more_energy_and_larger_motion() -> None:
    for name in INSTRUMENTS:
        loudness, motion = [], []
        for level in (1, 2, 3):
            scene = replace(SOLO, performers=(replace(VIOLIN, instrument=name, level=level),))
            loudness.append(measure_loudness(make_waveform(scene))[1])
            start, middle = (
                render_frame(scene, FRAMES_PER_SECOND),
                render_frame(scene, FRAMES_PER_SECOND * 3 // 2),
            )
            motion.append((start != middle).any(-1).sum())
        assert loudness == sorted(loudness)
        assert loudness[2] > 2 * loudness[0]
        assert motion[0] < motion[2], name


def test_a_movement_replaces_the_motion_of_playing() -> None:
    silent = replace(VIOLIN, start=0, stop=0, movement=Movement(2, 4, 3))
    resting = replace(VIOLIN, movement=Movement(0, 0, 3))
    for performer, expected in ((silent, [False, False, True, True]), (resting, [False] * SECONDS)):
        seconds = np.array(list(render_frames(replace(SOLO, performers=(performer,)))))
        moves = (seconds.reshape(SECONDS, FRAMES_PER_SECOND, -1) != seconds[0].reshape(-1)).any((1, 2))
        assert moves.tolist() == expected
    as_loud = [
        replace(SOLO, performers=(replace(VIOLIN, level=1, movement=Movement(1, 3, level)),)) for level in (1, 3)
    ]
    assert (render_frame(as_loud[0], 12) != render_frame(as_loud[1], 12)).any()
    assert np.array_equal(render_frame(as_loud[1], 12), render_frame(SOLO, 12))


@pytest.mark.parametrize("lights", [0, 1, 2, 4])
def test_lights_are_separate_white_squares_in_front_of_an_instrument(lights: int) -> None:
    frame = render_frame(replace(SOLO, performers=(replace(VIOLIN, lights=lights),)), 0)
    white = (frame[LIGHT_ROW + 1] == 255).all(-1)
    assert np.diff(white.astype(int)).tolist().count(1) == lights
    assert white.sum() == lights * LIGHT_SIZE
    if lights:
        assert np.flatnonzero(white).mean() == pytest.approx(SIZE / 2, abs=1)


def test_a_held_note_tells_the_pitch_and_a_melody_does_not() -> None:
    def waveform(pitch: float, holds_note: bool) -> np.ndarray:
        performer = replace(VIOLIN, pitch=pitch, holds_note=holds_note, start=0, stop=SECONDS, tempo=1)
        return make_waveform(replace(SOLO, performers=(performer,))).reshape(SECONDS, -1)

    for pitch, step in ((1 / 6, 0), (1 / 2, 2), (5 / 6, 4)):
        held = waveform(pitch, True)
        assert all(np.array_equal(second, held[0]) for second in held)
        assert np.allclose(held[0], LEVEL_GAIN[3] * synthesize_note("violin", step, 1))
        assert not all(np.array_equal(second, held[0]) for second in waveform(pitch, False))


def sample_hard(seed: int) -> Scene:
    return sample_scene("v", SECONDS, random.Random(seed), DIFFICULTIES["hard"])


def test_hard_scenes_have_more_instruments_shapes_behind_them_and_noise() -> None:
    scenes = [sample_hard(seed) for seed in range(60)]
    easy = [sample_scene("v", SECONDS, random.Random(seed)) for seed in range(60)]
    assert {len(scene.performers) for scene in scenes} == {2, 3, 4, 5, 6}
    assert {len(scene.performers) for scene in easy} == {1, 2, 3, 4}
    assert all(not scene.distractors and not scene.noise_gain for scene in easy)
    assert {len(scene.distractors) for scene in scenes} == {5, 6, 7, 8, 9}
    for scene in scenes[:5]:
        bare = replace(scene, distractors=())
        hidden = (render_frame(scene, 12) != render_frame(bare, 12)).any(-1).mean()
        assert 0.01 < hidden < 0.4
        alone = replace(bare, performers=())
        assert np.array_equal(render_frame(alone, 12), render_stage(scene.setting))
        assert (render_frame(replace(alone, distractors=scene.distractors), 12) != render_stage(scene.setting)).any()
        silent = replace(scene, performers=(), has_voiceover=False)
        assert measure_loudness(make_waveform(silent)) == pytest.approx([0.02] * SECONDS, rel=0.3)
        assert not make_waveform(replace(silent, noise_gain=0.0)).any()


def test_six_instruments_are_beside_each_other_and_stand_on_the_floor() -> None:
    columns = [(2 * index + 1) / 12 for index in range(6)]
    performers = tuple(
        replace(VIOLIN, instrument=name, column=column, start=0, stop=0)
        for name, column in zip(INSTRUMENTS, columns, strict=True)
    )
    frame, stage = render_frame(replace(SOLO, performers=performers), 0), render_stage("indoor")
    painted = (frame != stage).any(-1)
    assert painted[FLOOR_ROW : FLOOR_ROW + 9].any(0).sum() > 6 * 10
    for name, column in zip(INSTRUMENTS, columns, strict=True):
        is_coloured = np.flatnonzero((abs(frame.astype(int) - COLOURS[name]).sum(-1) < 20).any(0))
        assert abs(is_coloured - column * SIZE).max() <= SIZE / 12


def test_a_hidden_instrument_is_audible_but_not_rendered() -> None:
    hidden = replace(SOLO, performers=(replace(VIOLIN, place=None),))
    assert np.array_equal(render_frame(hidden, 12), render_stage("indoor"))
    assert make_waveform(hidden).any()


def test_the_loudest_scene_does_not_clip() -> None:
    tutti = tuple(replace(VIOLIN, instrument=name) for name in INSTRUMENTS[:4])
    assert np.abs(make_waveform(replace(SOLO, performers=tutti, has_voiceover=True))).max() < 1


def test_every_instrument_has_a_colour_and_a_spectrum_of_its_own() -> None:
    assert set(TIMBRES) == set(COLOURS) == set(INSTRUMENTS)
    spectra = {
        name: sum(np.abs(np.fft.rfft(synthesize_note(name, step, 1))) for step in range(5)) for name in INSTRUMENTS
    }
    bands = {name: spectrum[:7500].reshape(75, 100).sum(1) for name, spectrum in spectra.items()}
    for one, other in combinations(INSTRUMENTS, 2):
        cosine = bands[one] @ bands[other] / np.linalg.norm(bands[one]) / np.linalg.norm(bands[other])
        assert cosine < 0.7, (one, other)
        assert np.abs(np.subtract(COLOURS[one], COLOURS[other])).sum() > 150
