"""AVST: audio-guided spatial grounding in each frame, question-guided temporal grounding over the time steps.

Source: Li et al., "Learning to Answer Questions in Dynamic Audio-Visual Scenarios", CVPR 2022.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from pipeline.store.schema import MODALITIES
from train.backbones.sizes import ModelSizes
from train.data.batch import Batch
from train.interfaces import Answer, Matches, Representation
from train.networks.layers import (
    AudioStem,
    InputWhitening,
    MatchHead,
    QuestionEncoder,
    SpatialGrounding,
    TemporalGrounding,
    masked_mean,
    zero_missing_steps,
)

MATCH_WEIGHT = 0.5


class Avst(nn.Module):
    """Spatial grounding by audio, temporal grounding by the question, and an auxiliary audio-visual match loss.

    Features: audio [batch, time, channel] after the stem, visual [batch, time, channel, height, width] as stored. If
    the audio of a step is missing or not at the features level, all locations of its map have equal weights.

    Source: the paper's spatial and temporal grounding; 7,916,716 parameters with 93 words, 42 answers and 512 channels.
    Differs from the released code: no unused layers; any number of steps and any map size; missing steps are masked
    out of attention, means and the match loss.
    """

    needs = {"question": ("tokens",), "audio": ("vggish",), "visual": ("resnet18-map",)}  # noqa: RUF012
    uses_negatives = True

    def __init__(self, sizes: ModelSizes) -> None:
        super().__init__()
        (audio_channels,), map_shape = sizes.input_shapes["vggish"], sizes.input_shapes["resnet18-map"]
        if len(map_shape) != 3 or map_shape[0] != sizes.channels:
            raise ValueError(
                f"AVST compares maps {map_shape} with audio of {sizes.channels} channels: their channels must be equal"
            )
        self.channels = sizes.channels
        self.answers = sizes.answers
        self.time_steps = sizes.time_steps
        self.input_shapes = {"vggish": (audio_channels,), "resnet18-map": map_shape}
        self.feature_shapes = {"audio": (sizes.channels,), "visual": map_shape}
        self.input_whitening = nn.ModuleDict(
            {name: InputWhitening(shape[0]) for name, shape in self.input_shapes.items()}
        )
        self.question_encoder = QuestionEncoder(sizes.words, sizes.channels)
        self.audio_stem = AudioStem(audio_channels, sizes.channels)
        self.spatial_grounding = SpatialGrounding(sizes.channels)
        self.match_head = MatchHead(sizes.channels)
        self.temporal_grounding = nn.ModuleDict(
            {m: TemporalGrounding(sizes.channels, sizes.heads, sizes.dropout) for m in MODALITIES}
        )
        self.fusion = nn.Linear(2 * sizes.channels, sizes.channels)
        self.classifier = nn.Linear(sizes.channels, sizes.answers)

    def encode(self, batch: Batch) -> Representation:
        """Return the audio after the stem and the maps, from whitened inputs; missing steps are zero."""
        question = self.question_encoder(batch.question["tokens"])
        features, whiten_maps = {}, self.input_whitening["resnet18-map"]
        if batch.audio is not None:
            whitened = self.input_whitening["vggish"](batch.audio["vggish"])
            audio = self.audio_stem(zero_missing_steps(whitened, batch.audio_mask))
            features["audio"] = zero_missing_steps(audio, batch.audio_mask)
        if batch.visual is not None:
            features["visual"] = zero_missing_steps(whiten_maps(batch.visual["resnet18-map"]), batch.visual_mask)
        negatives = None if batch.negatives is None else whiten_maps(batch.negatives["resnet18-map"])
        masks = {modality: batch.mask(modality) for modality in features}
        return Representation(question, features, masks=masks, negatives=negatives)

    def steps(self, representation: Representation) -> dict[str, Tensor]:
        """Return {modality: [batch, time, channel]}: the audio features, and the maps after spatial grounding."""
        steps = {m: values for m, values in representation.steps.items() if m not in representation.pooled}
        if representation.level("audio") == "features":
            steps["audio"] = representation.features["audio"]
        if representation.level("visual") == "features":
            maps = representation.features["visual"]
            steps["visual"] = self.spatial_grounding(maps, self._audio_query(representation, maps))
        return steps

    def pool(self, representation: Representation, prompts: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Return {modality: [batch, channel]}: the question's attention to the steps plus their mean."""
        pooled = dict(representation.pooled)
        for modality, steps in self.steps(representation).items():
            mask = representation.mask(modality, steps)
            prompt = None if prompts is None else prompts.get(modality)
            attended = self.temporal_grounding[modality](representation.question, steps, mask, prompt)
            pooled[modality] = attended + masked_mean(steps, mask)
        return pooled

    def answer(self, representation: Representation) -> Answer:
        """Return logits [batch, answer], and the match loss if there are negatives and both modalities have features.

        Raises ValueError if a modality is missing at all levels.
        """
        grounded = replace(representation, steps=self.steps(representation))
        pooled = self.pool(grounded)
        for modality in MODALITIES:
            if modality not in pooled:
                raise ValueError(f"{modality} is missing: pass its features, steps or pooled vectors")
        joined = self.fusion(torch.tanh(torch.cat((pooled["audio"], pooled["visual"]), dim=-1)))
        logits = self.classifier(torch.tanh(joined * representation.question))
        if representation.negatives is None or any(representation.level(m) != "features" for m in MODALITIES):
            return Answer(logits)
        return Answer(logits, {"match": MATCH_WEIGHT * self.match(grounded).loss()})

    def match(self, representation: Representation) -> Matches:
        """Return the match logits of each step's audio with its own map and with the map of `negatives`.

        Both maps are pooled by spatial grounding with the step's audio, and both pairs are classified by the same head.
        `negatives` [batch, time, channel, height, width] must not be None, and audio must be at the features level;
        the logits are [batch, time, 2], class 1: they match. The mask is True for the steps that have both modalities.
        Source: the audio-visual match of the paper's spatial grounding.
        """
        assert representation.negatives is not None
        audio, visual = representation.features["audio"], self.steps(representation)["visual"]
        mask = representation.mask("audio", audio) & representation.mask("visual", visual)
        negative = self.spatial_grounding(representation.negatives, audio)
        return Matches(self.match_head(audio, visual), self.match_head(audio, negative), mask)

    def _audio_query(self, representation: Representation, maps: Tensor) -> Tensor:
        if representation.level("audio") != "features":
            return maps.new_zeros(*maps.shape[:2], self.channels)
        audio = representation.features["audio"]
        return zero_missing_steps(audio, representation.mask("audio", audio))
