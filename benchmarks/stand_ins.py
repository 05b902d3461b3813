"""Manifests and stores of stand-ins for benchmarks: random values in the shapes and with the zeros of real features.

Only a few videos have values of their own. The files of the others are hard links to theirs, so that a store of a
dataset's size takes the disk of a few videos.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.manifests.manifest import PADDING_TOKEN, Manifest, Question, Video, Vocabulary
from pipeline.store.schema import QUESTION_LENGTH, VIDEOS_PER_PARTITION, FeatureSpec, State, tokens_name
from pipeline.store.seal import digest_row
from pipeline.store.writer import FeatureRecord, StoreWriter, VideoRecord, write_rows

# Of MUSIC-AVQA, release json_update.
VIDEOS, TEXTS, WORDS, ANSWERS = 9_288, 2_655, 93, 42
QUESTIONS = {"train": 31_927, "val": 4_568}
# Of the maps of ResNet-18.
SHARE_OF_ZEROS = 0.75
SECONDS = 60


@dataclass(frozen=True)
class StoredFeature:
    """A feature to store: its modality ("question" too), the shape of one step or question, and its dtype."""

    modality: str
    shape: tuple[int, ...]
    dtype: str

    def spec(self, name: str) -> FeatureSpec:
        """Return the spec of the feature under `name`."""
        dims = ("channel", "height", "width") if len(self.shape) == 3 else ("token", "channel")[-len(self.shape) :]
        return FeatureSpec(name, self.modality, dims, self.shape, self.dtype, {})


# All that the backbones read.
FEATURES = {
    "vggish": StoredFeature("audio", (128,), "float32"),
    "resnet18-map": StoredFeature("visual", (512, 14, 14), "float16"),
    "clip-vit-b32": StoredFeature("visual", (50, 512), "float16"),
}
QUESTION_FEATURES = {
    "clip-vit-b32-sentence": StoredFeature("question", (512,), "float32"),
    "clip-vit-b32-words": StoredFeature("question", (77, 512), "float16"),
}
# Returns the values of a feature with a name, [second, ...], of the video in a row of the store.
ValuesOf = Callable[[str, StoredFeature, int], np.ndarray]


def make_manifest(videos: int, questions: Mapping[str, int], vocabulary: Vocabulary) -> Manifest:
    """Return a manifest of dummy videos with ids, paths and hashes as long as real ones.

    `questions`: their number by split, in the order of the videos, as many on each.
    """
    dummies = tuple(Video(f"{row:08d}", f"{row:08d}.mp4", f"{row:064x}") for row in range(videos))
    texts = [f"Is there question {number}?" for number in range(TEXTS)]
    answers = vocabulary.answers

    def question(name: str, video: Video, number: int) -> Question:
        text, answer = texts[number % TEXTS], answers[number % len(answers)]
        return Question(f"{name}-{number}", video.video_id, text, text, answer, "Audio Counting", "Audio")

    splits = {
        split: tuple(question(split, dummies[number * videos // count], number) for number in range(count))
        for split, count in questions.items()
    }
    return Manifest("stand-ins", "stand-in", "none", dummies, splits, vocabulary)


def music_avqa(videos: int = VIDEOS) -> Manifest:
    """Return a manifest with as many questions, texts, words and answers as MUSIC-AVQA, on `videos` videos."""
    tokens = (PADDING_TOKEN, *(f"word{number}" for number in range(1, WORDS)))
    return make_manifest(videos, QUESTIONS, Vocabulary(tokens, tuple(f"answer{n}" for n in range(ANSWERS))))


def random_values(name: str, feature: StoredFeature, row: int) -> np.ndarray:
    """Return values of `feature`, [second, ...], of their own for each `row`; maps are sparse."""
    generator = np.random.default_rng([row, len(feature.shape)])
    values = np.abs(generator.standard_normal((SECONDS, *feature.shape), dtype=np.float32))
    if name == "resnet18-map":
        values[generator.random(values.shape, dtype=np.float32) < SHARE_OF_ZEROS] = 0
    return values.astype(feature.dtype)


def write_store(
    path: Path,
    manifest: Manifest,
    features: Mapping[str, StoredFeature] = FEATURES,
    question_features: Mapping[str, StoredFeature] = QUESTION_FEATURES,
    values_of: ValuesOf = random_values,
    distinct: int | None = VIDEOS_PER_PARTITION,
) -> None:
    """Write a complete store of the videos and questions of `manifest`, under a staging name that is renamed last.

    The first `distinct` videos (None: all) have values of their own; more than one partition cannot be linked.
    """
    partial = path.with_name(f"{path.name}.partial")
    ids = [video.video_id for video in manifest.videos]
    own = ids if distinct is None else ids[:distinct]
    with StoreWriter(partial, "stand-ins") as writer:
        writer.create(SECONDS)
        writer.append_videos(ids)
        for name, feature in features.items():
            writer.add_spec(feature.spec(name))
            digests = _write_values(partial, name, feature, own, values_of)
            if len(own) < len(ids):
                link_others(partial / "features" / name / "values", len(ids))
            digests += [""] * (len(ids) - len(own))
            writer.record_features(
                [FeatureRecord(row, name, State.COMPLETE, digest=digest) for row, digest in enumerate(digests)]
            )
        modalities = ("audio", "visual")
        states, steps = dict.fromkeys(modalities, State.COMPLETE), dict.fromkeys(modalities, SECONDS)
        reasons = dict.fromkeys(modalities, "")
        writer.record_videos(
            [VideoRecord(row, video.sha256, states, steps, reasons) for row, video in enumerate(manifest.videos)]
        )
        _write_questions(writer, manifest, question_features)
        writer.seal()
    partial.rename(path)


def _write_values(store: Path, name: str, feature: StoredFeature, ids: list[str], values_of: ValuesOf) -> list[str]:
    """Write the `feature` of the videos `ids`, a partition at a time, and return the digests of its rows."""
    digests = []
    for first in range(0, len(ids), VIDEOS_PER_PARTITION):
        rows = {row: values_of(name, feature, row) for row in range(first, min(first + VIDEOS_PER_PARTITION, len(ids)))}
        write_rows(store, name, first, rows)
        digests += [digest_row(name, ids[row], values) for row, values in rows.items()]
    return digests


def _write_questions(writer: StoreWriter, manifest: Manifest, features: Mapping[str, StoredFeature]) -> None:
    texts = dict.fromkeys(question.text for split in manifest.questions.values() for question in split)
    rows = np.array(list(writer.append_questions(list(texts)).values()))
    words, length = len(manifest.vocabulary.tokens), manifest.vocabulary.question_length
    generator = np.random.default_rng(0)
    tokens = generator.integers(1, words, (len(rows), length)).astype(np.int32)
    tokens[np.arange(length) >= generator.integers(5, QUESTION_LENGTH + 1, len(rows))[:, None]] = 0  # padding
    name = tokens_name(manifest.vocabulary.tokens, length)
    writer.add_spec(StoredFeature("question", (length,), "int32").spec(name))
    writer.write_questions(name, rows, tokens)
    for name, feature in features.items():
        writer.add_spec(feature.spec(name))
        values = generator.standard_normal((len(rows), *feature.shape), dtype=np.float32)
        writer.write_questions(name, rows, values.astype(feature.dtype))


def link_others(values: Path, videos: int) -> None:
    """Link the files of one partition, in the folder `values`, under the names of those of all `videos`."""
    own = len(list(values.glob("c.*")))
    first = next(values.glob("c.0.*"))
    videos_per_file = VIDEOS_PER_PARTITION if own == 1 else 1
    for number in range(own, -(-videos // videos_per_file)):
        source, target = (first.name.replace("c.0.", f"c.{n}.", 1) for n in (number % own, number))
        os.link(values / source, values / target)
