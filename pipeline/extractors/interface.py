"""The roles in stage one: what a feature extractor is. It holds no implementation."""

from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np

from pipeline.extractors.weights import WeightsSource
from pipeline.media.timeline import FrameSize, Media

NormalisationChoice = Literal["published", "trained"]


class FeatureExtractor(Protocol):
    """A frozen network that turns decoded media into one named feature.

    An instance is light and picklable until `load`: workers receive the instance and load it once.
    """

    name: str
    modality: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    frame_size: FrameSize | None

    def constants(self) -> dict[str, Any]:
        """Return everything but weights and machine that the numbers depend on, as JSON values."""
        ...

    def load(self, weights: WeightsSource, device: str) -> str:
        """Build the network with `weights` on `device`; return the hash of the weights used."""
        ...

    def extract(self, media: Media) -> np.ndarray:
        """Return [time, *shape] for a video whose modality is complete, one row per step of that modality."""
        ...


class QuestionExtractor(Protocol):
    """What turns question texts into one named feature; light and picklable until `load`.

    `uses_vocabulary`: whether it is made for one frozen vocabulary; `uses_weights`: whether it is a network.
    Several features of one network share it.
    """

    name: str
    modality: str
    uses_vocabulary: bool
    uses_weights: bool
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str

    def constants(self) -> dict[str, Any]:
        """Return everything but weights and machine that the numbers depend on, as JSON values."""
        ...

    def check(self, texts: Sequence[str]) -> None:
        """Raise `UserError` for a text that it cannot take; needs no `load`."""
        ...

    def load(self, weights: WeightsSource, device: str) -> str:
        """Build what it needs with `weights` on `device`; return the hash of the weights, "" for none."""
        ...

    def extract(self, texts: Sequence[str]) -> np.ndarray:
        """Return [question, *shape], one row per text; raise FloatingPointError where a value is not finite."""
        ...
