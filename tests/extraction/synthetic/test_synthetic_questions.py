"""The questions of the synthetic dataset: correct, balanced, reproducible per seed, and disjoint across splits."""

import random
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.manifests.manifest import QUESTION_LENGTH, Question, load_manifest
from pipeline.manifests.templates import ANSWERS, TYPES, encode, fill, index_tokens
from pipeline.synthetic import synthesize
from pipeline.synthetic.balance import Candidate, choose_balanced
from pipeline.synthetic.dataset import SceneSettings, make_vocabulary, sample_scenes, select_questions
from pipeline.synthetic.questions import TEMPLATE_RULES
from pipeline.synthetic.scene import INSTRUMENTS, Performer, Scene

NUMBERS = ["zero", "one", "two", "three", "four"]


@pytest.fixture(scope="module")
def scenes() -> dict[str, list[Scene]]:
    return sample_scenes(400, SceneSettings(10, seed=3))


@pytest.fixture(scope="module")
def questions(scenes: dict[str, list[Scene]]) -> dict[str, tuple[Question, ...]]:
    return select_questions(scenes, seed=3)


def read_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_seed_always_gives_the_same_bytes_for_any_number_of_workers(tmp_path: Path) -> None:
    synthesize(tmp_path / "one" / "data", videos=6, seconds=1, seed=5, workers=1)
    synthesize(tmp_path / "two" / "data", videos=6, seconds=1, seed=5, workers=2)
    synthesize(tmp_path / "other" / "data", videos=6, seconds=1, seed=6, workers=1)
    one, two, other = (read_files(tmp_path / name / "data") for name in ("one", "two", "other"))
    assert one == two
    assert one["questions-train.jsonl"] != other["questions-train.jsonl"]


