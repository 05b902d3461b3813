"""The synthetic dataset's questions: true, balanced, the same for the same seed, and disjoint over splits."""

import random
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.manifests.manifest import QUESTION_LENGTH, Question, load_manifest
from pipeline.manifests.templates import ANSWERS, TYPES, encode, fill, index_tokens
from pipeline.synthetic import synthesize
from pipeline.synthetic.balance import Candidate, choose_balanced
from pipeline.synthetic.dataset import ask_questions, draw_scenes, make_vocabulary
from pipeline.synthetic.questions import ASKS
from pipeline.synthetic.scene import INSTRUMENTS, Performer, Scene

NUMBERS = ["zero", "one", "two", "three", "four"]


@pytest.fixture(scope="module")
def scenes() -> dict[str, list[Scene]]:
    return draw_scenes(400, 10, seed=3)


@pytest.fixture(scope="module")
def questions(scenes: dict[str, list[Scene]]) -> dict[str, tuple[Question, ...]]:
    return ask_questions(scenes, seed=3)


def read_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_same_seed_gives_the_same_bytes_whatever_the_number_of_workers(tmp_path: Path) -> None:
    synthesize(tmp_path / "one" / "data", videos=6, seconds=1, seed=5, workers=1)
    synthesize(tmp_path / "two" / "data", videos=6, seconds=1, seed=5, workers=2)
    synthesize(tmp_path / "other" / "data", videos=6, seconds=1, seed=6, workers=1)
    one, two, other = (read_files(tmp_path / name / "data") for name in ("one", "two", "other"))
    assert one == two
    assert one["questions-train.jsonl"] != other["questions-train.jsonl"]


