"""The dial: what is the same at every redundancy, what it changes, and that what is written down of it is true."""

import hashlib
import json
import math
import random
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import UserError
from pipeline.manifests.manifest import Question, load_manifest
from pipeline.manifests.templates import TYPES
from pipeline.synthetic import observer, read_redundancy, synthesize
from pipeline.synthetic.audio import synthesize_waveform
from pipeline.synthetic.dataset import SceneSettings, measure_redundancy, sample_scenes, select_questions
from pipeline.synthetic.difficulty import DIFFICULTIES, NORMAL, Difficulty
from pipeline.synthetic.redundancy import Sides, combine, reorder_within_places, sample_redundant_scene, sample_sides
from pipeline.synthetic.render import render_frame
from pipeline.synthetic.scene import Scene
from pipeline.synthetic.shared_information import STATES, measure_state, measure_states, state_probability

REDUNDANCIES = (0.0, 0.25, 0.5, 0.75, 1.0)
# Of commit c8e15fa, before there was a redundancy.
DEMO_QUESTIONS = "dc2d31a0254d04c81df2499c9617b524457acb54a07a1f239abbc0548aa8f541"
DEMO_FRAMES = "d3a437f8e546702f2ba2f49058fa2dbb80c4441c0e2a5091a9692290642b52db"
DEMO_LOUDNESS = [0.059848, 0.119208, 0.134861, 0.173012, 0.177308, 0.0, 0.116821, 0.054606, 0.097646, 0.012788]


def sample_all_sides(number: int, redundancy: float, difficulty: Difficulty = NORMAL, seconds: int = 3) -> list[Sides]:
    return [sample_sides(f"v{i}", seconds, random.Random(i), redundancy, difficulty) for i in range(number)]


def test_without_a_redundancy_the_demo_is_what_it_was() -> None:
    splits = sample_scenes(500, SceneSettings(3, seed=0))
    questions = [asdict(q) for split in select_questions(splits, 0).values() for q in split]
    assert hashlib.sha256(json.dumps(questions).encode()).hexdigest() == DEMO_QUESTIONS
    scenes = sorted((scene for of in splits.values() for scene in of), key=lambda scene: scene.video_id)[:40]
    frames = b"".join(render_frame(scene, 12).tobytes() for scene in scenes)
    assert hashlib.sha256(frames).hexdigest() == DEMO_FRAMES
    waveforms = [synthesize_waveform(scene, np.random.default_rng(0)) for scene in scenes[: len(DEMO_LOUDNESS)]]
    assert [float(np.sqrt((w**2).mean())) for w in waveforms] == pytest.approx(DEMO_LOUDNESS, abs=2e-6)


def test_the_frames_are_the_same_at_every_redundancy_and_less_audio_is_copied() -> None:
    sides = {redundancy: sample_all_sides(200, redundancy) for redundancy in REDUNDANCIES}
    copied = {r: {i for i, of in enumerate(found) if of.audio == of.visual} for r, found in sides.items()}
    for less, more in pairwise(REDUNDANCIES):
        assert [of.visual for of in sides[less]] == [of.visual for of in sides[more]]
        assert copied[less] < copied[more]
    assert [len(copied[r]) / 200 for r in REDUNDANCIES] == pytest.approx(REDUNDANCIES, abs=0.1)


def test_a_redundant_scene_shows_what_it_plays() -> None:
    for sides in sample_all_sides(100, 1.0):
        scene = combine(sides)
        assert scene == sides.visual
        assert scene.has_voiceover == (scene.setting == "indoor")
        for performer in scene.performers:
            assert performer.is_visible
            assert performer.is_audible
            assert performer.movement is not None
            assert (performer.movement.start, performer.movement.stop) == (performer.start, performer.stop)
            assert (performer.movement.level, performer.lights) == (performer.level, performer.tempo)
            assert int(performer.pitch * 5) == {"left": 0, "middle": 2, "right": 4}[performer.place]


def test_a_combined_scene_has_the_audio_of_one_side_and_the_frames_of_the_other() -> None:
    def heard(scene: Scene) -> Counter[Hashable]:
        return Counter((p.instrument, p.start, p.stop, p.level, p.tempo, p.pitch) for p in scene.audible)

    def seen(scene: Scene) -> list[Hashable]:
        return [(p.instrument, p.place, p.column, p.movement, p.lights) for p in scene.visible]

    both, total = 0, 0
    for sides in sample_all_sides(200, 0.0):
        scene = combine(sides)
        assert (heard(scene), scene.has_voiceover) == (heard(sides.audio), sides.audio.has_voiceover)
        assert (seen(scene), scene.setting) == (seen(sides.visual), sides.visual.setting)
        both += sum(p.is_visible and p.is_audible for p in scene.performers)
        total += len(scene.performers)
    assert 0 < both < total / 2  # where both sides have an instrument, it is one performer


