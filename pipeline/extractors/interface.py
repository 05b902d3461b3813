"""The interfaces of stage one: feature extractors of videos and of questions."""

from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np

from pipeline.extractors.weights import WeightsSource
from pipeline.media.timeline import FrameSize, Media

NormalisationChoice = Literal["published", "trained"]


class FeatureExtractor(Protocol):
    """A frozen network that computes one named feature from decoded media.

    An instance is small and picklable until `load`: workers receive it and load it once.
    """

    name: str
    modality: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    frame_size: FrameSize | None

    def constants(self) -> dict[str, Any]:
        """Return the settings that the values depend on, other than weights and machine, as JSON values."""
        ...

    def load(self, weights: WeightsSource, device: str) -> str:
        """Load the network with `weights` on `device`; return the hash of the weights."""
        ...

    def extract(self, media: Media) -> np.ndarray:
        """Return [time, *shape] for a video whose modality is complete, one row per time step of that modality."""
        ...


class QuestionExtractor(Protocol):
    """Computes one named feature from question texts; small and picklable until `load`.

    `uses_vocabulary`: whether it needs a frozen vocabulary; `uses_weights`: whether it runs a network.
    Features of the same network share one instance of the network.
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
        """Return [question, *shape], one row per text; raise `FloatingPointError` if a value is not finite."""
        ...