def test_what_is_written_is_what_is_returned_and_progress_counts_every_clip(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    made = synthesize(tmp_path / "data", videos=5, seconds=1, seed=0, progress=lambda *call: calls.append(call))
    assert load_manifest(tmp_path / "data") == made
    assert calls == [(done, 5) for done in range(1, 6)]
    assert sorted(path.name for path in (tmp_path / "data" / "videos").iterdir()) == [v.path for v in made.videos]


@pytest.mark.parametrize("wrong", ["videos", "seconds", "workers"])
def test_a_number_below_one_is_refused_by_name(tmp_path: Path, wrong: str) -> None:
    numbers = {"videos": 1, "seconds": 1, "workers": 1, wrong: 0}
    with pytest.raises(UserError, match=f"--{wrong} 0"):
        synthesize(tmp_path, seed=0, **numbers)


def test_splits_share_no_video_and_keep_their_shares(
    scenes: dict[str, list[Scene]], questions: dict[str, tuple[Question, ...]]
) -> None:
    ids = {split: {q.video_id for q in questions[split]} for split in questions}
    assert sum(len(found) for found in ids.values()) == len(set().union(*ids.values()))
    assert {split: len(scenes[split]) for split in scenes} == {"train": 280, "val": 40, "test": 80}
    assert all(ids[split] <= {scene.video_id for scene in scenes[split]} for split in scenes)


def test_one_video_in_ten_has_no_sound_and_one_in_twenty_no_picture(scenes: dict[str, list[Scene]]) -> None:
    for split in scenes.values():
        assert sum(not scene.has_audio for scene in split) == len(split) / 10
        assert sum(not scene.has_picture for scene in split) == len(split) / 20
        assert all(scene.has_audio or scene.has_picture for scene in split)


def test_all_nine_types_and_33_templates_are_asked_in_known_words(
    questions: dict[str, tuple[Question, ...]],
) -> None:
    index = index_tokens(make_vocabulary())
    for split in questions.values():
        assert {q.type for q in split} == set(TYPES)
        assert {q.template for q in split} == {ask.template for ask in ASKS}
        assert {q.answer for q in split} <= set(ANSWERS)
        assert all(encode(q.text, index, QUESTION_LENGTH) for q in split)
    assert len(ASKS) == 33


@pytest.mark.parametrize(
    ("split", "videos", "least", "most"), [("train", 280, 10, 14), ("val", 40, 7, 12), ("test", 80, 7, 12)]
)
def test_videos_are_asked_about_evenly_and_most_often_in_training(
    questions: dict[str, tuple[Question, ...]], split: str, videos: int, least: int, most: int
) -> None:
    counts = Counter(q.video_id for q in questions[split])
    assert len(counts) == videos
    assert min(counts.values()) >= least
    assert max(counts.values()) <= most


def test_yes_and_no_are_even_in_every_template_and_nearly_so_in_every_text(
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
def test_guessing_from_the_question_pays_little(questions: dict[str, tuple[Question, ...]], key: str) -> None:
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for q in questions["train"]:
        counts[getattr(q, key)][q.answer] += 1
    right = [
        counts[getattr(q, key)].most_common(1) == [(q.answer, counts[getattr(q, key)][q.answer])]
        for q in questions["test"]
        if getattr(q, key) in counts
    ]
    assert sum(right) / len(right) < 0.40


def test_balance_never_lets_an_answer_exceed_the_second_most_frequent() -> None:
    pool = [Candidate(f"v{i}", "t", "t", "yes" if i < 5 else "no") for i in range(50)]
    chosen = choose_balanced(pool, {"t": 1.0}, 40, random.Random(0))
    assert Counter(c.answer for c in chosen) == {"yes": 5, "no": 5}
    assert len({c.video_id for c in chosen}) == 10


def count_playing(scene: Scene, instrument: str | None = None) -> int:
    """Count the performers that sound in any second, second by second: not how the questions count them."""
    return sum(
        any(p.start <= second < p.stop for second in range(scene.seconds))
        for p in scene.performers
        if instrument in (None, p.instrument)
    )


def count_standing(scene: Scene, instrument: str) -> int:
    return sum(p.place in ("left", "middle", "right") and p.instrument == instrument for p in scene.performers)


def truth_of(question: Question, scene: Scene) -> str | None:
    """Return the answer to some of the templates, found from the words of the text alone."""
    words = question.text.rstrip("?").split()
    named = [word for word in words if word in INSTRUMENTS]
    match question.template:
        case "How many musical instruments were heard throughout the video?":
            return NUMBERS[count_playing(scene)]
        case "How many sounding <Object> in the video?":
            return NUMBERS[count_playing(scene, named[0])]
        case "How many <Object> are in the entire video?":
            return NUMBERS[count_standing(scene, named[0])]
        case "Are there <Object> and <Object> sound?":
            return "yes" if all(count_playing(scene, name) for name in named) else "no"
        case "Is there a <Object> in the entire video?":
            return "yes" if count_standing(scene, named[0]) else "no"
        case "Is the <Object> louder than the <Object>?":
            one, other = ([p.level for p in scene.performers if p.instrument == name] for name in named)
            return "yes" if one > other else "no"
        case "What kind of instrument is the <LRer> instrument?":
            standing = [(p.column, p.instrument) for p in scene.performers if p.place]
            return (min if words[-2] == "leftest" else max)(standing)[1]
        case "What is the <TH> instrument that comes in?":
            starts = sorted((p.start, p.instrument) for p in scene.performers if p.stop > p.start)
            return starts[["first", "second", "third", "fourth"].index(words[3])][1]
        case "Is there a voiceover?":
            return "yes" if scene.has_voiceover else "no"
        case "Where is the performance?":
            return scene.setting
    return None


def test_answers_agree_with_the_scenes(
    scenes: dict[str, list[Scene]], questions: dict[str, tuple[Question, ...]]
) -> None:
    by_id = {scene.video_id: scene for split in scenes.values() for scene in split}
    checked: Counter[str] = Counter()
    for q in (q for split in questions.values() for q in split):
        truth = truth_of(q, by_id[q.video_id])
        if truth is not None:
            assert q.answer == truth, q
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
    has_picture=True,
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
def test_a_scene_drawn_by_hand_is_asked_what_is_beyond_doubt(text: str, answer: str | None) -> None:
    asked = {fill(ask.template, values): found for ask in ASKS for values, found in ask.answers(TRIO)}
    assert asked.get(text) == answer
