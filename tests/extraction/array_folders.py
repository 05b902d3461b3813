"""Folders of small published arrays with a manifest of their videos and questions, and what tests do with them."""

from pathlib import Path

import numpy as np
from click.testing import CliRunner, Result

from pipeline.arrays.layouts import LAYOUTS
from pipeline.cli.import_features import import_features
from pipeline.manifests.manifest import Manifest, Question, Video, Vocabulary, save_manifest

SECONDS = 3
VIDEOS = tuple(f"v{number:02}" for number in range(17))
# Three questions on each of the first videos; the third has the text of the first.
TEXTS = ("What plays ?", "Is it loud ?", "What plays ?")


def make_manifest(folder: Path) -> Path:
    """Write a manifest of `VIDEOS`, which are two partitions, and six questions with the ids 0 to 5."""
    questions = tuple(
        Question(str(3 * video + n), VIDEOS[video], text, text, "yes", "Audio Counting", "Audio")
        for video in range(2)
        for n, text in enumerate(TEXTS)
    )
    videos = tuple(Video(video_id, f"{video_id}.mp4") for video_id in VIDEOS)
    vocabulary = Vocabulary(("<pad>", "What", "plays", "Is", "it", "loud"), ("yes",))
    save_manifest(Manifest("arrays", "1", "none", videos, {"train": questions}, vocabulary), folder)
    return folder


def make_array(feature: str, name: str, steps: int = SECONDS) -> np.ndarray:
    """Return float32 [step, ...] that is different for each feature and name, and the same in float16."""
    generator = np.random.default_rng([*name.encode(), *feature.encode()])
    values = generator.integers(0, 200, (steps, *LAYOUTS[feature].shape))
    return (values / 8).astype(np.float32)


def write_arrays(folder: Path, feature: str, names: tuple[str, ...] = VIDEOS, steps: int = SECONDS) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        np.save(folder / f"{name}.npy", make_array(feature, name, steps))
    return folder


def run_import(manifest: Path, store: Path, *arguments: object) -> Result:
    words = ["--manifest", manifest, "--store", store, *arguments]
    return CliRunner().invoke(import_features, list(map(str, words)))


def content(store: Path) -> dict[str, bytes]:
    """Return {path: bytes} of all files of a store."""
    return {str(p.relative_to(store)): p.read_bytes() for p in sorted(store.rglob("*")) if p.is_file()}
