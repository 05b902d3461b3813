"""A run trained on real clips with features that take no network, so that whole videos can be asked in a test."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import run_toys

import pipeline.extractors.registry
from pipeline.extractors.weights import WeightsSource
from pipeline.manifests.manifest import Manifest, load_manifest
from pipeline.media.timeline import FrameSize, Media
from pipeline.store.reader import FeatureStore, open_store
from pipeline.synthetic import synthesize
from train.asking.answerer import Answerer
from train.asking.loaded_run import load_run
from train.data.feature_bank import FeatureBank
from train.runs.config import make_config
from train.training.fit import fit

TABLE = {"resnet18-map": "asking_toys:SmallMap", "vggish": "asking_toys:Loudness"}
SECONDS = 2


class SmallMap:
    """The frame in 8 x 8 pixels, a 4 x 4 block each in the channels: float16 [time, channel 16, height 2, width 2]."""

    name = "resnet18-map"
    modality = "visual"
    dims = ("channel", "height", "width")
    shape = (16, 2, 2)
    dtype = "float16"
    frame_size = FrameSize("stretch", 8)

    def constants(self) -> dict[str, Any]:
        return {"version": 1}

    def load(self, weights: WeightsSource, device: str) -> str:
        return weights.kind

    def extract(self, media: Media) -> np.ndarray:
        brightness = media.frames[self.frame_size].mean(axis=3) / 128 - 1
        blocks = brightness.reshape(-1, 2, 4, 2, 4).transpose(0, 2, 4, 1, 3)
        return blocks.reshape(-1, *self.shape)


class Loudness:
    """The log-loudness of four parts of each second: float32 [time, channel 4]."""

    name = "vggish"
    modality = "audio"
    dims = ("channel",)
    shape = (4,)
    dtype = "float32"
    frame_size = None

    def constants(self) -> dict[str, Any]:
        return {"version": 1}

    def load(self, weights: WeightsSource, device: str) -> str:
        return weights.kind

    def extract(self, media: Media) -> np.ndarray:
        parts = media.waveform.reshape(media.audio.steps, 4, -1)
        return np.log(np.sqrt((parts**2).mean(axis=2)) + 1e-3)


@contextmanager
def registered() -> Iterator[None]:
    """Compute the features of AVST with the classes of this file."""
    with patch.dict(pipeline.extractors.registry.EXTRACTORS, TABLE):
        yield


@dataclass(frozen=True)
class Trained:
    """A manifest folder with its `videos`, the store of their features, and a run that was trained on them."""

    data: Path
    store: Path
    run: Path

    @property
    def manifest(self) -> Manifest:
        return load_manifest(self.data)

    @property
    def opened(self) -> FeatureStore:
        return open_store(self.store)

    def clip(self, video_id: str) -> Path:
        return self.data / "videos" / f"{video_id}.mp4"


def make_trained(folder: Path) -> Trained:
    """Synthesize clips, some without audio or video, extract them and train a small run for two epochs."""
    made = Trained(folder / "data", folder / "store.zarr", folder / "runs" / "run")
    synthesize(made.data, videos=20, seconds=SECONDS, seed=3)
    with registered():
        run_toys.run_toys(made.data, made.store, features=tuple(TABLE), seconds=SECONDS)
    settings = {"channels": 16, "heads": 2, "time_steps": 2, "map_size": 2, "batch_size": 32, "epochs": 2}
    places = {"manifest": str(made.data), "store": str(made.store)}
    config = make_config("demo", method="zero-fill", device="cpu", learning_rate=3e-3, **settings, **places)
    fit(config, made.manifest, FeatureBank(made.opened), made.run)
    return made


def open_answerer(run: Path, **options: Any) -> Answerer:
    method, config = load_run(run)
    return Answerer(run, method, config, **options)