def test_only_the_order_within_a_place_is_unknown_from_the_audio() -> None:
    scenes = [of.visual for of in sample_all_sides(40, 1.0) if len({p.instrument for p in of.visual.visible}) == 4]
    for scene in scenes[:3]:
        found = [reorder_within_places(scene, random.Random(seed)) for seed in range(20)]
        assert all(
            {(p.instrument, p.place) for p in of.visible} == {(p.instrument, p.place) for p in scene.visible}
            for of in found
        )
        assert {tuple(p.column for p in of.visible) for of in found} == {(1 / 8, 3 / 8, 5 / 8, 7 / 8)}
        left, one, other, right = (p.instrument for p in scene.visible)
        orders = {tuple(p.instrument for p in of.visible) for of in found}
        assert orders == {(left, one, other, right), (left, other, one, right)}


def plug_in(pairs: Sequence[tuple[Hashable, Hashable]]) -> float:
    """Return the mutual information in bits of the two of each pair, with the bias correction of Miller and Madow."""

    def entropy(values: Sequence[Hashable]) -> float:
        counts = Counter(values)
        found = -math.fsum(n / len(values) * math.log2(n / len(values)) for n in counts.values())
        return found + (len(counts) - 1) / (2 * len(values) * math.log(2))

    return entropy([a for a, _ in pairs]) + entropy([v for _, v in pairs]) - entropy(pairs)


@pytest.mark.parametrize(
    ("state", "of_audio", "of_frames"),
    [
        ("number", lambda s: len(s.audible), lambda s: len(s.visible)),
        ("setting", lambda s: s.has_voiceover, lambda s: s.setting),
        (
            "instruments",
            lambda s: tuple(sorted(p.instrument for p in s.audible)),
            lambda s: tuple(sorted(p.instrument for p in s.visible)),
        ),
        (
            "loudness",
            lambda s: tuple(sorted((p.instrument, p.level) for p in s.audible)),
            lambda s: tuple(sorted((p.instrument, p.movement.level) for p in s.visible)),
        ),
    ],
)
def test_the_mutual_information_written_down_is_that_of_the_scenes(
    state: str, of_audio: Callable[[Scene], Hashable], of_frames: Callable[[Scene], Hashable]
) -> None:
    # So that the states are few enough to count.
    few = Difficulty({1: 0.6, 2: 0.4} if state == "number" else {1: 1.0}, (0, 0), 0.0)
    for redundancy in (0.0, 0.6):
        scenes = [combine(sides) for sides in sample_all_sides(3000, redundancy, few)]
        counted = plug_in([(of_audio(scene), of_frames(scene)) for scene in scenes])
        written = measure_states(3, redundancy, few)[state].mutual_information
        assert counted == pytest.approx(written, abs=0.08)


@pytest.mark.parametrize("state", STATES)
def test_the_probabilities_of_all_states_sum_to_one(state: str) -> None:
    number = {"instruments": 4, "places": 4}.get(state, 1)
    weights = {1: 0.5, 2: 0.3, number: 0.2} if number > 1 else {1: 1.0}
    rng = random.Random(1)
    found: dict[Hashable, float] = {}
    for _ in range(8000):
        scene = sample_redundant_scene("", 2, rng, Difficulty(weights, (0, 0), 0.0))
        key = frozenset(Counter((p.instrument, *(getattr(p, f) for f in STATES[state])) for p in scene.visible).items())
        found[key] = state_probability(scene, STATES[state], weights)
    assert sum(found.values()) == pytest.approx(1)


def test_independent_modalities_share_nothing_and_redundant_ones_everything() -> None:
    found = {redundancy: measure_states(3, redundancy, NORMAL) for redundancy in (0.0, 0.5, 1.0)}
    for state, nothing in found[0.0].items():
        assert nothing.mutual_information == pytest.approx(0, abs=1e-9)
        assert found[1.0][state].mutual_information == pytest.approx(nothing.entropy)
        assert 0.1 < found[0.5][state].mutual_information < nothing.entropy / 2
    assert measure_state(np.array([0.5, 0.5]), 0.5).mutual_information == pytest.approx(0.188722, abs=1e-6)


@pytest.fixture(scope="module")
def measured() -> dict[float, dict[str, dict[str, dict[str, float]]]]:
    patch, documents = pytest.MonkeyPatch(), {}
    patch.setattr(observer, "SAMPLES", 15)  # for speed
    for redundancy in (0.0, 0.5, 1.0):
        settings = SceneSettings(3, 0, redundancy)
        splits = sample_scenes(150, settings)
        documents[redundancy] = measure_redundancy(splits, select_questions(splits, 0), settings)
    patch.undo()
    return documents


