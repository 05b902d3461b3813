"""A small feature store in memory with the reader's interface, and a manifest for it, for tests of stage two.

The answer to every question is in the features: the audible class in `vggish`, the visible class in each of `VISUAL`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import zarr

from pipeline.manifests.manifest import PADDING_TOKEN, Manifest, Question, Video, Vocabulary
from pipeline.store.schema import VIDEOS_PER_PARTITION, FeatureSpec, State, tokens_name
from pipeline.store.writer import FeatureRecord, StoreWriter, VideoRecord, write_rows
from train.backbones.sizes import ModelSizes

CLASSES = ("flute", "drum", "piano")
WORDS = (PADDING_TOKEN, "What", "sounds", "shows")
TEXTS = {"audio": "What sounds ?", "visual": "What shows ?"}
TYPES = {"audio": "Audio Counting", "visual": "Visual Counting"}
SHAPES = {"vggish": (8,), "resnet18-map": (16, 4, 4), "clip-vit-b32": (5, 16)}
DIMS = {1: ("channel",), 2: ("token", "channel"), 3: ("channel", "height", "width")}
VISUAL = ("resnet18-map", "clip-vit-b32")
QUESTION_SHAPES = {"clip-vit-b32-sentence": (16,), "clip-vit-b32-words": (6, 16)}
SIZES = ModelSizes(
    words=len(WORDS),
    answers=len(CLASSES),
    input_shapes=SHAPES,
    question_shapes=QUESTION_SHAPES,
    channels=16,
    heads=2,
    time_steps=4,
)


def of_modality(modality: str) -> tuple[str, ...]:
    """Return the stored features of audio or visual."""
    return ("vggish",) if modality == "audio" else VISUAL


@dataclass
class TinyStore:
    """The interface of `FeatureStore` over arrays in memory."""

    video_ids: list[str]
    states: dict[str, np.ndarray]
    step_counts: dict[str, np.ndarray]
    arrays: dict[str, np.ndarray]
    questions: dict[str, np.ndarray]
    question_rows: dict[str, int]
    seconds: int = 8
    path: str = "tiny"
    reads: list[str] = field(default_factory=list)

    @property
    def rows(self) -> dict[str, int]:
        return {video_id: row for row, video_id in enumerate(self.video_ids)}

    @property
    def feature_names(self) -> list[str]:
        return sorted(self.arrays)

    def presence(self, modality: str) -> np.ndarray:
        return self.states[modality]

    def steps(self, modality: str) -> np.ndarray:
        return self.step_counts[modality]

    def state(self, feature: str) -> np.ndarray:
        return self.states["audio" if feature == "vggish" else "visual"]

    def values(self, feature: str) -> zarr.Array:
        self.reads.append(feature)
        return zarr.array(self.arrays[feature])

    def spec(self, feature: str) -> FeatureSpec:
        modality = "audio" if feature == "vggish" else "visual"
        shape = SHAPES[feature]
        return FeatureSpec(feature, modality, DIMS[len(shape)], shape, str(self.arrays[feature].dtype), {})

    def fingerprint(self, feature: str) -> str:
        return self.spec(feature).fingerprint

    def question_values(self, name: str) -> zarr.Array:
        return zarr.array(self.questions[name])

    def question_spec(self, name: str) -> FeatureSpec:
        values = self.questions[name]
        return FeatureSpec(name, "question", ("token",), values.shape[1:], str(values.dtype), {})


def make_store(videos: int = 24, seconds: int = 8, incomplete: bool = True) -> TinyStore:
    """Create a store with `videos` videos.

    If `incomplete`, the first video has no audio, the second no frames, and the third ends after three seconds.
    """
    generator = np.random.default_rng(0)
    audible, visible = generator.integers(0, len(CLASSES), (2, videos))
    states = {m: np.full(videos, State.COMPLETE, np.uint8) for m in ("audio", "visual")}
    steps = {m: np.full(videos, seconds, np.int32) for m in ("audio", "visual")}
    vggish = generator.normal(0, 0.3, (videos, seconds, 8)).astype(np.float32)
    maps = generator.normal(0, 0.3, (videos, seconds, 16, 4, 4)).astype(np.float16)
    vggish[np.arange(videos), :, audible] += 2
    maps[np.arange(videos), :, visible] += 2
    tokens = generator.normal(0, 0.3, (videos, seconds, 5, 16)).astype(np.float16)
    tokens[np.arange(videos), :, :, visible] += 2
    sentences = generator.normal(0, 1, (len(TEXTS), 16)).astype(np.float32)
    words = generator.normal(0, 1, (len(TEXTS), 6, 16)).astype(np.float16)
    if incomplete:
        states["audio"][0], steps["audio"][0], vggish[0] = State.ABSENT, 0, np.nan
        states["visual"][1], steps["visual"][1], maps[1], tokens[1] = State.ABSENT, 0, np.nan, np.nan
        for modality, values in (("audio", vggish), ("visual", maps), ("visual", tokens)):
            steps[modality][2], values[2, 3:] = 3, np.nan
    store = TinyStore(
        video_ids=[f"video{row}" for row in range(videos)],
        states=states,
        step_counts=steps,
        arrays={"vggish": vggish, "resnet18-map": maps, "clip-vit-b32": tokens},
        questions={
            tokens_name(WORDS): np.array([[1, 2, 0], [1, 3, 0]], np.int32),
            "clip-vit-b32-sentence": sentences,
            "clip-vit-b32-words": words,
        },
        question_rows={text: row for row, text in enumerate(TEXTS.values())},
        seconds=seconds,
    )
    store.truth = {"audio": audible, "visual": visible}  # type: ignore[attr-defined]
    return store


def make_manifest(store: TinyStore, shares: tuple[float, float] = (0.6, 0.8)) -> Manifest:
    """Return a manifest with both questions on every video; no video is in two splits."""
    videos = len(store.video_ids)
    bounds = [0, *(round(share * videos) for share in shares), videos]
    questions = {}
    for split, first, last in zip(("train", "val", "test"), bounds, bounds[1:], strict=False):
        questions[split] = tuple(
            Question(
                question_id=f"{row}-{modality}",
                video_id=store.video_ids[row],
                text=TEXTS[modality],
                template=TEXTS[modality],
                answer=CLASSES[store.truth[modality][row]],  # type: ignore[attr-defined]
                type=TYPES[modality],
                modality=modality,
            )
            for row in range(first, last)
            for modality in ("audio", "visual")
        )
    ids = tuple(Video(video_id, f"{video_id}.mp4") for video_id in store.video_ids)
    return Manifest("tiny", "1", "none", ids, questions, Vocabulary(WORDS, CLASSES))


def offer(manifest: Manifest, choices: Mapping[str, tuple[str, ...]]) -> Manifest:
    """Return the manifest with `choices` {question id: answers}; other questions have none."""
    questions = {
        split: tuple(replace(question, choices=choices.get(question.question_id)) for question in own)
        for split, own in manifest.questions.items()
    }
    return replace(manifest, questions=questions)


FEATURES = {"audio": "vggish", "visual": "resnet18-map"}


def write_store(tiny, path: Path) -> None:
    """Write a tiny store to `path` in the order of an extraction: values, videos, states."""
    tokens = FeatureSpec(tokens_name(WORDS), "question", ("token",), (3,), "int32", {})
    with StoreWriter(path, tiny.seconds, "test") as writer:
        writer.append_videos(tiny.video_ids)
        for name in FEATURES.values():
            writer.ensure_feature(tiny.spec(name))
        for modality, name in FEATURES.items():
            complete = np.flatnonzero(tiny.states[modality] == State.COMPLETE)
            for first in range(0, len(tiny.video_ids), VIDEOS_PER_PARTITION):
                own = complete[(complete >= first) & (complete < first + VIDEOS_PER_PARTITION)]
                rows = {int(v): tiny.arrays[name][v, : tiny.step_counts[modality][v]] for v in own}
                write_rows(path, name, first, rows)
        writer.record_videos(
            [
                VideoRecord(
                    row,
                    "",
                    {m: State(int(tiny.states[m][row])) for m in FEATURES},
                    {m: int(tiny.step_counts[m][row]) for m in FEATURES},
                    dict.fromkeys(FEATURES, ""),
                )
                for row in range(len(tiny.video_ids))
            ]
        )
        writer.record_features(
            [
                FeatureRecord(row, name, State(int(tiny.states[modality][row])))
                for modality, name in FEATURES.items()
                for row in range(len(tiny.video_ids))
            ]
        )
        rows = writer.append_questions(list(TEXTS.values()))
        writer.ensure_feature(tokens)
        writer.write_questions(tokens.name, np.array(list(rows.values())), tiny.questions[tokens.name])
        writer.consolidate()
