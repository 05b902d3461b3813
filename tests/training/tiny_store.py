"""A small feature store in memory with the reader's interface, and a manifest for it, for tests of stage two.

The store has every feature that a registered backbone reads. The answer to every question is in the features: the
audible class in each of `AUDIO`, the visible class in each of `VISUAL`.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import zarr

from pipeline.extractors.registry import make_extractor, make_question_extractor
from pipeline.manifests.manifest import PADDING_TOKEN, Manifest, Question, Video, Vocabulary
from pipeline.store.schema import VIDEOS_PER_PARTITION, FeatureSpec, State, tokens_name
from pipeline.store.seal import digest_row
from pipeline.store.writer import FeatureRecord, StoreWriter, VideoRecord, write_rows
from train.backbones.registry import BACKBONES, needs_of
from train.backbones.sizes import ModelSizes

CLASSES = ("flute", "drum", "piano")
WORDS = (PADDING_TOKEN, "What", "sounds", "shows")
TEXTS = {"audio": "What sounds ?", "visual": "What shows ?"}
TYPES = {"audio": "Audio Counting", "visual": "Visual Counting"}


def _small_shape(dims: tuple[str, ...], channels: int) -> tuple[int, ...]:
    """Return the shape in the store of a time step or a question with the extractor's `dims`."""
    return tuple({"channel": channels, "token": 5}.get(dim, 4) for dim in dims)


def _names_read(kind: str) -> tuple[str, ...]:
    """Return the features of audio, visual or the question that a backbone reads."""
    return tuple(dict.fromkeys(name for backbone in BACKBONES for name in needs_of(backbone)[kind]))


AUDIO, VISUAL = _names_read("audio"), _names_read("visual")
DIMS = {name: tuple(make_extractor(name).dims) for name in AUDIO + VISUAL}
SHAPES = {name: _small_shape(dims, 8 if name in AUDIO else 16) for name, dims in DIMS.items()}
QUESTION_DIMS = {
    name: tuple(make_question_extractor(name, Vocabulary(WORDS, CLASSES)).dims)
    for name in _names_read("question")
    if name != "tokens"
}
QUESTION_SHAPES = {name: _small_shape(dims, 16) for name, dims in QUESTION_DIMS.items()}
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
    return AUDIO if modality == "audio" else VISUAL


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
    firsts: dict[str, np.ndarray] = field(default_factory=dict)

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

    def first_steps(self, modality: str) -> np.ndarray:
        return self.firsts.get(modality, np.zeros_like(self.step_counts[modality]))

    def state(self, feature: str) -> np.ndarray:
        return self.states["audio" if feature in AUDIO else "visual"]

    def values(self, feature: str) -> zarr.Array:
        self.reads.append(feature)
        return zarr.array(self.arrays[feature])

    def spec(self, feature: str) -> FeatureSpec:
        modality = "audio" if feature in AUDIO else "visual"
        return FeatureSpec(feature, modality, DIMS[feature], SHAPES[feature], str(self.arrays[feature].dtype), {})

    def fingerprint(self, feature: str) -> str:
        return self.spec(feature).fingerprint

    def digest_of(self, feature: str, video_ids: Iterable[str]) -> str:
        rows = sorted(self.rows[video_id] for video_id in set(video_ids))
        return hashlib.sha256(self.arrays[feature][rows].tobytes()).hexdigest()

    def question_digest_of(self, name: str, texts: Iterable[str]) -> str:
        rows = sorted(self.question_rows[text] for text in set(texts) & self.question_rows.keys())
        return hashlib.sha256(self.questions[name][rows].tobytes()).hexdigest()

    def question_values(self, name: str) -> zarr.Array:
        return zarr.array(self.questions[name])

    def question_spec(self, name: str) -> FeatureSpec:
        values = self.questions[name]
        dims = QUESTION_DIMS.get(name, ("token",))
        return FeatureSpec(name, "question", dims, values.shape[1:], str(values.dtype), {})


def make_store(videos: int = 24, seconds: int = 8, incomplete: bool = True) -> TinyStore:
    """Create a store with `videos` videos.

    If `incomplete`, the first video has no audio, the second no frames, and the third ends after three seconds.
    """
    generator = np.random.default_rng(0)
    audible, visible = generator.integers(0, len(CLASSES), (2, videos))
    states = {m: np.full(videos, State.COMPLETE, np.uint8) for m in ("audio", "visual")}
    steps = {m: np.full(videos, seconds, np.int32) for m in ("audio", "visual")}
    arrays = {}
    for name in AUDIO + VISUAL:
        values = generator.normal(0, 0.3, (videos, seconds, *SHAPES[name]))
        channels = np.moveaxis(values, 2 + DIMS[name].index("channel"), 1)
        channels[np.arange(videos), audible if name in AUDIO else visible] += 2
        arrays[name] = values.astype(np.float32 if name in AUDIO else np.float16)
    questions = {name: generator.normal(0, 1, (len(TEXTS), *shape)) for name, shape in QUESTION_SHAPES.items()}
    if incomplete:
        for row, modality in enumerate(("audio", "visual")):
            states[modality][row], steps[modality][row], steps[modality][2] = State.ABSENT, 0, 3
            for name in of_modality(modality):
                arrays[name][row] = arrays[name][2, 3:] = np.nan
    store = TinyStore(
        video_ids=[f"video{row}" for row in range(videos)],
        states=states,
        step_counts=steps,
        arrays=arrays,
        questions={tokens_name(WORDS): np.array([[1, 2, 0], [1, 3, 0]], np.int32)}
        | {name: values.astype(np.float16) for name, values in questions.items()},
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
    with StoreWriter(path, "test") as writer:
        writer.create(tiny.seconds)
        writer.append_videos(tiny.video_ids)
        for name in FEATURES.values():
            writer.add_spec(tiny.spec(name))
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
                FeatureRecord(row, name, State(int(tiny.states[modality][row])), digest=_digest(tiny, modality, row))
                for modality, name in FEATURES.items()
                for row in range(len(tiny.video_ids))
            ]
        )
        rows = writer.append_questions(list(TEXTS.values()))
        writer.add_spec(tokens)
        writer.write_questions(tokens.name, np.array(list(rows.values())), tiny.questions[tokens.name])
        writer.seal()


def _digest(tiny, modality: str, row: int) -> str:
    name = FEATURES[modality]
    if tiny.states[modality][row] != State.COMPLETE:
        return ""
    return digest_row(name, tiny.video_ids[row], tiny.arrays[name][row, : tiny.step_counts[modality][row]])