def test_the_observer_of_a_modality_answers_what_it_can_know(measured) -> None:
    apart, half, redundant = (measured[redundancy]["answers"] for redundancy in (0.0, 0.5, 1.0))
    assert set(apart) == set(redundant) == {*TYPES, "all"}
    own = {"audio": ("Audio Counting", "Audio Comparative"), "visual": ("Visual Counting",)}
    others = {"audio": "Visual Counting", "visual": "Audio Counting"}
    for modality, types in own.items():
        assert all(apart[name][modality]["accuracy"] == 100 for name in types)
        other = others[modality]
        assert apart[other][modality]["accuracy"] < apart[other]["question"] + 10
        assert abs(apart[other][modality]["bits"]) < 0.4
        assert apart[other]["question"] + 10 < half[other][modality]["accuracy"] < 90
        assert redundant[other][modality]["accuracy"] == 100
        assert redundant[other][modality]["bits"] > 1
    assert redundant["all"]["visual"]["accuracy"] == 100
    assert redundant["all"]["audio"]["accuracy"] > 95
    assert redundant["Visual Location"]["audio"]["accuracy"] < 100  # the order within a place is not heard
    needs_both = apart["Audio-Visual Location"]
    assert max(needs_both[modality]["accuracy"] for modality in ("audio", "visual")) < 80


def guess(train: Sequence[Question], test: Sequence[Question], key: str) -> float:
    """Return the accuracy of the most frequent training answer of each template or filled text."""
    answers: dict[str, Counter[str]] = {}
    for q in train:
        answers.setdefault(getattr(q, key), Counter())[q.answer] += 1
    known = [q for q in test if getattr(q, key) in answers]
    return sum(answers[getattr(q, key)].most_common(1)[0][0] == q.answer for q in known) / len(known)


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
@pytest.mark.parametrize("redundancy", [0.0, 0.5, 1.0, None])
def test_the_question_alone_gives_no_answer_away_at_any_redundancy(redundancy: float | None, difficulty: str) -> None:
    splits = sample_scenes(150, SceneSettings(3, 1, redundancy, difficulty))
    questions = select_questions(splits, 1)
    for key in ("template", "text"):
        assert guess(questions["train"], questions["test"], key) < 0.42
    assert {q.type for q in questions["train"]} == set(TYPES)


def test_a_dataset_has_its_measured_redundancy_beside_it_until_it_has_none(tmp_path: Path) -> None:
    manifest = synthesize(tmp_path, videos=5, seconds=1, seed=0, redundancy=0.5, difficulty="hard")
    assert manifest.release == "synthetic-0-redundancy-0.5-hard"
    assert load_manifest(tmp_path) == manifest
    document = read_redundancy(tmp_path)
    assert (document["format"], document["redundancy"], document["difficulty"]) == (1, 0.5, "hard")
    assert document["states"]["everything"]["mutual_information"] > 5
    assert document["answers"]["all"]["questions"] == sum(len(manifest.questions[split]) for split in ("val", "test"))
    (tmp_path / "redundancy.json").write_text('{"format": 2}')
    with pytest.raises(UserError, match=r"redundancy\.json is not of format 1: synthesize the dataset again"):
        read_redundancy(tmp_path)
    assert synthesize(tmp_path, videos=2, seconds=1, seed=0).release == "synthetic-0"
    with pytest.raises(UserError, match=r"redundancy\.json is missing: synthesize the dataset again with --redundancy"):
        read_redundancy(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"redundancy": 1.5}, r"--redundancy 1\.5 is not in \[0, 1\]"),
        ({"redundancy": float("nan")}, "--redundancy nan is not in"),
        ({"difficulty": "hrad"}, r"difficulty 'hrad' is unknown \(did you mean 'hard'\?\)"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SceneSettings(3, 0, **options)  # type: ignore[arg-type]


def test_an_answer_that_no_training_question_has_is_wrong_and_tells_nothing() -> None:
    settings = SceneSettings(3, 0, 1.0)
    splits = sample_scenes(40, settings)
    questions = select_questions(splits, 0)
    unknown = tuple(replace(q, answer="ukulele") for q in questions["test"])
    found = measure_redundancy(splits, {**questions, "val": (), "test": unknown}, settings)["answers"]["all"]
    assert found["questions"] == len(unknown)
    assert found["visual"] == found["audio"] == {"accuracy": 0, "bits": 0}
