"""The mutual information of the audio and the frames of a clip, from the distribution of the generator.

A *state* is what one modality shows of the instruments: which, where, when, how loud, how fast. With redundancy r both
states are one sample of a distribution p with probability r, else two, so that

    I = E[(r + (1 - r) p) log2((r + (1 - r) p) / p)] + (1 - r) log2(1 - r) E[1 - p]

over states of probability p. Each p is exact; the expectation is over `SAMPLES` states.
"""

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.synthetic.difficulty import Difficulty
from pipeline.synthetic.redundancy import sample_redundant_scene
from pipeline.synthetic.scene import (
    ALWAYS_PLAYING_SHARE,
    ENSEMBLE_SHARE,
    INSTRUMENTS,
    LEVELS,
    PLACES,
    SETTINGS,
    SHORTEST_PLAY_SECONDS,
    TEMPOS,
    Performer,
    Scene,
)

SAMPLES = 5_000
# What of each instrument belongs to a state.
STATES: dict[str, tuple[str, ...]] = {
    "instruments": (),
    "places": ("place",),
    "times": ("start", "stop"),
    "loudness": ("level",),
    "tempos": ("tempo",),
    "everything": ("place", "start", "stop", "level", "tempo"),
}


@dataclass(frozen=True)
class StateInformation:
    """Bits of a state: `entropy` of it in one modality, `mutual_information` of audio and frames.

    `standard_error`: of the entropy and at most of the mutual information, because states are sampled.
    """

    entropy: float
    mutual_information: float
    standard_error: float


def measure_states(seconds: int, redundancy: float, difficulty: Difficulty) -> dict[str, StateInformation]:
    """Return {state: its information}: each of `STATES` (of each instrument, which one it is, and where it is, ...).

    "number" is the number of instruments, "setting" whether indoors or whether there is a voiceover; "everything"
    includes the setting.
    """
    rng = random.Random(0)
    scenes = [sample_redundant_scene("", seconds, rng, difficulty) for _ in range(SAMPLES)]
    weights = difficulty.count_weights
    probabilities = {"number": [weights[len(s.performers)] / sum(weights.values()) for s in scenes]}
    probabilities["setting"] = [1 / len(SETTINGS)] * SAMPLES
    for name, fields in STATES.items():
        probabilities[name] = [state_probability(scene, fields, weights) for scene in scenes]
    probabilities["everything"] = [p / len(SETTINGS) for p in probabilities["everything"]]
    return {name: measure_state(np.array(of), redundancy) for name, of in probabilities.items()}


def measure_state(probabilities: np.ndarray, redundancy: float) -> StateInformation:
    """Return the information of a state from the probabilities float64 [sample] of samples of it."""
    p, r = probabilities, redundancy
    surprisal = -np.log2(p)
    same = r + (1 - r) * p
    independent = (1 - r) * math.log2(1 - r) * (1 - p) if r < 1 else 0.0
    shared = same * (np.log2(same) + surprisal) + independent
    error = float(surprisal.std() / math.sqrt(len(p)))
    return StateInformation(float(surprisal.mean()), float(shared.mean()), error)


def state_probability(scene: Scene, fields: Sequence[str], count_weights: Mapping[int, float]) -> float:
    """Return the probability of the scene's set of instruments with their `fields`, in any order."""
    performers, number = scene.performers, len(scene.performers)
    repeated = Counter((p.instrument, *(getattr(p, field) for field in fields)) for p in performers)
    orders = math.factorial(number) / math.prod(math.factorial(times) for times in repeated.values())
    probability = orders * count_weights[number] / sum(count_weights.values())
    probability *= _instruments_probability([p.instrument for p in performers])
    if "place" in fields:
        probability *= _places_probability(performers)
    if "start" in fields:
        probability *= math.prod(_span_probability(p.start, p.stop, scene.seconds) for p in performers)
    if "level" in fields:
        probability /= len(LEVELS) ** number
    if "tempo" in fields:
        probability /= len(TEMPOS) ** number
    return probability


def _instruments_probability(instruments: Sequence[str]) -> float:
    """Return the probability of a sequence of instruments, given its length."""
    of_one_kind = len(set(instruments)) == 1
    all_different = len(set(instruments)) == len(instruments)
    return ENSEMBLE_SHARE * of_one_kind / len(INSTRUMENTS) + (1 - ENSEMBLE_SHARE) * all_different / math.perm(
        len(INSTRUMENTS), len(instruments)
    )


def _places_probability(performers: Sequence[Performer]) -> float:
    """Return the probability of a sequence of places, given its length."""
    if len(performers) <= len(PLACES):
        return 1 / math.perm(len(PLACES), len(performers))
    shared = Counter(performer.place for performer in performers)
    return math.prod(math.factorial(times) for times in shared.values()) / math.factorial(len(performers))


def _span_probability(start: int, stop: int, seconds: int) -> float:
    starts = max(0, seconds - SHORTEST_PLAY_SECONDS) + 1
    stops = seconds - min(start + SHORTEST_PLAY_SECONDS, seconds) + 1
    always = ALWAYS_PLAYING_SHARE * ((start, stop) == (0, seconds))
    return always + (1 - ALWAYS_PLAYING_SHARE) / (starts * stops)
