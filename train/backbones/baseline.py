"""AVST's baseline: question-guided temporal grounding of audio and visual, without spatial grounding.

Source: Li et al., "Learning to Answer Questions in Dynamic Audio-Visual Scenarios", CVPR 2022, the row "AV+Q+TG" of
its ablation (our reading of the released `net_grd_baseline`, which names no row).
"""

import torch
from torch import Tensor, nn

from pipeline.store.schema import MODALITIES
from train.backbones.sizes import ModelSizes
from train.data.batch import Batch
from train.interfaces import Answer, Representation
from train.networks.layers import AudioStem, InputWhitening, QuestionEncoder, TemporalGrounding, zero_missing_steps


class Baseline(nn.Module):
    """Temporal grounding of audio and visual by the question; the vector of a visual step is the mean of its map.

    Features: audio [batch, time, channel] after the stem, visual [batch, time, channel, height, width] as stored.

    Source: the released `net_grd_baseline`; 6,702,634 parameters with 93 words, 42 answers and 512 channels.
    Differs from the released code: no unused layers and no negatives of zeros; any number of steps and any map size;
    missing steps are masked out of the attention.
    """

    needs = {"question": ("tokens",), "audio": ("vggish",), "visual": ("resnet18-map",)}  # noqa: RUF012
    uses_negatives = False

    def __init__(self, sizes: ModelSizes) -> None:
        super().__init__()
        (audio_channels,), map_shape = sizes.input_shapes["vggish"], sizes.input_shapes["resnet18-map"]
        if len(map_shape) != 3 or map_shape[0] != sizes.channels:
            raise ValueError(
                f"the baseline needs maps of {sizes.channels} channels: resnet18-map has the shape {map_shape}"
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
        self.temporal_grounding = nn.ModuleDict(
            {m: TemporalGrounding(sizes.channels, sizes.heads, sizes.dropout) for m in MODALITIES}
        )
        self.fusion = nn.Linear(2 * sizes.channels, sizes.channels)
        self.classifier = nn.Linear(sizes.channels, sizes.answers)

    def encode(self, batch: Batch) -> Representation:
        """Return the audio after the stem and the maps, from whitened inputs; missing steps are zero."""
        features = {}
        if batch.audio is not None:
            whitened = self.input_whitening["vggish"](batch.audio["vggish"])
            audio = self.audio_stem(zero_missing_steps(whitened, batch.audio_mask))
            features["audio"] = zero_missing_steps(audio, batch.audio_mask)
        if batch.visual is not None:
            maps = self.input_whitening["resnet18-map"](batch.visual["resnet18-map"])
            features["visual"] = zero_missing_steps(maps, batch.visual_mask)
        masks = {modality: batch.mask(modality) for modality in features}
        return Representation(self.question_encoder(batch.question["tokens"]), features, masks=masks)

    def steps(self, representation: Representation) -> dict[str, Tensor]:
        """Return {modality: [batch, time, channel]}: the audio features, and the mean of each map."""
        steps = {m: values for m, values in representation.steps.items() if m not in representation.pooled}
        if representation.level("audio") == "features":
            steps["audio"] = representation.features["audio"]
        if representation.level("visual") == "features":
            steps["visual"] = representation.features["visual"].mean((3, 4))
        return steps

    def pool(self, representation: Representation, prompts: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Return {modality: [batch, channel]}: the question's attention to the steps."""
        pooled = dict(representation.pooled)
        for modality, steps in self.steps(representation).items():
            mask = representation.mask(modality, steps)
            prompt = None if prompts is None else prompts.get(modality)
            pooled[modality] = self.temporal_grounding[modality](representation.question, steps, mask, prompt)
        return pooled

    def answer(self, representation: Representation) -> Answer:
        """Return logits [batch, answer].

        Raises ValueError if a modality is missing at all levels.
        """
        pooled = self.pool(representation)
        for modality in MODALITIES:
            if modality not in pooled:
                raise ValueError(f"{modality} is missing: pass its features, steps or pooled vectors")
        joined = self.fusion(torch.tanh(torch.cat((pooled["audio"], pooled["visual"]), dim=-1)))
        return Answer(self.classifier(torch.tanh(joined * representation.question)))
