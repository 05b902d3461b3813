"""Pano-AVQA's LAViT: three transformers over words, audio steps and visual objects, joined by cross-modal layers.

Panoramas and their geometry, stereo audio and the paper's pre-training tasks are not implemented.
Source: Yun et al., "Pano-AVQA: Grounded Audio-Visual Question Answering on 360 degree Videos", ICCV 2021.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from pipeline.store.schema import MODALITIES
from train.backbones.sizes import ModelSizes
from train.data.batch import Batch
from train.interfaces import Answer, Representation
from train.networks.layers import AudioStem, InputWhitening, masked_mean, zero_missing_steps
from train.networks.transformer import NORM_EPS, CrossLayer, Stream, TransformerLayer, WordEmbedding, init_bert_weights

ATTENDS_TO = {"question": "audio", "audio": "visual", "visual": "question"}
COORDINATES = {"audio": 2, "visual": 5}
OBJECTS_PER_SIDE = 2
WHOLE_FRAME = (0.5, 0.5, 1.0, 1.0)


class ElementEmbedding(nn.Module):
    """Embed elements and their coordinates: the mean of two linear layers, each followed by a layer norm.

    Source: the paper's spherical spatial embedding with the released code's plain geometries (audio "mono_t", visual
    "cartesian"); its `dataset.py` prepends [CLS], an element that has the means of features and coordinates.
    Differs from the released code: missing elements are masked and not in the means.
    """

    def __init__(self, channels: int, coordinates: int, dropout: float) -> None:
        super().__init__()
        self.feature = nn.Sequential(nn.Linear(channels, channels), nn.LayerNorm(channels, eps=NORM_EPS))
        self.coordinate = nn.Sequential(nn.Linear(coordinates, channels), nn.LayerNorm(channels, eps=NORM_EPS))
        self.dropout = nn.Dropout(dropout)

    def forward(self, elements: Tensor, coordinates: Tensor, mask: Tensor) -> Stream:
        """Return [CLS], the embedded mean of the available elements, followed by the elements in the order of time.

        `elements` [batch, time, object, channel] have the `coordinates` [time, object, coordinate]; `mask` bool [batch,
        time] is True for available steps.
        """
        features = zero_missing_steps(elements, mask).flatten(1, 2)
        mask = mask.repeat_interleave(elements.shape[2], dim=1)
        features = _prepend_mean(features, mask)
        coordinates = _prepend_mean(coordinates.flatten(0, 1).expand(len(mask), -1, -1), mask)
        states = self.dropout((self.feature(features) + self.coordinate(coordinates)) / 2)
        return Stream(states, torch.cat((mask.any(1, keepdim=True), mask), 1))


class Pano(nn.Module):
    """Answer from the [CLS] vectors of three transformers: over words, audio steps and visual objects.

    Options:
    - `hidden`: width of the transformers, by default `sizes.channels`; features of another width are projected by a
      linear layer.
    - `heads`: the largest number of heads to use; of these, the largest that divides the width is used (`sizes.heads`
      is AVST's and is not read).
    - `layers`: numbers of question, visual, audio and cross-modal layers.

    Features: audio [batch, time, `sizes.channels`] after AVST's stem, visual the maps as stored. Maps are then pooled
    to 2 x 2 objects, or fewer if a map has fewer cells. The time coordinate of a step is its index divided by
    `sizes.time_steps`. The question vector is [CLS] before the cross-modal layers; the steps are the projected audio
    and the means of the maps. A visual vector given at the steps level is one object that covers the whole frame. A
    pooled vector is attended to, unchanged, in every cross-modal layer and enters the answer as it is. Prompts are
    additional keys and values wherever their modality is attended to, including by itself.

    53,855,274 parameters with 93 words, 42 answers and 512 channels; 291,438,378 in the paper's size, `hidden=768,
    heads=12, layers=(9, 5, 5, 5)`, for which the paper starts from BERT-base. Here all weights start at random;
    importing BERT's weights is not implemented.

    Source: the paper's model, fine-tuned only on answers. Differs from the released code: padding and missing steps are
    masked (released: attended to); objects are cells of a grid, not detections; audio is mono; a modality that would
    attend to a missing one skips the cross-attention; there is no head except for answers.
    """

    needs = {"question": ("tokens",), "audio": ("vggish",), "visual": ("resnet18-map",)}  # noqa: RUF012
    uses_negatives = False
    pooling: Tensor
    objects: Tensor
    whole: Tensor
    length: Tensor

    def __init__(
        self,
        sizes: ModelSizes,
        hidden: PositiveInt | None = None,
        heads: PositiveInt = 8,
        layers: Annotated[Sequence[NonNegativeInt], Field(min_length=4, max_length=4)] = (3, 2, 2, 2),
    ) -> None:
        super().__init__()
        (audio_channels,), map_shape = sizes.input_shapes["vggish"], sizes.input_shapes["resnet18-map"]
        if len(map_shape) != 3:
            raise ValueError(f"Pano needs maps [channel, height, width]: resnet18-map has shape {map_shape}")
        self.channels = channels = sizes.channels if hidden is None else hidden
        self.answers = sizes.answers
        self.time_steps = sizes.time_steps
        self.input_shapes = {"vggish": (audio_channels,), "resnet18-map": map_shape}
        self.feature_shapes = {"audio": (sizes.channels,), "visual": map_shape}
        self.input_whitening = nn.ModuleDict(
            {name: InputWhitening(shape[0]) for name, shape in self.input_shapes.items()}
        )
        self._register_coordinates(*map_shape[1:])
        block = channels, next(n for n in range(heads, 0, -1) if channels % n == 0), sizes.dropout
        depths = dict(zip(("question", "visual", "audio", "cross"), layers, strict=True))
        widths = {modality: self.feature_shapes[modality][0] for modality in MODALITIES}
        self.lifts = nn.ModuleDict(
            {m: nn.Identity() if n == channels else nn.Linear(n, channels) for m, n in widths.items()}
        )
        self.words = WordEmbedding(sizes.words, sizes.question_length, channels, sizes.dropout)
        self.embeddings = nn.ModuleDict(
            {m: ElementEmbedding(channels, n, sizes.dropout) for m, n in COORDINATES.items()}
        )
        self.stacks = nn.ModuleDict(
            {m: nn.Sequential(*(TransformerLayer(*block) for _ in range(depths[m]))) for m in ATTENDS_TO}
        )
        self.cross_layers = nn.ModuleList(CrossLayer(ATTENDS_TO, *block) for _ in range(depths["cross"]))
        self.poolers = nn.ModuleDict({m: nn.Sequential(nn.Linear(channels, channels), nn.Tanh()) for m in ATTENDS_TO})
        self.classifier = nn.Sequential(
            nn.Linear(3 * channels, 6 * channels),
            nn.GELU(),
            nn.LayerNorm(6 * channels, eps=NORM_EPS),
            nn.Linear(6 * channels, sizes.answers),
        )
        self.apply(init_bert_weights)
        self.audio_stem = AudioStem(audio_channels, sizes.channels)  # initialised as in AVST, for features of its scale

    def encode(self, batch: Batch) -> Representation:
        """Return the words, the audio after the stem and the maps, from whitened inputs; missing steps are zero."""
        question = self.stacks["question"](self.words(batch.question["tokens"]))
        features = {}
        if batch.audio is not None:
            whitened = self.input_whitening["vggish"](batch.audio["vggish"])
            features["audio"] = zero_missing_steps(
                self.audio_stem(zero_missing_steps(whitened, batch.audio_mask)), batch.audio_mask
            )
        if batch.visual is not None:
            maps = self.input_whitening["resnet18-map"](batch.visual["resnet18-map"])
            features["visual"] = zero_missing_steps(maps, batch.visual_mask)
        masks = {modality: batch.mask(modality) for modality in features}
        return Representation(
            question.states[:, 0], features, masks=masks, words=question.states, word_mask=question.mask
        )

    def steps(self, representation: Representation) -> dict[str, Tensor]:
        """Return {modality: [batch, time, channel]}: the audio and the means of the maps, projected to `channels`."""
        steps = {m: values for m, values in representation.steps.items() if m not in representation.pooled}
        if representation.level("audio") == "features":
            steps["audio"] = self.lifts["audio"](representation.features["audio"])
        if representation.level("visual") == "features":
            steps["visual"] = self.lifts["visual"](representation.features["visual"].mean((3, 4)))
        return steps

    def pool(self, representation: Representation, prompts: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Return {modality: [batch, channel]}: its [CLS] after the cross-modal layers and the pooler."""
        pooled = self._pool(representation, prompts or {})
        return {modality: pooled[modality] for modality in MODALITIES if modality in pooled}

    def answer(self, representation: Representation) -> Answer:
        """Return logits [batch, answer].

        Raises ValueError if a modality is missing at all levels, or the words are.
        """
        for modality in MODALITIES:
            if representation.level(modality) is None:
                raise ValueError(f"{modality} is missing: pass its features, steps or pooled vectors")
        pooled = self._pool(representation, {})
        return Answer(self.classifier(torch.cat([pooled[name] for name in ATTENDS_TO], dim=-1)))

    def _pool(self, representation: Representation, prompts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return {"question" | "audio" | "visual": [batch, channel]} of the question and the available modalities."""
        if representation.words is None or representation.word_mask is None:
            raise ValueError("Pano reads the question word by word: pass words and word_mask")
        streams, fixed = {"question": Stream(representation.words, representation.word_mask)}, {}
        for modality in MODALITIES:
            level, prompt = representation.level(modality), prompts.get(modality)
            if level == "pooled":
                vector = representation.pooled[modality].unsqueeze(1)
                fixed[modality] = Stream(vector, vector.new_ones(vector.shape[:2], dtype=torch.bool), prompt)
            elif level is not None:
                embedded = replace(self._embed(representation, modality), prompts=prompt)
                streams[modality] = self.stacks[modality](embedded)
        for layer in self.cross_layers:
            streams = layer(streams, fixed)
        fused = {name: self.poolers[name](stream.states[:, 0]) for name, stream in streams.items()}
        return fused | representation.pooled

    def _embed(self, representation: Representation, modality: str) -> Stream:
        """Return the elements of `modality`, one or more objects per step, embedded with their coordinates."""
        if representation.level(modality) == "steps":
            elements = representation.steps[modality].unsqueeze(2)
            extents = self.length if modality == "audio" else self.whole
        elif modality == "audio":
            elements, extents = self.lifts["audio"](representation.features["audio"]).unsqueeze(2), self.length
        else:
            objects = representation.features["visual"].flatten(3) @ self.pooling
            elements, extents = self.lifts["visual"](objects.transpose(2, 3)), self.objects
        time = torch.arange(elements.shape[1], device=elements.device) / self.time_steps
        starts = time[:, None, None].expand(-1, len(extents), 1)
        coordinates = torch.cat((starts, extents.expand(len(time), -1, -1)), dim=-1)
        return self.embeddings[modality](elements, coordinates, representation.mask(modality, elements))

    def _register_coordinates(self, height: int, width: int) -> None:
        """Register the pooling weights of maps, `pooling` [cell, object], and the coordinates of elements except time.

        These are `objects` [object, 4] and `whole` [1, 4] (centre x, centre y, width and height, relative to the frame)
        for visual, and `length` [1, 1] (duration of a step, relative to the video) for audio.
        """
        (rows, extents_y), (columns, extents_x) = _split_side(height), _split_side(width)
        y, x = (
            index.flatten()
            for index in torch.meshgrid(torch.arange(len(extents_y)), torch.arange(len(extents_x)), indexing="ij")
        )
        pooling = torch.einsum("yi,xj->yxij", rows, columns).flatten(0, 1).flatten(1)
        objects = torch.stack((extents_x[x, 0], extents_y[y, 0], extents_x[x, 1], extents_y[y, 1]), dim=-1)
        self.register_buffer("pooling", pooling, persistent=False)
        self.register_buffer("objects", objects, persistent=False)
        self.register_buffer("whole", torch.tensor([WHOLE_FRAME]), persistent=False)
        self.register_buffer("length", torch.tensor([[1 / self.time_steps]]), persistent=False)


def _prepend_mean(elements: Tensor, mask: Tensor) -> Tensor:
    """Return `elements` [batch, element, channel] after their mean, over those where `mask` is True."""
    return torch.cat((masked_mean(elements, mask).unsqueeze(1), elements), dim=1)


def _split_side(cells: int) -> tuple[Tensor, Tensor]:
    """Split a side of `cells` cells into at most two parts, which share the middle cell if `cells` is odd.

    Return weights [cell, part] that average the cells of each part, and its centre and length [part, 2], relative to
    the side.
    """
    parts = min(cells, OBJECTS_PER_SIDE)
    part = torch.arange(parts)
    start, stop = part * cells // parts, cells - (parts - 1 - part) * cells // parts
    cell = torch.arange(cells)[:, None]
    inside = ((start <= cell) & (cell < stop)).float()
    return inside / inside.sum(0), torch.stack(((start + stop) / 2, stop - start), dim=-1) / cells
