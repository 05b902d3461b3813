"""The interfaces of stage one: feature extractors of videos and of questions."""

from collections.abc import Sequence
from typing import Any, Literal, Protocol, TypeVar

import numpy as np

from pipeline.extractors.weights import WeightsSource
from pipeline.media.timeline import FrameSize, Media

NormalisationChoice = Literal["published", "trained"]
AudioChoice = Literal["resampled", "released"]
Loaded = TypeVar("Loaded")


class FeatureExtractor(Protocol):
    """A frozen network that computes one named feature from decoded media.

    An instance is small and picklable until `load`: workers receive it and load it once. A class with an attribute
    `normalisations` {"published" | "trained": constants} is built with the keyword `normalisation`, one of its values.
    A class with an attribute `audio_choices`, which lists "resampled" and "released", is built with the keyword
    `audio`, one of them, and keeps it as attribute: "released" reads `Media.released_waveform`. The weights of an
    attribute `networks`, a tuple of `Network`, are downloaded before workers start.

    - `name`: the feature's name in the store, the one under which the extractor is registered.
    - `modality`: "audio" or "visual", the track that it reads.
    - `dims`, `shape`, `dtype`: axes, lengths and type of one time step, such as ("channel", "height", "width"),
      (512, 14, 14), "float16".
    - `frame_size`: the frames to decode for it; None for audio.
    """

    name: str
    modality: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    frame_size: FrameSize | None

    def constants(self) -> dict[str, Any]:
        """Return the settings that the values depend on, other than weights and machine, as JSON values.

        They are part of the feature's fingerprint. `version` is changed when the same settings give other values.
        """
        ...

    def load(self, weights: WeightsSource, device: str) -> str:
        """Load the network with `weights` on `device`; return the SHA-256 of the weights, "" if there are none."""
        ...

    def extract(self, media: Media) -> np.ndarray:
        """Return `[time, *shape]` for a video whose modality is complete, one row per time step of that modality.

        Raises `FloatingPointError` if a value is not finite in `dtype`; the feature of this video then fails.
        """
        ...


class QuestionExtractor(Protocol):
    """Computes one named feature from question texts; small and picklable until `load`.

    - `name`: the feature's name in the store, the one under which the extractor is registered; with a vocabulary,
      followed by a hyphen and what identifies the vocabulary. `modality` is "question".
    - `uses_vocabulary`: whether it needs a frozen vocabulary, its only argument.
    - `uses_weights`: whether it runs a network. Features of the same network share one instance of it. The weights of
      an attribute `networks` are downloaded before it is loaded.
    - `dims`, `shape`, `dtype`: axes, lengths and type of one question.
    """

    name: str
    modality: str
    uses_vocabulary: bool
    uses_weights: bool
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str

    def constants(self) -> dict[str, Any]:
        """Return the settings that the values depend on, other than weights and machine, as JSON values."""
        ...

    def check(self, texts: Sequence[str]) -> None:
        """Raise `UserError` for a text that cannot be encoded; does not require `load`."""
        ...

    def load(self, weights: WeightsSource, device: str) -> str:
        """Load the network, if any, with `weights` on `device`; return the hash of the weights, "" if none."""
        ...

    def extract(self, texts: Sequence[str]) -> np.ndarray:
        """Return `[question, *shape]`, one row per text; raise `FloatingPointError` if a value is not finite."""
        ...


def require_loaded(loaded: Loaded | None, name: str) -> Loaded:
    """Return `loaded`, or raise RuntimeError if it is None: `load` of the extractor `name` was not called."""
    if loaded is None:
        raise RuntimeError(f"extractor {name}: extract was called before load")
    return loaded
