"""Scenes whose audio and frames determine each other, as often as a number in [0, 1] says.

A redundant scene shows what it plays: every instrument is on screen and audible, moves while it plays and as loudly as
it plays, has one light per note of a second, and plays low notes on the left, middle ones in the middle, high ones on
the right; there is a voiceover indoors only. With probability `redundancy` the audio and the frames of a clip are those
of one redundant scene, else of two independent ones, so that the distribution of either alone is always the same.
Source: the redundancy of two sources about a target, Williams and Beer, "Nonnegative Decomposition of Multivariate
Information", 2010; the generator is ours.
"""

import random
from collections import defaultdict
from dataclasses import dataclass, replace

from pipeline.synthetic.difficulty import Difficulty, sample_distractors
from pipeline.synthetic.scene import (
    LEVELS,
    SETTINGS,
    TEMPOS,
    Movement,
    Performer,
    Scene,
    sample_instruments,
    sample_positions,
    sample_span,
)

PITCH_OF_PLACE = {"left": 1 / 6, "middle": 1 / 2, "right": 5 / 6}


@dataclass(frozen=True)
class Sides:
    """The redundant scenes that a clip takes its audio and its frames from; equal if they determine each other."""

    audio: Scene
    visual: Scene


def sample_sides(video_id: str, seconds: int, rng: random.Random, redundancy: float, difficulty: Difficulty) -> Sides:
    """Return the two sides of one clip, sampled from `rng`; the visual side is the same for every `redundancy`."""
    visual = sample_redundant_scene(video_id, seconds, rng, difficulty)
    audio = sample_redundant_scene(video_id, seconds, rng, difficulty)
    return Sides(visual if rng.random() < redundancy else audio, visual)


def sample_redundant_scene(video_id: str, seconds: int, rng: random.Random, difficulty: Difficulty) -> Scene:
    """Return a scene whose audio determines its frames, except the order within a place, and whose frames its audio."""
    instruments = sample_instruments(difficulty.count_weights, rng)
    performers = []
    for instrument, (place, column) in zip(instruments, sample_positions(len(instruments), rng), strict=True):
        start, stop = sample_span(seconds, rng)
        level, tempo = rng.choice(LEVELS), rng.choice(TEMPOS)
        performers.append(
            Performer(
                *(instrument, place, column, start, stop, level, tempo),
                pitch=PITCH_OF_PLACE[place],
                movement=Movement(start, stop, level),
                lights=tempo,
                holds_note=True,
            )
        )
    setting = rng.choice(SETTINGS)
    return Scene(
        video_id=video_id,
        seconds=seconds,
        setting=setting,
        performers=tuple(performers),
        has_voiceover=setting == "indoor",
        has_audio=True,
        has_visual=True,
        distractors=sample_distractors(difficulty, rng),
        noise_gain=difficulty.noise_gain,
    )


def combine(sides: Sides) -> Scene:
    """Return the scene with the audio of one side and the frames of the other.

    An instrument of both sides is one performer that is on screen and plays; those of the audio side alone are off
    screen, those of the visual side alone are silent, though they move. Equal sides give the scene itself.
    """
    heard = list(sides.audio.performers)
    performers = []
    for seen in sides.visual.performers:
        player = next((p for p in heard if p.instrument == seen.instrument), None)
        if player is None:
            performers.append(replace(seen, start=0, stop=0))
        else:
            heard.remove(player)
            performers.append(_playing(seen, player))
    performers += [replace(player, place=None, column=0.0) for player in heard]
    return replace(sides.visual, performers=tuple(performers), has_voiceover=sides.audio.has_voiceover)


def reorder_within_places(scene: Scene, rng: random.Random) -> Scene:
    """Return the scene with the columns of the performers of each place shuffled; its audio does not determine them."""
    columns = defaultdict(list)
    for performer in scene.performers:
        columns[performer.place].append(performer.column)
    for of_place in columns.values():
        rng.shuffle(of_place)
    return replace(scene, performers=tuple(replace(p, column=columns[p.place].pop()) for p in scene.performers))


def _playing(seen: Performer, heard: Performer) -> Performer:
    return replace(seen, start=heard.start, stop=heard.stop, level=heard.level, tempo=heard.tempo, pitch=heard.pitch)
