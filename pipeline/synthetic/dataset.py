"""The synthetic dataset of a seed: scenes, splits, questions, vocabulary and clips.

`benchmarks/synthetic_signal.py` measures what a model can learn from it.
"""

import hashlib
import json
import multiprocessing
import random
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import UserError, unknown_name
from pipeline.files import make_folder, replace_text
from pipeline.machine import exit_with_parent, uninterrupted_children
from pipeline.manifests.manifest import SPLITS, Manifest, Question, Video, Vocabulary, save_manifest
from pipeline.manifests.templates import ANSWERS, SLOTS, build_vocabulary, fill
from pipeline.synthetic.balance import Candidate, choose_balanced
from pipeline.synthetic.difficulty import DIFFICULTIES
from pipeline.synthetic.observer import measure_answers
from pipeline.synthetic.questions import TEMPLATE_RULES
from pipeline.synthetic.redundancy import Sides, combine, sample_sides
from pipeline.synthetic.scene import INSTRUMENTS, Scene, sample_scene
from pipeline.synthetic.shared_information import measure_states

SPLIT_SHARES = {"val": 0.1, "test": 0.2}
NO_AUDIO_SHARE = 0.10
NO_VISUAL_SHARE = 0.05
# More questions per video balance their answers less: val and test have fewer, so that guessing is right less often.
QUESTIONS_PER_VIDEO = {"train": 14, "val": 10, "test": 10}
VIDEOS_FOLDER = "videos"
REDUNDANCY_FILE = "redundancy.json"
REDUNDANCY_FORMAT = 1

_TYPE_OF = {rule.template: rule.type for rule in TEMPLATE_RULES}


@dataclass(frozen=True)
class SceneSettings:
    """What scenes are sampled from: `sample_scene` if `redundancy` is None, else `sample_sides`; both use `seed`.

    `redundancy`: in [0, 1]. `difficulty`: one of `DIFFICULTIES`.
    """

    seconds: int
    seed: int
    redundancy: float | None = None
    difficulty: str = "normal"

    def __post_init__(self) -> None:
        if self.redundancy is not None and not 0 <= self.redundancy <= 1:
            raise UserError(f"--redundancy {self.redundancy} is not in [0, 1]: pass 0 (independent) to 1 (redundant)")
        if self.difficulty not in DIFFICULTIES:
            raise unknown_name("difficulty", self.difficulty, DIFFICULTIES)

    @property
    def release(self) -> str:
        """The name of the settings in manifests and results, without the seconds."""
        parts = [f"synthetic-{self.seed}"]
        if self.redundancy is not None:
            parts.append(f"redundancy-{self.redundancy:g}")
        if self.difficulty != "normal":
            parts.append(self.difficulty)
        return "-".join(parts)


def synthesize(
    out: Path,
    videos: int,
    seconds: int,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
    workers: int = 1,
    name: str | None = None,
    redundancy: float | None = None,
    difficulty: str = "normal",
) -> Manifest:
    """Write a synthetic dataset of `videos` clips of `seconds` seconds to `out`; return its manifest.

    The name of the dataset is `name`, by default that of the folder. The manifest is written to `out`, the clips (MP4,
    H.264 and AAC) to `out/videos` by `workers` processes. `progress` is called with (clips written, `videos`). The
    questions of a `seed` are always the same, byte for byte; the clips may depend on the codecs' versions.
    With a `redundancy`, `out/redundancy.json` has the information of each modality (`measure_redundancy`).
    Raises `UserError` if a number is below 1, `redundancy` outside [0, 1] or `difficulty` unknown.
    """
    for option, value in {"videos": videos, "seconds": seconds, "workers": workers}.items():
        if value < 1:
            raise UserError(f"--{option} {value} is too small: pass at least 1")
    settings = SceneSettings(seconds, seed, redundancy, difficulty)
    splits = sample_scenes(videos, settings)
    scenes = sorted((scene for split in splits.values() for scene in split), key=lambda scene: scene.video_id)
    folder = out / VIDEOS_FOLDER
    make_folder(folder)
    (out / REDUNDANCY_FILE).unlink(missing_ok=True)
    digests = dict(_write_clips(scenes, folder, seed, workers, progress or (lambda done, total: None)))
    manifest = Manifest(
        name=name or out.name,
        release=settings.release,
        licence="Apache-2.0",
        videos=tuple(Video(scene.video_id, f"{scene.video_id}.mp4", digests[scene.video_id]) for scene in scenes),
        questions=select_questions(splits, seed),
        vocabulary=make_vocabulary(),
    )
    save_manifest(manifest, out)
    if redundancy is not None:
        document = measure_redundancy(splits, manifest.questions, settings)
        replace_text(out / REDUNDANCY_FILE, json.dumps(document, indent=1) + "\n")
    return manifest


