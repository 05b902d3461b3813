"""Pano-AVQA's LAViT: words, seconds of sound and things in the picture, in three transformers that read each other.

It knows no method. Panoramas, their geometry, stereo sound and the pre-training tasks of the paper are not here.
Source: Yun et al., "Pano-AVQA: Grounded Audio-Visual Question Answering on 360 degree Videos", ICCV 2021.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from pipeline.store.schema import MODALITIES
from train.backbones.sizes import ModelSizes
from train.data.batch import Batch
from train.interfaces import Answer, Representation
from train.networks.layers import AudioStem, InputWhitening, blank, masked_mean
from train.networks.transformer import NORM_EPS, CrossLayer, Stream, TransformerLayer, WordEmbedding, start_as_bert

ATTENDS = {"question": "audio", "audio": "visual", "visual": "question"}
COORDINATES = {"audio": 2, "visual": 5}
PARTS = 2
WHOLE_PICTURE = (0.5, 0.5, 1.0, 1.0)


class ElementEmbedding(nn.Module):
    """Embed what is heard or seen and where it is: half the sum of two linear layers, each with its norm.

    Source: the paper's spherical spatial embedding with the released code's plain geometries (audio "mono_t", visual
    "cartesian"). Differs from the released code: [CLS] is the mean of the embedded elements that are there, where it
    embeds the mean of features and coordinates; elements that are not there are masked.
    """

    def __init__(self, channels: int, coordinates: int, dropout: float) -> None:
        super().__init__()
        self.feature = nn.Sequential(nn.Linear(channels, channels), nn.LayerNorm(channels, eps=NORM_EPS))
        self.coordinate = nn.Sequential(nn.Linear(coordinates, channels), nn.LayerNorm(channels, eps=NORM_EPS))
        self.dropout = nn.Dropout(dropout)

    def forward(self, elements: Tensor, coordinates: Tensor, mask: Tensor) -> Stream:
        """Return [CLS] and the elements, second by second.

        `elements` [batch, time, object, channel] are at `coordinates` [time, object, coordinate], there where `mask`
        [batch, time] is True.
        """
        embedded = (self.feature(blank(elements, mask)) + self.coordinate(coordinates)) / 2
        mask = mask.repeat_interleave(elements.shape[2], dim=1)
        embedded = embedded.flatten(1, 2)
        cls = masked_mean(embedded, mask).unsqueeze(1)
        states = self.dropout(torch.cat((cls, embedded), 1))
        return Stream(states, torch.cat((mask.any(1, keepdim=True), mask), 1))


class Pano(nn.Module):
    """Answer from the first element of three transformers: of words, of seconds of sound, of parts of pictures.

    Features: audio [batch, time, `sizes.channels`] after AVST's stem, visual the maps as stored, which are then pooled
    to 2 x 2 objects (fewer where a map has fewer cells). A step's time is its place among `sizes.time_steps`.
    `hidden`: the width of all that follows, by default `sizes.channels`; features of another width are lifted by a
    linear layer. `heads`: at most so many, the largest number that divides the width; those of `sizes` are AVST's.
    `layers`: of the question, of the picture, of the sound, cross-modal.
    With 93 words, 42 answers and 512 channels it has 53,855,274 parameters, and 291,438,378 in the paper's size,
    `hidden=768, heads=12, layers=(9, 5, 5, 5)`. There the paper starts from BERT-base; here all weights are fresh, and
    taking over BERT's published ones would be an import that does not exist yet.

    At the seam: the question is its [CLS] before any cross-modal layer; steps are the audio and the means of the maps.
    Given steps enter as one object a second, over the whole picture. A given pooled vector is what others look at in
    every cross-modal layer, and enters the answer as it is. Prompts stand beside the elements of their modality
    wherever these are looked at, by itself too.

    Source: the paper's model, fine-tuned on answers alone. Differs from the released code: padding and steps that are
    not there are masked (there they are looked at); objects are parts of a grid, not detections; sound is mono; who
    would look at an absent modality goes on unchanged; there is no head but the answers'.
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
        hidden: int | None = None,
        heads: int = 8,
        layers: Sequence[int] = (3, 2, 2, 2),
    ) -> None:
        super().__init__()
        (audio_channels,), map_shape = sizes.input_shapes["vggish"], sizes.input_shapes["resnet18-map"]
        if len(map_shape) != 3:
            raise ValueError(f"Pano sees maps [channel, height, width]: resnet18-map has the shape {map_shape}")
        self.channels = channels = sizes.channels if hidden is None else hidden
        self.answers = sizes.answers
        self.time_steps = sizes.time_steps
        self.input_shapes = {"vggish": (audio_channels,), "resnet18-map": map_shape}
        self.feature_shapes = {"audio": (sizes.channels,), "visual": map_shape}
        self.input_whitening = nn.ModuleDict(
            {name: InputWhitening(shape[0]) for name, shape in self.input_shapes.items()}
        )
        self._place_elements(*map_shape[1:])
        block = channels, _heads(channels, heads), sizes.dropout
        depths = dict(zip(("question", "visual", "audio", "cross"), layers, strict=True))
        self.lifts = nn.ModuleDict({m: _lift(self.feature_shapes[m][0], channels) for m in MODALITIES})
        self.words = WordEmbedding(sizes.words, sizes.question_length, channels, sizes.dropout)
        self.embeddings = nn.ModuleDict(
            {m: ElementEmbedding(channels, n, sizes.dropout) for m, n in COORDINATES.items()}
        )
        self.stacks = nn.ModuleDict(
            {m: nn.Sequential(*(TransformerLayer(*block) for _ in range(depths[m]))) for m in ATTENDS}
        )
        self.cross_layers = nn.ModuleList(CrossLayer(ATTENDS, *block) for _ in range(depths["cross"]))
        self.poolers = nn.ModuleDict({m: nn.Sequential(nn.Linear(channels, channels), nn.Tanh()) for m in ATTENDS})
        self.classifier = nn.Sequential(
            nn.Linear(3 * channels, 6 * channels),
            nn.GELU(),
            nn.LayerNorm(6 * channels, eps=NORM_EPS),
            nn.Linear(6 * channels, sizes.answers),
        )
        self.apply(start_as_bert)
        self.audio_stem = AudioStem(audio_channels, sizes.channels)  # starts as in AVST: features are of a usual size

    def encode(self, batch: Batch) -> Representation:
        """Return words, stem audio and maps, inputs whitened where the run says so; steps not there are zero."""
        question = self.stacks["question"](self.words(batch.question["tokens"]))
        features = {}
        if batch.audio is not None:
            sound = self.input_whitening["vggish"](batch.audio["vggish"])
            features["audio"] = blank(self.audio_stem(blank(sound, batch.audio_mask)), batch.audio_mask)
        if batch.visual is not None:
            maps = self.input_whitening["resnet18-map"](batch.visual["resnet18-map"])
            features["visual"] = blank(maps, batch.visual_mask)
        masks = {modality: batch.mask(modality) for modality in features}
        return Representation(
            question.states[:, 0], features, masks=masks, words=question.states, word_mask=question.mask
        )

    def steps(self, representation: Representation) -> dict[str, Tensor]:
        """Return {modality: [batch, time, channel]}: the audio, and the means of the maps, in the width of steps."""
        steps = {m: values for m, values in representation.steps.items() if m not in representation.pooled}
        if representation.level("audio") == "features":
            steps["audio"] = self.lifts["audio"](representation.features["audio"])
        if representation.level("visual") == "features":
            steps["visual"] = self.lifts["visual"](representation.features["visual"].mean((3, 4)))
        return steps

    def pool(self, representation: Representation, prompts: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Return {modality: [batch, channel]}: [CLS] of each after the cross-modal layers."""
        pooled = self._pool(representation, prompts or {})
        return {modality: pooled[modality] for modality in MODALITIES if modality in pooled}

    def answer(self, representation: Representation) -> Answer:
        """Return logits [batch, answer].

        Raises ValueError where a modality stands at no level, or the question is not given word by word.
        """
        for modality in MODALITIES:
            if representation.level(modality) is None:
                raise ValueError(f"nothing stands for {modality}: give its features, steps or pooled vectors")
        pooled = self._pool(representation, {})
        return Answer(self.classifier(torch.cat([pooled[name] for name in ATTENDS], dim=-1)))

    def _pool(self, representation: Representation, prompts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return {"question" | "audio" | "visual": [batch, channel]} of what stands at some level."""
        if representation.words is None or representation.word_mask is None:
            raise ValueError("Pano reads a question word by word: give its words and their mask")
        streams, still = {"question": Stream(representation.words, representation.word_mask)}, {}
        for modality in MODALITIES:
            level, prompt = representation.level(modality), prompts.get(modality)
            if level == "pooled":
                vector = representation.pooled[modality].unsqueeze(1)
                still[modality] = Stream(vector, vector.new_ones(vector.shape[:2], dtype=torch.bool), prompt)
            elif level is not None:
                embedded = replace(self._embed(representation, modality), prompts=prompt)
                streams[modality] = self.stacks[modality](embedded)
        for layer in self.cross_layers:
            streams = layer(streams, still)
        fused = {name: self.poolers[name](stream.states[:, 0]) for name, stream in streams.items()}
        return fused | representation.pooled

    def _embed(self, representation: Representation, modality: str) -> Stream:
        """Return what is heard or seen, one or more objects a second, embedded with its time and place."""
        if representation.level(modality) == "steps":
            elements = representation.steps[modality].unsqueeze(2)
            places = self.length if modality == "audio" else self.whole
        elif modality == "audio":
            elements, places = self.lifts["audio"](representation.features["audio"]).unsqueeze(2), self.length
        else:
            objects = representation.features["visual"].flatten(3) @ self.pooling
            elements, places = self.lifts["visual"](objects.transpose(2, 3)), self.objects
        time = torch.arange(elements.shape[1], device=elements.device) / self.time_steps
        starts = time[:, None, None].expand(-1, len(places), 1)
        coordinates = torch.cat((starts, places.expand(len(time), -1, -1)), dim=-1)
        return self.embeddings[modality](elements, coordinates, representation.mask(modality, elements))

    def _place_elements(self, height: int, width: int) -> None:
        """Keep how maps are pooled, `pooling` [cell, object], and what stands beside the time of each element.

        That is `objects` [object, 4] and `whole` [1, 4], centre x, centre y, width and height as shares of the picture,
        and `length` [1, 1] of a sound as a share of the video.
        """
        (rows, tall), (columns, wide) = _cut(height), _cut(width)
        y, x = (
            grid.flatten() for grid in torch.meshgrid(torch.arange(len(tall)), torch.arange(len(wide)), indexing="ij")
        )
        pooling = torch.einsum("yi,xj->yxij", rows, columns).flatten(0, 1).flatten(1)
        objects = torch.stack((wide[x, 0], tall[y, 0], wide[x, 1], tall[y, 1]), dim=-1)
        self.register_buffer("pooling", pooling, persistent=False)
        self.register_buffer("objects", objects, persistent=False)
        self.register_buffer("whole", torch.tensor([WHOLE_PICTURE]), persistent=False)
        self.register_buffer("length", torch.tensor([[1 / self.time_steps]]), persistent=False)


def _cut(cells: int) -> tuple[Tensor, Tensor]:
    """Cut a side of `cells` cells into at most two parts, which share a cell where it is odd.

    Returns weights [cell, part] that average each part, and the centre and extent of each [part, 2], as shares.
    """
    parts = min(cells, PARTS)
    part = torch.arange(parts)
    start, stop = part * cells // parts, cells - (parts - 1 - part) * cells // parts
    cell = torch.arange(cells)[:, None]
    inside = ((start <= cell) & (cell < stop)).float()
    return inside / inside.sum(0), torch.stack(((start + stop) / 2, stop - start), dim=-1) / cells


def _heads(channels: int, most: int) -> int:
    return next(heads for heads in range(most, 0, -1) if channels % heads == 0)


def _lift(inputs: int, channels: int) -> nn.Module:
    return nn.Identity() if inputs == channels else nn.Linear(inputs, channels)
