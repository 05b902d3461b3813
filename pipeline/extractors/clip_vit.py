"""CLIP ViT-B/32: tokens of one frame per second (`clip-vit-b32`) and of questions (`clip-vit-b32-sentence`, `-words`).

The network is open_clip's, with OpenAI's weights and activation (quick GELU). Source: Radford et al., ICML 2021; the
recipe of PSTP-Net's feature scripts (Li et al., ACM MM 2023).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import numpy as np

from pipeline.extractors.interface import require_loaded
from pipeline.extractors.preprocessing import PRECISION, Normalisation
from pipeline.extractors.weights import Network, PublishedFile, WeightsSource
from pipeline.manifests.templates import tokenise
from pipeline.media.timeline import FrameSize, Media

if TYPE_CHECKING:
    from torch import Tensor, nn

FRAMES_PER_BATCH = 5
TEXTS_PER_BATCH = 32
CONTEXT = 77
ARCHITECTURE = "ViT-B-32-quickgelu"
NORMALISATION = Normalisation(mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711))

_PUBLISHED = (
    PublishedFile(
        "ViT-B-32.pt",
        "https://openaipublic.azureedge.net/clip/models/"
        "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af/ViT-B-32.pt",
        "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",
        kind="torchscript",
    ),
)
_UNUSED = ("logit_scale", "input_resolution", "context_length", "vocab_size")
_TEXT_TENSORS = ("token_embedding.*", "positional_embedding", "transformer.*", "ln_final.*", "text_projection")

# The two encoders are in one file; each is read and hashed without the other.
IMAGE_NETWORK = Network("clip-vit-b32", _PUBLISHED, unused=(*_UNUSED, *_TEXT_TENSORS))
TEXT_NETWORK = Network("clip-vit-b32", _PUBLISHED, unused=(*_UNUSED, "visual.*"))


@dataclass
class CLIPTokens:
    """CLIP's class token and 49 patch tokens of one frame per second: float16 [time, token 50, channel 512].

    Token 0 is the usual image embedding, tokens 1 to 49 are the patches in raster order. All follow the last layer
    norm and the projection; none is scaled to unit length. The shorter side is resized to 224 (bicubic), then the
    centre 224x224 is cropped.
    Source: PSTP-Net's `extract_patch-level_feat`.
    Differs from the released code: BUG-5.6, which runs the class-token extractor instead; each frame is the one
    shown in the middle of its second, without JPEG compression; float16 instead of float32; batches of 5 frames,
    the last one padded.
    """

    name = "clip-vit-b32"
    modality = "visual"
    dims = ("token", "channel")
    shape = (50, 512)
    dtype = "float16"
    frame_size = FrameSize("crop", 224, shorter_side=224, filter="bicubic")
    networks = (IMAGE_NETWORK,)
    _network: "nn.Module | None" = field(default=None, init=False, repr=False)

    def constants(self) -> dict[str, Any]:
        """Return the settings that the values depend on, other than weights and machine, as JSON values."""
        return {
            "network": f"{ARCHITECTURE}, every token normed and projected",
            "version": 1,
            "frames": self.frame_size.constants(),
            "normalisation": NORMALISATION.constants(),
            "sampling": "frame shown at t0 + step + 0.5 s",
            "batch_size": FRAMES_PER_BATCH,
            "precision": PRECISION,
            "memory_format": "contiguous",
        }

    def load(self, weights: WeightsSource, device: str) -> str:
        """Load the image encoder with `weights` on `device`; return the hash of the weights."""
        import torch

        from pipeline.extractors.inference import load_frozen
        from pipeline.extractors.networks.clip import ImageTower, build_clip

        tower = ImageTower(build_clip(ARCHITECTURE))
        weights_hash = load_frozen(tower, IMAGE_NETWORK, weights, device, torch.contiguous_format)
        self._network = tower
        return weights_hash

    def extract(self, media: Media) -> np.ndarray:
        """Return float16 [time, 50, 512] for `media.frames[frame_size]`, uint8 [time, 224, 224, 3].

        Raises `FloatingPointError` if a value is not finite in float16.
        """
        import torch

        from pipeline.extractors.inference import run_frozen

        network = require_loaded(self._network, self.name)
        frames = media.frames[self.frame_size]
        return run_frozen(network, frames, NORMALISATION, FRAMES_PER_BATCH, torch.float16)


class TextEncoder:
    """A loaded text encoder that caches its last result, so that one pass serves both question features."""

    def __init__(self, weights: WeightsSource, device: str) -> None:
        import torch
        from open_clip import SimpleTokenizer

        from pipeline.extractors.inference import load_frozen
        from pipeline.extractors.networks.clip import TextTower, build_clip

        self._tower = TextTower(build_clip(ARCHITECTURE))
        self.weights_hash = load_frozen(self._tower, TEXT_NETWORK, weights, device, torch.contiguous_format)
        self._tokenizer = SimpleTokenizer(context_length=CONTEXT)
        self._last: tuple[tuple[str, ...], Tensor, Tensor] | None = None

    def encode(self, texts: Sequence[str]) -> "tuple[Tensor, Tensor]":
        """Return (float32 [text, 77, 512], int64 [text]): every position, and the index of the end-of-text token.

        Texts of more than 77 tokens are truncated; the last token is then the end-of-text token.
        """
        key = tuple(texts)
        if self._last is None or self._last[0] != key:
            indices = self._tokenizer([" ".join(tokenise(text)) for text in texts])
            self._last = (key, self._run(indices), (indices == self._tokenizer.eot_token_id).int().argmax(dim=1))
        return self._last[1], self._last[2]

    def _run(self, indices: "Tensor") -> "Tensor":
        """Return float32 [text, 77, 512], computed in batches of a fixed size; the last one is padded."""
        import torch

        device = next(self._tower.parameters()).device
        words = torch.empty(len(indices), CONTEXT, 512)
        with torch.inference_mode():
            for start in range(0, len(indices), TEXTS_PER_BATCH):
                rows = words[start : start + TEXTS_PER_BATCH]
                batch = torch.zeros(TEXTS_PER_BATCH, CONTEXT, dtype=torch.long)
                batch[: len(rows)] = indices[start : start + TEXTS_PER_BATCH]
                rows.copy_(self._tower(batch.to(device))[: len(rows)])
        return words


@dataclass
class CLIPSentence:
    """CLIP's embedding of a question at its end-of-text position: float32 [question, channel 512], not unit length.

    The text is the filled question without its question mark, with single spaces; the tokenizer lower-cases it.
    Source: PSTP-Net's `extract_qst_clip_feat`.
    Differs from the released code: BUG-5.7, which never writes this feature.
    """

    name = "clip-vit-b32-sentence"
    modality = "question"
    uses_vocabulary = False
    uses_weights = True
    networks = (TEXT_NETWORK,)
    dims = ("channel",)
    shape = (512,)
    dtype = "float32"
    _encoder: TextEncoder | None = field(default=None, init=False, repr=False)

    def constants(self) -> dict[str, Any]:
        """Return the settings that the values depend on, other than weights and machine, as JSON values."""
        return {"network": f"{ARCHITECTURE}, end-of-text position normed and projected", **_text_constants()}

    def check(self, texts: Sequence[str]) -> None:
        """Do nothing: CLIP's tokens can encode any text."""

    def load(self, weights: WeightsSource, device: str) -> str:
        """Load the text encoder with `weights` on `device`, or share a loaded one; return the hash of the weights."""
        self._encoder = _share_encoder(weights, device)
        return self._encoder.weights_hash

    def extract(self, texts: Sequence[str]) -> np.ndarray:
        """Return float32 [question, 512], one row per text.

        Raises `FloatingPointError` if a value is not finite.
        """
        import torch

        words, end = require_loaded(self._encoder, self.name).encode(texts)
        return _require_finite(words[torch.arange(len(words)), end]).numpy()


