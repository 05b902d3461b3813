"""What extractors share that needs no torch: constants of frames and numbers, a guard against use before loading."""

from dataclasses import asdict, dataclass
from typing import Any, TypeVar

Loaded = TypeVar("Loaded")

PRECISION = {"cpu": "float32", "cuda": "float16 autocast"}
# Winograd's convolutions pay from so many output channels on: with fewer, transforms cost what products save.
LEAST_CHANNELS = 128


@dataclass(frozen=True)
class Normalisation:
    """Per-channel constants (red, green, blue) that frames in [0, 1] are shifted and scaled by."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def constants(self) -> dict[str, Any]:
        """Return the numbers as JSON values."""
        return {key: list(value) for key, value in asdict(self).items()}


KINETICS = Normalisation(mean=(0.43216, 0.394666, 0.37645), std=(0.22803, 0.22145, 0.216989))
IMAGENET = Normalisation(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def convolutions(outputs: int) -> dict[str, str]:
    """Return how 3x3 convolutions are done: `networks.winograd` with tiles of `outputs` results a side, or cuDNN."""
    return {"cpu": f"winograd F({outputs}x{outputs}, 3x3) to {LEAST_CHANNELS} channels or more", "cuda": "cudnn"}


def require_loaded(loaded: Loaded | None, name: str) -> Loaded:
    """Return what `load` made; raise RuntimeError where the extractor `name` was not loaded."""
    if loaded is None:
        raise RuntimeError(f"{name} extracts before load was called")
    return loaded
