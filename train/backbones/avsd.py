"""AVSD: factor-graph attention over question, audio and frames, then an LSTM over the attended vectors.

The attention is in `train.networks.factor_graph_attention`.
Source: Schwartz et al., "A Simple Baseline for Audio-Visual Scene-Aware Dialog", CVPR 2019.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.store.schema import MODALITIES
from train.backbones.sizes import ModelSizes
from train.data.batch import Batch
from train.interfaces import Answer, Representation
from train.networks.factor_graph_attention import FactorGraphAttention, Utility
from train.networks.layers import AudioStem, InputWhitening, masked_mean, zero_missing_steps

PADDING = 0
LARGEST_SIDE = 7
RELEASED_FRAMES = 4
ATTENDED_LEVELS = ("features", "steps")


class Avsd(nn.Module):
    """Attend jointly to words, audio steps and map locations; an LSTM reads the attended audio, then the frames.

    `variant` "paper": all frames are one group with shared weights, connected to question and audio. "released": four
    frames, spread evenly over the available steps (0, 3, 6, 9 of ten; short videos repeat some), are utilities with
    their own weights.

    Features: audio [batch, time, `sizes.channels`] after the stem, visual [batch, time, channel, height, width] as
    stored; `channels` is half of `sizes.channels`. A frame at the steps level has a single location. A pooled vector is
    one element of the LSTM's sequence and takes no part in the attention.

    Source: the released `mmseq2seq_model.py`, adapted to a list of answers: no dialogue history, and two linear layers
    on the LSTM's state and the attended question instead of the decoder. 2,796,745 parameters ("released" 4,968,661)
    with 93 words, 42 answers and 512 channels.
    Differs from the released code: padding tokens and missing steps are masked; audio goes through the audio stem of
    all backbones; maps are pooled to at most 7 x 7; weights have torch's default initialisation, because with the
    released one (He-normal, zero biases) a map of zeros has no direction and its gradients are infinite. The released
    dropout of the LSTMs acts only between layers; each has one layer, so it has no effect and is omitted.
    """

    variants = ("paper", "released")
    needs = {"question": ("tokens",), "audio": ("vggish",), "visual": ("resnet18-map",)}  # noqa: RUF012
    uses_negatives = False

    def __init__(self, sizes: ModelSizes, variant: str = "paper") -> None:
        super().__init__()
        (audio_channels,), map_shape = sizes.input_shapes["vggish"], sizes.input_shapes["resnet18-map"]
        self.channels = sizes.channels // 2
        self.answers = sizes.answers
        self.time_steps = sizes.time_steps
        self.input_shapes = {"vggish": (audio_channels,), "resnet18-map": map_shape}
        self.feature_shapes = {"audio": (sizes.channels,), "visual": map_shape}
        self.input_whitening = nn.ModuleDict(
            {name: InputWhitening(shape[0]) for name, shape in self.input_shapes.items()}
        )
        self.embedding = nn.Embedding(sizes.words, sizes.channels // 4)
        self.word_lstm = nn.LSTM(sizes.channels // 4, self.channels, batch_first=True)
        self.audio_stem = AudioStem(audio_channels, sizes.channels)
        self.audio_projection = nn.Linear(sizes.channels, self.channels)
        self.visual_projection = nn.Linear(map_shape[0], self.channels)
        plain, with_prior = Utility(self.channels), Utility(self.channels, has_prior=True)
        self.frame_utilities: tuple[str, ...] = ()
        utilities = {"visual": Utility(self.channels, members=sizes.time_steps, connected=("question", "audio"))}
        if variant == "released":
            self.frame_utilities = tuple(f"frame{i}" for i in range(RELEASED_FRAMES))
            utilities = dict.fromkeys(self.frame_utilities, plain)
        self.attention = FactorGraphAttention({"question": with_prior, **utilities, "audio": plain})
        self.sequence_lstm = nn.LSTM(self.channels, self.channels, batch_first=True)
        self.fusion = nn.Linear(2 * self.channels, sizes.channels)
        self.classifier = nn.Linear(sizes.channels, sizes.answers)

    def encode(self, batch: Batch) -> Representation:
        """Return the words, the audio after the stem and the maps, from whitened inputs; missing steps are zero.

        Raises ValueError if steps beyond `time_steps` are available, for which there are no weights.
        """
        tokens = batch.question["tokens"].long()
        words, _ = self.word_lstm(self.embedding(tokens))
        word_mask = tokens != PADDING
        question = _gather(words, _last_position(word_mask).unsqueeze(1)).squeeze(1)
        masks = {modality: self._trim(batch.mask(modality)) for modality in batch.available}
        features = {}
        if batch.audio is not None:
            audio = self.input_whitening["vggish"](batch.audio["vggish"][:, : self.time_steps])
            features["audio"] = zero_missing_steps(
                self.audio_stem(zero_missing_steps(audio, masks["audio"])), masks["audio"]
            )
        if batch.visual is not None:
            maps = self.input_whitening["resnet18-map"](batch.visual["resnet18-map"][:, : self.time_steps])
            features["visual"] = zero_missing_steps(maps, masks["visual"])
        return Representation(question, features, masks=masks, words=words, word_mask=word_mask)

    def steps(self, representation: Representation) -> dict[str, Tensor]:
        """Return {modality: [batch, time, channel]}: the projected audio, and the attended vector of each frame.

        With four frames ("released"), a step has the vector of the latest one that is not after it.
        """
        steps = {m: values for m, values in representation.steps.items() if m not in representation.pooled}
        if representation.level("audio") == "features":
            steps["audio"] = self.audio_projection(representation.features["audio"])
        if representation.level("visual") == "features":
            steps["visual"] = self._attend(representation)["visual"]
            if self.frame_utilities:
                maps = representation.features["visual"]
                selected = spread_evenly(representation.mask("visual", maps), len(self.frame_utilities))
                positions = torch.arange(maps.shape[1], device=maps.device)
                frames_so_far = (selected.unsqueeze(1) <= positions[:, None]).sum(2)
                steps["visual"] = _gather(steps["visual"], frames_so_far.clamp_min(1) - 1)
        return steps

    def pool(self, representation: Representation, prompts: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Return {modality: [batch, channel]}: the attended audio, and the mean of the attended frames.

        Prompts are additional elements of the audio and of every frame.
        """
        attended = self._attend(representation, prompts)
        pooled = dict(representation.pooled)
        if "audio" in attended:
            pooled["audio"] = attended["audio"]
        if "visual" in attended:
            pooled["visual"] = masked_mean(attended["visual"], self._frame_mask(representation))
        return pooled

    def answer(self, representation: Representation) -> Answer:
        """Return logits [batch, answer].

        Raises ValueError if a modality is missing at all levels, or the words are.
        """
        for modality in MODALITIES:
            if representation.level(modality) is None:
                raise ValueError(f"{modality} is missing: pass its features, steps or pooled vectors")
        attended = self._attend(representation)
        vectors = {**attended, **representation.pooled}
        if "visual" in representation.pooled:
            frames, mask = vectors["visual"].unsqueeze(1), vectors["visual"].new_ones(len(vectors["visual"]), 1).bool()
        else:
            frames, mask = vectors["visual"], self._frame_mask(representation)
        sequence = torch.cat((vectors["audio"].unsqueeze(1), frames), dim=1)
        state = self._run_lstm(sequence, F.pad(mask, (1, 0), value=True))
        fused = self.fusion(torch.cat((state, attended["question"]), dim=-1))
        return Answer(self.classifier(torch.tanh(fused)))

    def _attend(self, representation: Representation, prompts: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Return the attended vectors: "question" and "audio" [batch, channel], "visual" [batch, frame, channel].

        Modalities that are missing or at the pooled level have none.
        """
        words, word_mask, prompts = representation.words, representation.word_mask, prompts or {}
        if words is None or word_mask is None:
            raise ValueError("AVSD reads the question word by word: pass words and word_mask")
        values, masks = {"question": words}, {"question": word_mask}
        if representation.level("audio") in ATTENDED_LEVELS:
            values["audio"], masks["audio"] = self._audio_elements(representation, prompts.get("audio"))
        if representation.level("visual") in ATTENDED_LEVELS:
            elements, mask = self._frame_elements(representation, prompts.get("visual"))
            values |= self._by_utility(elements)
            masks |= self._by_utility(mask)
        prior = F.one_hot(_last_position(word_mask), words.shape[1]).to(words.dtype)
        attended = self.attention(values, masks, {"question": prior})
        if self.frame_utilities and representation.level("visual") in ATTENDED_LEVELS:
            attended["visual"] = torch.stack([attended.pop(name) for name in self.frame_utilities], dim=1)
        return attended

    def _audio_elements(self, representation: Representation, prompts: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the audio steps and prompts, [batch, element, channel], and their mask."""
        if representation.level("audio") == "steps":
            audio = representation.steps["audio"]
        else:
            audio = self.audio_projection(representation.features["audio"])
        mask = representation.mask("audio", audio)
        return _prepend_prompts(audio, mask, mask.any(1), prompts)

    def _frame_elements(self, representation: Representation, prompts: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the locations and prompts of the selected frames, [batch, frame, element, channel], and their mask."""
        frames = _maps_or_steps(representation)
        if self.frame_utilities:
            selected = spread_evenly(representation.mask("visual", frames), len(self.frame_utilities))
            frames = _gather(frames, selected)
        frame_mask = self._frame_mask(representation)
        if representation.level("visual") == "steps":
            locations = frames.unsqueeze(2)
        else:
            height, width = frames.shape[-2:]
            maps = F.adaptive_avg_pool2d(frames.flatten(0, 1), (min(height, LARGEST_SIDE), min(width, LARGEST_SIDE)))
            locations = self.visual_projection(maps.flatten(2).mT).unflatten(0, frame_mask.shape)
        mask = frame_mask.unsqueeze(2).expand(locations.shape[:3])
        return _prepend_prompts(locations, mask, frame_mask, prompts)

    def _frame_mask(self, representation: Representation) -> Tensor:
        """Return the mask of the selected frames, bool [batch, frame]."""
        mask = representation.mask("visual", _maps_or_steps(representation))
        return mask.gather(1, spread_evenly(mask, len(self.frame_utilities))) if self.frame_utilities else mask

    def _by_utility(self, frames: Tensor) -> dict[str, Tensor]:
        """Return `frames` [batch, frame, ...] as inputs of the attention: one utility per frame, or one group."""
        if not self.frame_utilities:
            return {"visual": frames}
        return dict(zip(self.frame_utilities, frames.unbind(1), strict=True))

    def _run_lstm(self, sequence: Tensor, mask: Tensor) -> Tensor:
        """Return the LSTM's state [batch, channel] after the available elements of [batch, element, channel]."""
        order = mask.int().argsort(dim=1, descending=True, stable=True)
        states, _ = self.sequence_lstm(_gather(sequence, order))
        return _gather(states, mask.sum(1, keepdim=True) - 1).squeeze(1)

    def _trim(self, mask: Tensor) -> Tensor:
        if mask.shape[1] > self.time_steps and bool(mask[:, self.time_steps :].any()):
            raise ValueError(f"AVSD has weights for {self.time_steps} steps, but the batch has {mask.shape[1]}")
        return mask[:, : self.time_steps]


def spread_evenly(mask: Tensor, count: int) -> Tensor:
    """Return the positions of `count` steps spread evenly over the available ones, int64 [batch, count].

    They are the steps floor(i (n - 1) / (count - 1)) of the n steps in `mask` [batch, time].
    """
    available = mask.int().argsort(dim=1, descending=True, stable=True)
    last = mask.sum(1, keepdim=True).clamp_min(1) - 1
    return available.gather(1, torch.arange(count, device=mask.device) * last // (count - 1))


def _maps_or_steps(representation: Representation) -> Tensor:
    """Return the visual steps [batch, time, channel] if there are any, else the maps [batch, time, ...]."""
    return representation.steps["visual"] if "visual" in representation.steps else representation.features["visual"]


def _gather(values: Tensor, positions: Tensor) -> Tensor:
    """Return [batch, position, ...]: `values` [batch, time, ...] at each row's own `positions` [batch, position]."""
    return values[torch.arange(len(values), device=values.device).unsqueeze(1), positions]


def _last_position(mask: Tensor) -> Tensor:
    """Return the last position where `mask` [batch, word] is True, int64 [batch]; 0 if there is none."""
    return (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(1)


def _prepend_prompts(
    elements: Tensor, mask: Tensor, has_prompts: Tensor, prompts: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Prepend `prompts` [prompt, channel] to `elements` [..., element, channel] and extend their `mask` [..., element].

    The prompts are masked out where `has_prompts` [...] is False.
    """
    if prompts is None:
        return elements, mask
    joined = torch.cat((prompts.expand(*elements.shape[:-2], -1, -1), elements), dim=-2)
    return joined, torch.cat((has_prompts.unsqueeze(-1).expand(*has_prompts.shape, len(prompts)), mask), dim=-1)
