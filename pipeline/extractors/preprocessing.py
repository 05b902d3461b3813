"""Constants that several extractors share and record in their specs. torch is not imported."""

from dataclasses import asdict, dataclass
from typing import Any

PRECISION = {"cpu": "float32", "cuda": "float16 autocast"}
# With fewer output channels, Winograd's transforms cost as much as they save.
MIN_CHANNELS = 128


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation per channel (red, green, blue) for frames in [0, 1]."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def constants(self) -> dict[str, Any]:
        """Return mean and standard deviation as JSON values."""
        return {key: list(value) for key, value in asdict(self).items()}


KINETICS = Normalisation(mean=(0.43216, 0.394666, 0.37645), std=(0.22803, 0.22145, 0.216989))
IMAGENET = Normalisation(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def convolutions(outputs: int) -> dict[str, str]:
    """Return the algorithm of 3x3 convolutions by device: Winograd with `outputs` x `outputs` tiles, or cuDNN."""
    return {"cpu": f"winograd F({outputs}x{outputs}, 3x3) to {MIN_CHANNELS} channels or more", "cuda": "cudnn"}