@dataclass
class CLIPWords:
    """CLIP's embeddings of all 77 positions of a question: float16 [question, token 77, channel 512].

    The positions are the start token, the words, the end-of-text token and padding, whose values are meaningless but
    are what PSTP-Net reads. The text is prepared as for `CLIPSentence`.
    Source: PSTP-Net's `extract_qst_clip_feat`.
    Differs from the released code: float16 instead of float32.
    """

    name = "clip-vit-b32-words"
    modality = "question"
    uses_vocabulary = False
    uses_weights = True
    networks = (TEXT_NETWORK,)
    dims = ("token", "channel")
    shape = (CONTEXT, 512)
    dtype = "float16"
    _encoder: TextEncoder | None = field(default=None, init=False, repr=False)

    def constants(self) -> dict[str, Any]:
        """Return the settings that the values depend on, other than weights and machine, as JSON values."""
        return {"network": f"{ARCHITECTURE}, every position normed and projected", **_text_constants()}

    def check(self, texts: Sequence[str]) -> None:
        """Do nothing: CLIP's tokens can encode any text."""

    def load(self, weights: WeightsSource, device: str) -> str:
        """Load the text encoder with `weights` on `device`, or share a loaded one; return the hash of the weights."""
        self._encoder = _share_encoder(weights, device)
        return self._encoder.weights_hash

    def extract(self, texts: Sequence[str]) -> np.ndarray:
        """Return float16 [question, 77, 512], one row per text.

        Raises `FloatingPointError` if a value is not finite in float16.
        """
        words, _ = require_loaded(self._encoder, self.name).encode(texts)
        return _require_finite(words.half()).numpy()


_ENCODERS: "WeakValueDictionary[tuple[WeightsSource, str], TextEncoder]" = WeakValueDictionary()


def _share_encoder(weights: WeightsSource, device: str) -> TextEncoder:
    """Return the text encoder of these weights, shared by all its users and freed with the last one."""
    encoder = _ENCODERS.get((weights, device))
    if encoder is None:
        encoder = _ENCODERS[weights, device] = TextEncoder(weights, device)
    return encoder


def _text_constants() -> dict[str, Any]:
    return {
        "version": 1,
        "text": "without question mark, single spaces, lower-cased by the tokenizer",
        "tokens": CONTEXT,
        "longer_texts": "cut, end-of-text kept",
        "batch_size": TEXTS_PER_BATCH,
        "precision": {"cpu": "float32", "cuda": "float32"},
        "memory_format": "contiguous",
    }


def _require_finite(values: "Tensor") -> "Tensor":
    if not values.isfinite().all():
        raise FloatingPointError(f"the network returned values that are not finite in {values.dtype}")
    return values
