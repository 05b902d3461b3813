"""PSTP-Net: the question picks seconds and places in them, then one attention fuses everything. It knows no method.

Source: Li et al., "Progressive Spatio-temporal Perception for Audio-Visual Question Answering", ACM MM 2023.
"""

import torch
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.store.schema import MODALITIES
from train.backbones.sizes import ModelSizes
from train.data.batch import Batch
from train.interfaces import Answer, Representation
from train.networks.layers import InputWhitening, blank
from train.networks.progressive_perception import HybridAttention, Perception, Tokens, join

SOUND, PICTURE, SENTENCE, WORDS = "vggish", "clip-vit-b32", "clip-vit-b32-sentence", "clip-vit-b32-words"
VARIANTS = ("paper", "released")


class Pstp(nn.Module):
    """Select seconds and patches by the question, and fuse them with sound, picture and words in one sequence.

    Features: audio [batch, time, channel] after its projection, visual [batch, time, 1 + patch, channel of the store]
    as stored, the class token first. At the paper's 60 steps the sequence holds 130 tokens of sound (steps 60,
    global-local 60, selected 10), 390 of pictures (the same, patches 250, audio-guided 10) and all 77 words, padding
    included; its mean decides. A picture at the steps level has no patches. A modality at the pooled level is not in
    the sequence: it joins the mean with the weight that its tokens would have had, had it come as features with as
    many steps as are known of it, of the other modality, or with all. Prompts join the sequence's keys and values.

    `variant` "released": only steps and words are fused (197 tokens), as the released code does. `segments` divide
    `sizes.time_steps` into lengths rounded down, one step at least. `layers`: of the global-local perception and of
    the fusion, each.

    Source: section 3 of the paper; 8,495,658 parameters at 42 answers and 512 channels, "released" 2,453,546.
    Differs from the released code: it computes selection, guided attention and global-local perception and leaves
    them out of the fusion; regions are each sample's and second's own, not the first one's; global-local perception
    returns what it computed; layers are chained; nothing unused is there. The choice is as hard, but what was chosen
    carries the gradient of its weight (straight-through), so that the selectors learn. In training the source
    chooses by weights after dropout, this by those before. Steps that are not there are masked out; where there are
    fewer segments or patches than asked for, all are taken.
    """

    variants = ("paper", "released")
    needs = {"question": (SENTENCE, WORDS), "audio": (SOUND,), "visual": (PICTURE,)}  # noqa: RUF012
    uses_negatives = False

    def __init__(
        self,
        sizes: ModelSizes,
        variant: str = "paper",
        segments: int = 12,
        top_segments: int = 2,
        top_patches: int = 25,
        layers: int = 1,
    ) -> None:
        super().__init__()
        _check(variant, segments=segments, top_segments=top_segments, top_patches=top_patches, layers=layers)
        (inputs,), (tokens, stored), channels = sizes.input_shapes[SOUND], sizes.input_shapes[PICTURE], sizes.channels
        self.channels, self.time_steps = channels, sizes.time_steps
        self.answers = sizes.answers
        self.input_shapes = {SOUND: (inputs,), PICTURE: (tokens, stored)}
        self.feature_shapes = {"audio": (channels,), "visual": (tokens, stored)}
        self.input_whitening = nn.ModuleDict({SOUND: InputWhitening(inputs), PICTURE: InputWhitening(stored, axis=-1)})
        self.audio_stem, self.visual_stem = nn.Linear(inputs, channels), nn.Linear(stored, channels)
        self.question_stem = nn.Linear(sizes.question_shapes[SENTENCE][-1], channels)
        self.word_stem = nn.Linear(sizes.question_shapes[WORDS][-1], channels)
        length = max(1, sizes.time_steps // segments)
        self.most_selected, self.regions = top_segments * length, min(top_patches, tokens - 1)
        self.perception: Perception | None = None
        if variant == "paper":
            self.perception = Perception(
                stored,
                channels,
                sizes.heads,
                sizes.dropout,
                segment_length=length,
                top_segments=top_segments,
                top_patches=top_patches,
                layers=layers,
            )
        self.fusion = nn.ModuleList(HybridAttention(channels, sizes.dropout, crosses=False) for _ in range(layers))
        self.classifier = nn.Linear(channels, sizes.answers)

    def encode(self, batch: Batch) -> Representation:
        """Return projected audio and tokens, inputs whitened where the run says so; steps not there are zero."""
        sentence, words = (batch.question[name].to(self.classifier.weight.dtype) for name in (SENTENCE, WORDS))
        features = {}
        if batch.audio is not None:
            audio = self.audio_stem(blank(self.input_whitening[SOUND](batch.audio[SOUND]), batch.audio_mask))
            features["audio"] = blank(audio, batch.audio_mask)
        if batch.visual is not None:
            features["visual"] = blank(self.input_whitening[PICTURE](batch.visual[PICTURE]), batch.visual_mask)
        return Representation(
            self.question_stem(sentence),
            features,
            masks={modality: batch.mask(modality) for modality in features},
            words=self.word_stem(words),
            word_mask=torch.ones(words.shape[:2], dtype=torch.bool, device=words.device),
        )

    def steps(self, representation: Representation) -> dict[str, Tensor]:
        """Return {modality: [batch, time, channel]}: the audio as it is, the class tokens projected."""
        steps = {m: values for m, values in representation.steps.items() if m not in representation.pooled}
        if representation.level("audio") == "features":
            steps["audio"] = representation.features["audio"]
        if representation.level("visual") == "features":
            steps["visual"] = self.visual_stem(representation.features["visual"][:, :, 0])
        return steps

    def pool(self, representation: Representation, prompts: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Return {modality: [batch, channel]}: the mean of its tokens in the fused sequence."""
        fused = self._fused(representation, prompts)
        return {**representation.pooled, **{m: fused[m].mean() for m in MODALITIES if m in fused}}

    def answer(self, representation: Representation) -> Answer:
        """Return logits [batch, answer]. Raises ValueError where a modality stands at no level."""
        for modality in MODALITIES:
            if representation.level(modality) is None:
                raise ValueError(f"nothing stands for {modality}: give its features, steps or pooled vectors")
        fused, pooled = self._fused(representation), representation.pooled
        means = torch.stack([*(tokens.mean() for tokens in fused.values()), *pooled.values()], 1)
        counts = [tokens.mask.sum(1) for tokens in fused.values()]
        weights = torch.stack([*counts, *(self._expected_tokens(representation, m) for m in pooled)], 1).to(means.dtype)
        mean = torch.einsum("bnc,bn->bc", means, weights / weights.sum(1, keepdim=True))
        return Answer(self.classifier(torch.tanh(mean * representation.question)))

    def _fused(self, representation: Representation, prompts: dict[str, Tensor] | None = None) -> dict[str, Tokens]:
        """Return {modality or "words": its tokens after the fusion}."""
        parts = self._sequence(representation)
        sequence, prompt = join(list(parts.values())), _prompt_tokens(prompts, parts)
        for layer in self.fusion:
            sequence = layer(sequence, prompts=prompt)
        lengths = [part.mask.shape[1] for part in parts.values()]
        split = zip(parts.items(), sequence.values.split(lengths, 1), strict=True)
        return {name: Tokens(values, part.mask) for (name, part), values in split}

    def _sequence(self, representation: Representation) -> dict[str, Tokens]:
        """Return {modality or "words": its tokens before the fusion}."""
        if representation.words is None or representation.word_mask is None:
            raise ValueError("PSTP-Net fuses the words of the question with the video: give words and word_mask")
        steps = {}
        for modality, values in self.steps(representation).items():
            mask = representation.mask(modality, values)
            steps[modality] = Tokens(blank(values, mask), mask)
        parts = {modality: [tokens] for modality, tokens in steps.items()}
        if self.perception is not None and steps:
            has_patches = representation.level("visual") == "features"
            patches = representation.features["visual"][:, :, 1:] if has_patches else None
            perceived = self.perception(representation.question, steps, patches)
            parts = {m: [tokens, *perceived[m]] for m, tokens in steps.items()}
        words = Tokens(representation.words, representation.word_mask)
        return {**{m: join(tokens) for m, tokens in parts.items()}, "words": words}

    def _expected_tokens(self, representation: Representation, modality: str) -> Tensor:
        """Return [batch]: the most tokens that `modality` would have in the sequence, had it come as features."""
        question, masks = representation.question, representation.masks
        mask = masks.get(modality, next(iter(masks.values()), None))
        steps = question.new_full((len(question),), self.time_steps) if mask is None else mask.sum(1)
        if self.perception is None:
            return steps
        per_selected = 1 if modality == "audio" else 2 + self.regions
        return 2 * steps + per_selected * steps.clamp_max(self.most_selected)


def _prompt_tokens(prompts: dict[str, Tensor] | None, parts: dict[str, Tokens]) -> Tokens | None:
    """Return the prompts of the modalities among `parts`, for every row."""
    given = [prompt for modality, prompt in (prompts or {}).items() if modality in parts]
    if not given:
        return None
    values = torch.cat(given).expand(len(parts["words"].mask), -1, -1)
    return Tokens(values, values.new_ones(values.shape[:2], dtype=torch.bool))


def _check(variant: str, **counts: int) -> None:
    if variant not in VARIANTS:
        raise UserError(f"variant {variant!r} is unknown; take one of {', '.join(VARIANTS)}")
    for name, count in counts.items():
        if count < 1:
            raise UserError(f"{name} = {count}: PSTP-Net needs at least one")