def test_the_written_manifest_is_the_returned_one_and_progress_counts_every_clip(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    manifest = synthesize(tmp_path / "data", videos=5, seconds=1, seed=0, progress=lambda *call: calls.append(call))
    assert load_manifest(tmp_path / "data") == manifest
    assert calls == [(done, 5) for done in range(1, 6)]
    assert sorted(path.name for path in (tmp_path / "data" / "videos").iterdir()) == [v.path for v in manifest.videos]


@pytest.mark.parametrize("option", ["videos", "seconds", "workers"])
def test_a_number_below_one_raises_an_error_with_its_option(tmp_path: Path, option: str) -> None:
    numbers = {"videos": 1, "seconds": 1, "workers": 1, option: 0}
    with pytest.raises(UserError, match=f"--{option} 0 is too small: pass at least 1"):
        synthesize(tmp_path, seed=0, **numbers)


def test_splits_share_no_video_and_have_the_specified_sizes(
    scenes: dict[str, list[Scene]], questions: dict[str, tuple[Question, ...]]
) -> None:
    ids = {split: {q.video_id for q in questions[split]} for split in questions}
    assert sum(len(found) for found in ids.values()) == len(set().union(*ids.values()))
    assert {split: len(scenes[split]) for split in scenes} == {"train": 280, "val": 40, "test": 80}
    assert all(ids[split] <= {scene.video_id for scene in scenes[split]} for split in scenes)


def test_one_video_in_ten_has_no_audio_and_one_in_twenty_no_visual_track(scenes: dict[str, list[Scene]]) -> None:
    for split in scenes.values():
        assert sum(not scene.has_audio for scene in split) == len(split) / 10
        assert sum(not scene.has_visual for scene in split) == len(split) / 20
        assert all(scene.has_audio or scene.has_visual for scene in split)


def test_all_nine_types_and_33_templates_occur_in_words_of_the_vocabulary(
    questions: dict[str, tuple[Question, ...]],
) -> None:
    index = index_tokens(make_vocabulary())
    for split in questions.values():
        assert {q.type for q in split} == set(TYPES)
        assert {q.template for q in split} == {rule.template for rule in TEMPLATE_RULES}
        assert {q.answer for q in split} <= set(ANSWERS)
        assert all(encode(q.text, index, QUESTION_LENGTH) for q in split)
    assert len(TEMPLATE_RULES) == 33


@pytest.mark.parametrize(
    ("split", "videos", "least", "most"), [("train", 280, 10, 14), ("val", 40, 7, 12), ("test", 80, 7, 12)]
)
def test_questions_are_spread_evenly_over_videos_with_most_in_training(
    questions: dict[str, tuple[Question, ...]], split: str, videos: int, least: int, most: int
) -> None:
    counts = Counter(q.video_id for q in questions[split])
    assert len(counts) == videos
    assert min(counts.values()) >= least
    assert max(counts.values()) <= most


def test_yes_and_no_are_balanced_in_every_template_and_nearly_so_in_every_text(
    questions: dict[str, tuple[Question, ...]],
) -> None:
    for split in questions.values():
        for key in ("template", "text"):
            counts: dict[str, Counter[str]] = defaultdict(Counter)
            for q in split:
                if q.answer in ("yes", "no"):
                    counts[getattr(q, key)][q.answer] += 1
            slack = 1 if key == "template" else 4
            assert all(abs(count["yes"] - count["no"]) <= slack for count in counts.values())


@pytest.mark.parametrize("key", ["template", "text"])
def test_guessing_from_the_question_is_rarely_right(questions: dict[str, tuple[Question, ...]], key: str) -> None:
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for q in questions["train"]:
        counts[getattr(q, key)][q.answer] += 1
    is_right = [
        counts[getattr(q, key)].most_common(1) == [(q.answer, counts[getattr(q, key)][q.answer])]
        for q in questions["test"]
        if getattr(q, key) in counts
    ]
    assert sum(is_right) / len(is_right) < 0.40


def test_no_answer_is_chosen_more_often_than_the_second_most_frequent_one() -> None:
    pool = [Candidate(f"v{i}", "t", "t", "yes" if i < 5 else "no") for i in range(50)]
    chosen = choose_balanced(pool, {"t": 1.0}, 40, random.Random(0))
    assert Counter(c.answer for c in chosen) == {"yes": 5, "no": 5}
    assert len({c.video_id for c in chosen}) == 10


def count_playing(scene: Scene, instrument: str | None = None) -> int:
    """Count the performers that play in any second, second by second, unlike the questions' own rules."""
    return sum(
        any(p.start <= second < p.stop for second in range(scene.seconds))
        for p in scene.performers
        if instrument in (None, p.instrument)
    )


def count_visible(scene: Scene, instrument: str) -> int:
    return sum(p.place in ("left", "middle", "right") and p.instrument == instrument for p in scene.performers)


def true_answer(question: Question, scene: Scene) -> str | None:
    """Return the answer to the question, derived from its text alone; None for most templates."""
    words = question.text.rstrip("?").split()
    named = [word for word in words if word in INSTRUMENTS]
    match question.template:
        case "How many musical instruments were heard throughout the video?":
            return NUMBERS[count_playing(scene)]
        case "How many sounding <Object> in the video?":
            return NUMBERS[count_playing(scene, named[0])]
        case "How many <Object> are in the entire video?":
            return NUMBERS[count_visible(scene, named[0])]
        case "Are there <Object> and <Object> sound?":
            return "yes" if all(count_playing(scene, name) for name in named) else "no"
        case "Is there a <Object> in the entire video?":
            return "yes" if count_visible(scene, named[0]) else "no"
        case "Is the <Object> louder than the <Object>?":
            one, other = ([p.level for p in scene.performers if p.instrument == name] for name in named)
            return "yes" if one > other else "no"
        case "What kind of instrument is the <LRer> instrument?":
            visible = [(p.column, p.instrument) for p in scene.performers if p.place]
            return (min if words[-2] == "leftest" else max)(visible)[1]
        case "What is the <TH> instrument that comes in?":
            starts = sorted((p.start, p.instrument) for p in scene.performers if p.stop > p.start)
            return starts[["first", "second", "third", "fourth"].index(words[3])][1]
        case "Is there a voiceover?":
            return "yes" if scene.has_voiceover else "no"
        case "Where is the performance?":
            return scene.setting
    return None


def test_answers_are_true_of_the_scenes(
    scenes: dict[str, list[Scene]], questions: dict[str, tuple[Question, ...]]
) -> None:
    by_id = {scene.video_id: scene for split in scenes.values() for scene in split}
    checked: Counter[str] = Counter()
    for q in (q for split in questions.values() for q in split):
        answer = true_answer(q, by_id[q.video_id])
        if answer is not None:
            assert q.answer == answer, q
            checked[q.template] += 1
    assert len(checked) == 10
    assert min(checked.values()) >= 50


def play(instrument: str, place: str | None, column: float, start: int, stop: int, level: int = 1) -> Performer:
    return Performer(instrument, place, column, start, stop, level, tempo=1, pitch=0.0)  # type: ignore[arg-type]


TRIO = Scene(
    video_id="v",
    seconds=10,
    setting="indoor",
    performers=(
        play("violin", "right", 5 / 6, 2, 6, level=3),
        play("flute", "left", 1 / 6, 0, 10, level=2),
        play("drum", "middle", 1 / 2, 0, 0),
        play("accordion", None, 0.0, 5, 9),
    ),
    has_voiceover=False,
    has_audio=True,
    has_visual=True,
)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("How many instruments are sounding in the video?", "three"),
        ("How many types of musical instruments appeared in the entire video?", "three"),
        ("How many instruments in the video did not sound from beginning to end?", "one"),
        ("Is there a accordion in the entire video?", "no"),
        ("Is there a accordion sound?", "yes"),
        ("Is there a drum sound?", "no"),
        ("Is the violin louder than the flute?", "yes"),
        ("Is the violin playing longer than the accordion?", None),
        ("Is the flute playing longer than the accordion?", "yes"),
        ("Is the flute in the video always playing?", "yes"),
        ("Is the violin in the video always playing?", "no"),
        ("What is the instrument on the left of violin?", "drum"),
        ("What kind of instrument is the rightest instrument?", "violin"),
        ("What is the second instrument that comes in?", "violin"),
        ("Which instrument makes sounds after the violin?", "accordion"),
        ("Where is the first sounding instrument?", "left"),
        ("Where is the last sounding instrument?", None),
        ("Where is the loudest instrument?", "right"),
        ("Where is the lowest instrument?", None),
        ("Is the first sound coming from the right instrument?", "no"),
        ("What is the right instrument of the first sounding instrument?", "drum"),
        ("Which is the musical instrument that sounds at the same time as the flute?", None),
        ("Is the instrument on the right louder than the instrument on the left?", "yes"),
        ("Is the flute on the left louder than the violin on the right?", "no"),
    ],
)
def test_a_handmade_scene_has_exactly_the_unambiguous_questions(text: str, answer: str | None) -> None:
    answers = {fill(rule.template, values): found for rule in TEMPLATE_RULES for values, found in rule.answers(TRIO)}
    assert answers.get(text) == answer