def measure_redundancy(
    splits: dict[str, list[Scene]], questions: dict[str, tuple[Question, ...]], settings: SceneSettings
) -> dict[str, Any]:
    """Return the document of `redundancy.json`: the settings, `measure_states` and `measure_answers`.

    Raises ValueError if the settings have no redundancy.
    """
    if settings.redundancy is None:
        raise ValueError("only datasets with a redundancy can be measured")
    difficulty = DIFFICULTIES[settings.difficulty]
    sides = {scene.video_id: _sample_sides(scene.video_id, settings) for of in splits.values() for scene in of}
    states = measure_states(settings.seconds, settings.redundancy, difficulty)
    answers = measure_answers(questions, sides, settings.redundancy, difficulty)
    head = {"format": REDUNDANCY_FORMAT, "redundancy": settings.redundancy, "difficulty": settings.difficulty}
    return {
        **head,
        "states": {name: asdict(state) for name, state in states.items()},
        "answers": {name: asdict(answer) for name, answer in answers.items()},
    }


def read_redundancy(folder: Path) -> dict[str, Any]:
    """Return the document `redundancy.json` of the dataset in `folder`.

    Raises `UserError` if it is missing, not JSON or of another format.
    """
    path = folder / REDUNDANCY_FILE
    cure = "synthesize the dataset again with --redundancy"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: {cure}") from None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}; {cure}") from None
    if not isinstance(document, dict) or document.get("format") != REDUNDANCY_FORMAT:
        raise UserError(f"{path} is not of format {REDUNDANCY_FORMAT}: {cure}")
    return document


def sample_scenes(videos: int, settings: SceneSettings) -> dict[str, list[Scene]]:
    """Return the scenes of each split (70 / 10 / 20 %); in each, 10 % have no audio and another 5 % no visual track."""
    seed = settings.seed
    order = [f"syn{index:08d}" for index in range(videos)]
    random.Random(f"{seed} splits").shuffle(order)
    test, val = (round(videos * SPLIT_SHARES[split]) for split in ("test", "val"))
    ids = {"train": order[test + val :], "val": order[test : test + val], "test": order[:test]}
    return {split: _sample_split(ids[split], settings) for split in SPLITS}


def _sample_split(video_ids: Sequence[str], settings: SceneSettings) -> list[Scene]:
    without_audio = round(len(video_ids) * NO_AUDIO_SHARE)
    without_either = without_audio + round(len(video_ids) * NO_VISUAL_SHARE)
    return [
        replace(
            _sample_scene(video_id, settings),
            has_audio=index >= without_audio,
            has_visual=not without_audio <= index < without_either,
        )
        for index, video_id in enumerate(video_ids)
    ]


def _sample_scene(video_id: str, settings: SceneSettings) -> Scene:
    if settings.redundancy is not None:
        return combine(_sample_sides(video_id, settings))
    difficulty = DIFFICULTIES[settings.difficulty]
    return sample_scene(video_id, settings.seconds, _generator(video_id, settings), difficulty)


def _sample_sides(video_id: str, settings: SceneSettings) -> Sides:
    assert settings.redundancy is not None
    generator, difficulty = _generator(video_id, settings), DIFFICULTIES[settings.difficulty]
    return sample_sides(video_id, settings.seconds, generator, settings.redundancy, difficulty)


