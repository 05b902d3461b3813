"""PSTP-Net: selection of segments and regions by the question, then self-attention over all tokens.

Source: Li et al., "Progressive Spatio-temporal Perception for Audio-Visual Question Answering", ACM MM 2023.
"""

import torch
from torch import Tensor, nn

from pipeline.errors import UserError, unknown_name
from pipeline.store.schema import MODALITIES
from train.backbones.sizes import ModelSizes
from train.data.batch import Batch
from train.interfaces import Answer, Representation
from train.networks.layers import InputWhitening, zero_missing_steps
from train.networks.progressive_perception import HybridAttention, Perception, Tokens, join

AUDIO, VISUAL, SENTENCE, WORDS = "vggish", "clip-vit-b32", "clip-vit-b32-sentence", "clip-vit-b32-words"


class Pstp(nn.Module):
    """Fuse audio and visual steps, selected segments and regions, and words in one sequence; answer from its mean.

    Options:
    - `variant`: "paper", or "released", which fuses only steps and words (197 tokens), as the released code does.
    - `segments`: the number of segments of `sizes.time_steps`; their length is rounded down, to at least one step.
    - `top_segments`, `top_patches`: the numbers of segments, and of patches per step, to select; all of them if there
      are fewer.
    - `layers`: the number of layers of global-local perception, and of the fusion.

    Features: audio [batch, time, channel] after its projection, visual [batch, time, 1 + patch, channel of the store]
    as stored, the class token first. With the paper's 60 steps the sequence has 130 audio tokens (60 steps, 60
    global-local, 10 selected), 390 visual tokens (the same, and 250 patches, 10 audio-guided) and 77 words, padding
    included. Visual vectors given at the steps level have no patches. A pooled vector is not in the sequence; it enters
    the mean weighted by the number of tokens that the modality would have, at most, at the features level: with its
    own available steps if it has a mask, else those of the other modality, else all steps. Prompts are additional keys
    and values of the fusion.

    Source: section 3 of the paper; 8,495,658 parameters with 42 answers and 512 channels, "released" 2,453,546.
    Differs from the released code, which computes selection, audio-guided attention and global-local perception but
    does not fuse them: here they are fused; each step of each sample has its own regions (released: those of the first
    sample's first frame); global-local perception returns its outputs (released: its inputs); layers are chained; there
    are no unused parameters. Selection is hard as released, but selected tokens carry the gradient of their weights
    (straight-through), so that the selectors are trained. In training, the released code selects by weights after
    dropout, this one before it. Missing steps are masked out.
    """

    variants = ("paper", "released")
    needs = {"question": (SENTENCE, WORDS), "audio": (AUDIO,), "visual": (VISUAL,)}  # noqa: RUF012
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
        _check_options(variant, segments=segments, top_segments=top_segments, top_patches=top_patches, layers=layers)
        (inputs,), (tokens, stored), channels = sizes.input_shapes[AUDIO], sizes.input_shapes[VISUAL], sizes.channels
        self.channels, self.time_steps = channels, sizes.time_steps
        self.answers = sizes.answers
        self.input_shapes = {AUDIO: (inputs,), VISUAL: (tokens, stored)}
        self.feature_shapes = {"audio": (channels,), "visual": (tokens, stored)}
        self.input_whitening = nn.ModuleDict({AUDIO: InputWhitening(inputs), VISUAL: InputWhitening(stored, axis=-1)})
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
        self.fusion = nn.ModuleList(
            HybridAttention(channels, sizes.dropout, has_cross_attention=False) for _ in range(layers)
        )
        self.classifier = nn.Linear(channels, sizes.answers)

    def encode(self, batch: Batch) -> Representation:
        """Return the words, the projected audio and the tokens, from whitened inputs; missing steps are zero."""
        sentence, words = (batch.question[name].to(self.classifier.weight.dtype) for name in (SENTENCE, WORDS))
        features = {}
        if batch.audio is not None:
            audio = self.audio_stem(
                zero_missing_steps(self.input_whitening[AUDIO](batch.audio[AUDIO]), batch.audio_mask)
            )
            features["audio"] = zero_missing_steps(audio, batch.audio_mask)
        if batch.visual is not None:
            features["visual"] = zero_missing_steps(
                self.input_whitening[VISUAL](batch.visual[VISUAL]), batch.visual_mask
            )
        return Representation(
            self.question_stem(sentence),
            features,
            masks={modality: batch.mask(modality) for modality in features},
            words=self.word_stem(words),
            word_mask=torch.ones(words.shape[:2], dtype=torch.bool, device=words.device),
        )

    def steps(self, representation: Representation) -> dict[str, Tensor]:
        """Return {modality: [batch, time, channel]}: the audio features, and the projected class tokens."""
        steps = {m: values for m, values in representation.steps.items() if m not in representation.pooled}
        if representation.level("audio") == "features":
            steps["audio"] = representation.features["audio"]
        if representation.level("visual") == "features":
            steps["visual"] = self.visual_stem(representation.features["visual"][:, :, 0])
        return steps

    def pool(self, representation: Representation, prompts: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Return {modality: [batch, channel]}: the mean of its tokens in the fused sequence."""
        fused = self._fuse(representation, prompts)
        return {**representation.pooled, **{m: fused[m].mean() for m in MODALITIES if m in fused}}

    def answer(self, representation: Representation) -> Answer:
        """Return logits [batch, answer].

        Raises ValueError if a modality is missing at all levels, or the words are.
        """
        for modality in MODALITIES:
            if representation.level(modality) is None:
                raise ValueError(f"{modality} is missing: pass its features, steps or pooled vectors")
        fused, pooled = self._fuse(representation), representation.pooled
        means = torch.stack([*(tokens.mean() for tokens in fused.values()), *pooled.values()], 1)
        counts = [tokens.mask.sum(1) for tokens in fused.values()]
        weights = torch.stack([*counts, *(self._expected_tokens(representation, m) for m in pooled)], 1).to(means.dtype)
        mean = torch.einsum("bnc,bn->bc", means, weights / weights.sum(1, keepdim=True))
        return Answer(self.classifier(torch.tanh(mean * representation.question)))

    def _fuse(self, representation: Representation, prompts: dict[str, Tensor] | None = None) -> dict[str, Tokens]:
        """Return {modality or "words": its tokens after the fusion}."""
        parts = self._tokens(representation)
        sequence, prompt = join(list(parts.values())), _prompt_tokens(prompts, parts)
        for layer in self.fusion:
            sequence = layer(sequence, prompts=prompt)
        lengths = [part.mask.shape[1] for part in parts.values()]
        split = zip(parts.items(), sequence.values.split(lengths, 1), strict=True)
        return {name: Tokens(values, part.mask) for (name, part), values in split}

    def _tokens(self, representation: Representation) -> dict[str, Tokens]:
        """Return {modality or "words": its tokens before the fusion}."""
        if representation.words is None or representation.word_mask is None:
            raise ValueError("PSTP-Net reads the question word by word: pass words and word_mask")
        steps = {}
        for modality, values in self.steps(representation).items():
            mask = representation.mask(modality, values)
            steps[modality] = Tokens(zero_missing_steps(values, mask), mask)
        parts = {modality: [tokens] for modality, tokens in steps.items()}
        if self.perception is not None and steps:
            has_patches = representation.level("visual") == "features"
            patches = representation.features["visual"][:, :, 1:] if has_patches else None
            perceived = self.perception(representation.question, steps, patches)
            parts = {m: [tokens, *perceived[m]] for m, tokens in steps.items()}
        words = Tokens(representation.words, representation.word_mask)
        return {**{m: join(tokens) for m, tokens in parts.items()}, "words": words}

    def _expected_tokens(self, representation: Representation, modality: str) -> Tensor:
        """Return the largest number of tokens that `modality` could have in the sequence, [batch]."""
        question, masks = representation.question, representation.masks
        mask = masks.get(modality, next(iter(masks.values()), None))
        steps = question.new_full((len(question),), self.time_steps) if mask is None else mask.sum(1)
        if self.perception is None:
            return steps
        per_selected = 1 if modality == "audio" else 2 + self.regions
        return 2 * steps + per_selected * steps.clamp_max(self.most_selected)


def _prompt_tokens(prompts: dict[str, Tensor] | None, parts: dict[str, Tokens]) -> Tokens | None:
    """Return the prompts of the modalities in `parts`, repeated for every row; None if there are none."""
    given = [prompt for modality, prompt in (prompts or {}).items() if modality in parts]
    if not given:
        return None
    values = torch.cat(given).expand(len(parts["words"].mask), -1, -1)
    return Tokens(values, values.new_ones(values.shape[:2], dtype=torch.bool))


def _check_options(variant: str, **counts: int) -> None:
    if variant not in Pstp.variants:
        raise unknown_name("variant", variant, Pstp.variants)
    for name, count in counts.items():
        if count < 1:
            raise UserError(f"{name} = {count}: PSTP-Net needs at least 1")
