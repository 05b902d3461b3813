"""AVSD: question, sound and pictures attend to one another in a factor graph, an LSTM reads what remains.

It knows no method; the attention itself is `train.networks.factor_graph_attention`.
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
from train.networks.layers import AudioStem, InputWhitening, blank, masked_mean

PADDING = 0
LARGEST_SIDE = 7
RELEASED_FRAMES = 4
ATTENDED = ("features", "steps")


class Avsd(nn.Module):
    """Attend to words, seconds of sound and places of frames; read sound, then frames, by an LSTM; answer.

    `variant` "paper": all frames are one group with the same weights, connected to question and sound. "released":
    four frames, spread evenly over the steps that are there (0, 3, 6, 9 of ten; a short video repeats some), are
    utilities with weights of their own. Features: audio [batch, time, channel] after the stem, visual [batch, time,
    channel, height, width] as stored; `channels` is half of `sizes.channels`. At the steps level a frame is a single
    place; a pooled vector is one element of the LSTM's sequence and takes no part in the attention.

    Source: the released `mmseq2seq_model.py`, for answers from a list: the dialogue's history is dropped, and two
    linear layers on the LSTM's state and the attended question take the decoder's place. 2,796,745 parameters
    ("released" 4,968,661) at 93 words, 42 answers and 512 channels.
    Differs from the released code: words of padding and steps that are not there are masked; sound passes the audio
    stem that backbones share; maps are pooled to 7 x 7 at most; weights start as torch's do, not He-normal with biases
    of zero, since a blank picture would then have no direction and endless gradients. The released dropout of the LSTMs
    acts between layers only, of which there is one, and so does nothing.
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
        plain, asked = Utility(self.channels), Utility(self.channels, has_prior=True)
        self.frame_utilities: tuple[str, ...] = ()
        utilities = {"visual": Utility(self.channels, members=sizes.time_steps, connected=("question", "audio"))}
        if variant == "released":
            self.frame_utilities = tuple(f"frame{i}" for i in range(RELEASED_FRAMES))
            utilities = dict.fromkeys(self.frame_utilities, plain)
        self.attention = FactorGraphAttention({"question": asked, **utilities, "audio": plain})
        self.sequence_lstm = nn.LSTM(self.channels, self.channels, batch_first=True)
        self.fusion = nn.Linear(2 * self.channels, sizes.channels)
        self.classifier = nn.Linear(sizes.channels, sizes.answers)

    def encode(self, batch: Batch) -> Representation:
        """Return the words, the stem's audio and the stored maps; steps that are not there are zero.

        Raises ValueError where steps are there beyond `time_steps`, for which there are no weights.
        """
        tokens = batch.question["tokens"].long()
        words, _ = self.word_lstm(self.embedding(tokens))
        word_mask = tokens != PADDING
        question = _pick(words, _last(word_mask).unsqueeze(1)).squeeze(1)
        masks = {modality: self._cut(batch.mask(modality)) for modality in batch.present}
        features = {}
        if batch.audio is not None:
            audio = self.input_whitening["vggish"](batch.audio["vggish"][:, : self.time_steps])
            features["audio"] = blank(self.audio_stem(blank(audio, masks["audio"])), masks["audio"])
        if batch.visual is not None:
            maps = self.input_whitening["resnet18-map"](batch.visual["resnet18-map"][:, : self.time_steps])
            features["visual"] = blank(maps, masks["visual"])
        return Representation(question, features, masks=masks, words=words, word_mask=word_mask)

    def steps(self, representation: Representation) -> dict[str, Tensor]:
        """Return {modality: [batch, time, channel]}: the projected sound, and what is attended to in each frame.

        Where four frames are read ("released"), a second shows the last of them that has begun.
        """
        steps = {m: values for m, values in representation.steps.items() if m not in representation.pooled}
        if representation.level("audio") == "features":
            steps["audio"] = self.audio_projection(representation.features["audio"])
        if representation.level("visual") == "features":
            steps["visual"] = self._attend(representation)["visual"]
            if self.frame_utilities:
                maps = representation.features["visual"]
                chosen = spread_evenly(representation.mask("visual", maps), len(self.frame_utilities))
                seconds = torch.arange(maps.shape[1], device=maps.device)
                begun = (chosen.unsqueeze(1) <= seconds[:, None]).sum(2)
                steps["visual"] = _pick(steps["visual"], begun.clamp_min(1) - 1)
        return steps

    def pool(self, representation: Representation, prompts: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Return {modality: [batch, channel]}: the attended sound, and the mean of the attended frames.

        Prompts join the seconds of the sound and the places of every frame.
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

        Raises ValueError where a modality stands at no level.
        """
        for modality in MODALITIES:
            if representation.level(modality) is None:
                raise ValueError(f"nothing stands for {modality}: give its features, steps or pooled vectors")
        attended = self._attend(representation)
        vectors = {**attended, **representation.pooled}
        if "visual" in representation.pooled:
            seen, mask = vectors["visual"].unsqueeze(1), vectors["visual"].new_ones(len(vectors["visual"]), 1).bool()
        else:
            seen, mask = vectors["visual"], self._frame_mask(representation)
        sequence = torch.cat((vectors["audio"].unsqueeze(1), seen), dim=1)
        state = self._read(sequence, F.pad(mask, (1, 0), value=True))
        fused = self.fusion(torch.cat((state, attended["question"]), dim=-1))
        return Answer(self.classifier(torch.tanh(fused)))

    def _attend(self, representation: Representation, prompts: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Return "question" and "audio" [batch, channel] and "visual" [batch, frame, channel], of what takes part."""
        words, word_mask, prompts = representation.words, representation.word_mask, prompts or {}
        if words is None or word_mask is None:
            raise ValueError("AVSD reads the question word by word: give its words and their mask")
        values, masks = {"question": words}, {"question": word_mask}
        if representation.level("audio") in ATTENDED:
            values["audio"], masks["audio"] = self._sound(representation, prompts.get("audio"))
        if representation.level("visual") in ATTENDED:
            places, mask = self._places(representation, prompts.get("visual"))
            values |= self._by_utility(places)
            masks |= self._by_utility(mask)
        prior = F.one_hot(_last(word_mask), words.shape[1]).to(words.dtype)
        attended = self.attention(values, masks, {"question": prior})
        if self.frame_utilities and representation.level("visual") in ATTENDED:
            attended["visual"] = torch.stack([attended.pop(name) for name in self.frame_utilities], dim=1)
        return attended

    def _sound(self, representation: Representation, prompts: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the elements [batch, element, channel] of the sound, and which of them are there."""
        if representation.level("audio") == "steps":
            sound = representation.steps["audio"]
        else:
            sound = self.audio_projection(representation.features["audio"])
        mask = representation.mask("audio", sound)
        return _join(sound, mask, mask.any(1), prompts)

    def _places(self, representation: Representation, prompts: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the places [batch, frame, place, channel] of the frames that are read, and which are there."""
        pictures = self._pictures(representation)
        if self.frame_utilities:
            pictures = _pick(
                pictures, spread_evenly(representation.mask("visual", pictures), len(self.frame_utilities))
            )
        there = self._frame_mask(representation)
        if representation.level("visual") == "steps":
            places = pictures.unsqueeze(2)
        else:
            height, width = pictures.shape[-2:]
            maps = F.adaptive_avg_pool2d(pictures.flatten(0, 1), (min(height, LARGEST_SIDE), min(width, LARGEST_SIDE)))
            places = self.visual_projection(maps.flatten(2).mT).unflatten(0, there.shape)
        return _join(places, there.unsqueeze(2).expand(places.shape[:3]), there, prompts)

    def _frame_mask(self, representation: Representation) -> Tensor:
        """Return bool [batch, frame]: which of the frames that are read are there."""
        mask = representation.mask("visual", self._pictures(representation))
        return mask.gather(1, spread_evenly(mask, len(self.frame_utilities))) if self.frame_utilities else mask

    def _pictures(self, representation: Representation) -> Tensor:
        """Return what stands deepest of the picture: maps [batch, time, ...] or vectors [batch, time, channel]."""
        return representation.steps["visual"] if "visual" in representation.steps else representation.features["visual"]

    def _by_utility(self, frames: Tensor) -> dict[str, Tensor]:
        """Return what each utility of the attention is given of `frames` [batch, frame, ...]."""
        return (
            dict(zip(self.frame_utilities, frames.unbind(1), strict=True))
            if self.frame_utilities
            else {"visual": frames}
        )

    def _read(self, sequence: Tensor, mask: Tensor) -> Tensor:
        """Return the LSTM's state [batch, channel] after the elements of [batch, element, channel] in `mask`."""
        order = mask.int().argsort(dim=1, descending=True, stable=True)
        states, _ = self.sequence_lstm(_pick(sequence, order))
        return _pick(states, mask.sum(1, keepdim=True) - 1).squeeze(1)

    def _cut(self, mask: Tensor) -> Tensor:
        if mask.shape[1] > self.time_steps and bool(mask[:, self.time_steps :].any()):
            raise ValueError(f"there are weights for {self.time_steps} steps: the batch has {mask.shape[1]}")
        return mask[:, : self.time_steps]


def spread_evenly(mask: Tensor, count: int) -> Tensor:
    """Return int64 [batch, count]: of the n steps in `mask` [batch, time], numbers floor(i (n - 1) / (count - 1))."""
    there = mask.int().argsort(dim=1, descending=True, stable=True)
    last = mask.sum(1, keepdim=True).clamp_min(1) - 1
    return there.gather(1, torch.arange(count, device=mask.device) * last // (count - 1))


def _pick(values: Tensor, positions: Tensor) -> Tensor:
    """Return [batch, position, ...]: of each row of `values` [batch, time, ...] what stands at its positions."""
    return values[torch.arange(len(values), device=values.device).unsqueeze(1), positions]


def _last(mask: Tensor) -> Tensor:
    """Return int64 [batch]: the last position in `mask` [batch, word], 0 where there is none."""
    return (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(1)


def _join(elements: Tensor, mask: Tensor, there: Tensor, prompts: Tensor | None) -> tuple[Tensor, Tensor]:
    """Add `prompts` [prompt, channel] to `elements` [..., element, channel] where `there` [...], and to their mask."""
    if prompts is None:
        return elements, mask
    joined = torch.cat((prompts.expand(*elements.shape[:-2], -1, -1), elements), dim=-2)
    return joined, torch.cat((there.unsqueeze(-1).expand(*there.shape, len(prompts)), mask), dim=-1)