def _generator(video_id: str, settings: SceneSettings) -> random.Random:
    return random.Random(f"{settings.seed} {video_id}")


def select_questions(splits: dict[str, list[Scene]], seed: int) -> dict[str, tuple[Question, ...]]:
    """Return the questions of each split, on average at most `QUESTIONS_PER_VIDEO`, with balanced answers."""
    chosen = {
        split: _choose(scenes, QUESTIONS_PER_VIDEO[split], random.Random(f"{seed} {split}"))
        for split, scenes in splits.items()
    }
    numbers = count(1)
    return {split: tuple(_make_question(next(numbers), c) for c in chosen[split]) for split in splits}


def make_vocabulary() -> Vocabulary:
    """Return the vocabulary of every seed: all words of all possible questions, and MUSIC-AVQA's 42 answers."""
    texts = (text for rule in TEMPLATE_RULES for text in _example_texts(rule.template))
    return build_vocabulary(texts, ANSWERS)


def _example_texts(template: str) -> Iterator[str]:
    """Yield filled texts in which each possible filler of each slot occurs."""
    words_of = {**SLOTS, "<Object>": INSTRUMENTS}
    fillers = [words_of[slot] for slot in re.findall(r"<\w+>", template)]
    for index in range(len(INSTRUMENTS)):
        yield fill(template, [words[index % len(words)] for words in fillers])


def _choose(scenes: Sequence[Scene], per_video: int, rng: random.Random) -> list[Candidate]:
    candidates = [
        Candidate(scene.video_id, rule.template, fill(rule.template, values), answer)
        for scene in scenes
        for rule in TEMPLATE_RULES
        for values, answer in rule.answers(scene)
    ]
    weights = {rule.template: rule.weight for rule in TEMPLATE_RULES}
    chosen = choose_balanced(candidates, weights, per_video * len(scenes), rng)
    return sorted(chosen, key=lambda c: (c.video_id, c.template, c.text))


def _make_question(number: int, candidate: Candidate) -> Question:
    question_type = _TYPE_OF[candidate.template]
    return Question(
        question_id=str(number),
        video_id=candidate.video_id,
        text=candidate.text,
        template=candidate.template,
        answer=candidate.answer,
        type=question_type,
        modality=question_type.rpartition(" ")[0],
    )


def _write_clips(
    scenes: Sequence[Scene], folder: Path, seed: int, workers: int, progress: Callable[[int, int], None]
) -> Iterator[tuple[str, str]]:
    """Write the clips; yield (video id, SHA-256 of its file) as they are finished."""
    if workers == 1:
        for done, scene in enumerate(scenes, start=1):
            yield _write_scene(scene, folder, seed)
            progress(done, len(scenes))
        return
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), exit_with_parent)
    try:
        with uninterrupted_children():
            tasks = [pool.submit(_write_scene, scene, folder, seed) for scene in scenes]
        for done, task in enumerate(as_completed(tasks), start=1):
            yield task.result()
            progress(done, len(scenes))
    finally:
        pool.shutdown(cancel_futures=True)


def _write_scene(scene: Scene, folder: Path, seed: int) -> tuple[str, str]:
    from pipeline.synthetic.audio import SAMPLE_RATE_HZ, synthesize_waveform
    from pipeline.synthetic.mp4 import write_clip
    from pipeline.synthetic.render import FRAMES_PER_SECOND, render_frames

    path = folder / f"{scene.video_id}.mp4"
    melodies = np.random.default_rng([seed, int(scene.video_id.removeprefix("syn"))])
    write_clip(
        path,
        render_frames(scene) if scene.has_visual else None,
        FRAMES_PER_SECOND,
        synthesize_waveform(scene, melodies) if scene.has_audio else None,
        SAMPLE_RATE_HZ,
    )
    return scene.video_id, hashlib.sha256(path.read_bytes()).hexdigest()
