"""What the user asks of an extraction run: the options of `mavqa-extract`, as plain values."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.extractors.interface import AudioChoice, NormalisationChoice
from pipeline.extractors.registry import DEFAULT_FEATURES
from pipeline.media.decoder_process import Limits
from pipeline.media.timeline import Padding


@dataclass(frozen=True)
class Request:
    """The options of a run, with the meaning and the names of those of `mavqa-extract`; None: the default."""

    features: Sequence[str] = DEFAULT_FEATURES
    weights: str = "pretrained"
    decoder: str = "auto"
    device: str = "auto"
    seconds: int | None = None
    padding: Padding | None = None
    normalisation: NormalisationChoice | None = None
    audio: AudioChoice | None = None
    workers: int | None = None
    decoding_processes: int | None = None
    scheduler: str | None = None
    max_cpu_seconds: int | None = None
    max_memory_gb: float = Limits.memory_bytes / 1e9
    max_pixels: int = Limits.max_pixels
    max_file_gb: float = Limits.file_bytes / 1e9
    retry_failed: bool = False
    accept: Sequence[str] = ()
    break_lock: bool = False

    @property
    def limits(self) -> Limits:
        """The limits of decoding one file."""
        return Limits(
            cpu_seconds=self.max_cpu_seconds,
            memory_bytes=round(self.max_memory_gb * 1e9),
            file_bytes=round(self.max_file_gb * 1e9),
            max_pixels=self.max_pixels,
        )
