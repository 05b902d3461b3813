"""Plug-ins of another package, one of each kind, as its entry points offer them to mavqa."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.extractors.weights import WeightsSource
from pipeline.manifests.manifest import Manifest, Question, Video
from pipeline.manifests.sources.interface import Built, Option, Source
from pipeline.manifests.templates import freeze_vocabulary
from pipeline.media.timeline import FrameSize, Media
from pipeline.store.schema import MODALITIES
from train.backbones.sizes import ModelSizes
from train.data.batch import Batch
from train.interfaces import Answer, Backbone, Representation
from train.networks.layers import InputWhitening, masked_mean, zero_missing_steps


def build(name: str, lines: Path, videos: Path | None = None, progress: Any = None) -> Built:
    """Return the manifest of a file with a line `split|video|question|answer` per question."""
    questions: dict[str, list[Question]] = {}
    for number, line in enumerate(lines.read_text(encoding="utf-8").splitlines()):
        split, video, text, answer = line.split("|")
        questions.setdefault(split, []).append(Question(str(number), video, text, text, answer, "", ""))
    names = sorted({question.video_id for asked in questions.values() for question in asked})
    manifest = Manifest(
        name=name,
        release="lines",
        licence="unknown",
        videos=tuple(Video(name, f"{name}.mp4") for name in names),
        questions={split: tuple(asked) for split, asked in questions.items()},
        vocabulary=freeze_vocabulary(questions),
    )
    return Built(manifest)


SOURCE = Source(
    build,
    (Option("lines", "File with a line per question.", is_required=True), Option("videos", "Folder.", "folder")),
    "Build a manifest from lines.",
)


class Loudness:
    """The root mean square of each second: float32 [time, channel 1]."""

    name, modality, dims, shape, dtype, frame_size = "toy-loudness", "audio", ("channel",), (1,), "float32", None

    def constants(self) -> dict[str, Any]:
        return {"version": 1}

    def load(self, weights: WeightsSource, device: str) -> str:
        return ""

    def extract(self, media: Media) -> np.ndarray:
        seconds = media.waveform[: media.audio.steps * media.sample_rate_hz].reshape(media.audio.steps, -1)
        return np.sqrt((seconds**2).mean(axis=1, keepdims=True)).astype(np.float32)


class Colour:
    """The mean colour of each frame: float32 [time, channel 3]."""

    name, modality, dims, shape, dtype = "toy-colour", "visual", ("channel",), (3,), "float32"
    frame_size = FrameSize("stretch", 32)

    def constants(self) -> dict[str, Any]:
        return {"version": 1}

    def load(self, weights: WeightsSource, device: str) -> str:
        return ""

    def extract(self, media: Media) -> np.ndarray:
        return media.frames[self.frame_size].mean(axis=(1, 2)).astype(np.float32) / 255


class MeanBackbone(nn.Module):
    """Answer from the mean of the question's words and of the steps of each modality."""

    needs = {"question": ("tokens",), "audio": ("toy-loudness",), "visual": ("toy-colour",)}  # noqa: RUF012
    uses_negatives = False

    def __init__(self, sizes: ModelSizes) -> None:
        super().__init__()
        self.channels, self.answers, self.time_steps = sizes.channels, sizes.answers, sizes.time_steps
        self.input_shapes = {name: sizes.input_shapes[name] for m in MODALITIES for name in self.needs[m]}
        self.feature_shapes = dict.fromkeys(MODALITIES, (sizes.channels,))
        self.input_whitening = nn.ModuleDict({n: InputWhitening(s[0]) for n, s in self.input_shapes.items()})
        self.words = nn.Embedding(sizes.words, sizes.channels)
        self.stems = nn.ModuleDict(
            {m: nn.Linear(*self.input_shapes[self.needs[m][0]], sizes.channels) for m in MODALITIES}
        )
        self.classifier = nn.Linear(sizes.channels, sizes.answers)

    def encode(self, batch: Batch) -> Representation:
        features = {}
        for modality in batch.available:
            (name,) = self.needs[modality]
            values = zero_missing_steps((batch.features(modality) or {})[name], batch.mask(modality))
            features[modality] = self.stems[modality](self.input_whitening[name](values))
        question = self.words(batch.question["tokens"].long()).mean(1)
        return Representation(question, features, masks={m: batch.mask(m) for m in features})

    def steps(self, representation: Representation) -> dict[str, Tensor]:
        return {**representation.features, **representation.steps}

    def pool(self, representation: Representation, prompts: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        steps = self.steps(representation)
        pooled = {m: masked_mean(values, representation.mask(m, values)) for m, values in steps.items()}
        return {**pooled, **representation.pooled}

    def answer(self, representation: Representation) -> Answer:
        pooled = self.pool(representation)
        return Answer(self.classifier(torch.tanh(representation.question * (pooled["audio"] + pooled["visual"]))))


class Neutral(nn.Module):
    """Answer with ones in place of the pooled vector of a missing modality; `scale` multiplies them."""

    selection_scenarios = ("complete",)
    sees = "nothing"
    trains_on = "complete"

    def __init__(self, backbone: Backbone, *, scale: float = 1.0) -> None:
        super().__init__()
        self.backbone, self.scale = backbone, scale

    def training_loss(self, batch: Batch) -> dict[str, Tensor]:
        return {"total": F.cross_entropy(self.predict(batch), batch.answer)}

    def predict(self, batch: Batch) -> Tensor:
        representation = self.backbone.encode(batch)
        ones = self.scale * torch.ones_like(representation.question)
        missing = {m: ones for m in MODALITIES if m not in batch.available}
        return self.backbone.answer(replace(representation, pooled=missing)).logits
