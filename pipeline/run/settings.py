"""The settings of a run that its values depend on, and the specs of features computed under them."""

import importlib.metadata
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from pipeline.errors import UserError
from pipeline.extractors.interface import AudioChoice, FeatureExtractor, NormalisationChoice, QuestionExtractor
from pipeline.extractors.registry import make_extractor
from pipeline.extractors.weights import OnDownload, WeightsSource, find_file
from pipeline.media.decoder_process import Limits
from pipeline.media.decoders.registry import DECODERS, open_decoder
from pipeline.media.timeline import FrameSize, Padding
from pipeline.store.schema import FeatureSpec, spec_differences
from pipeline.store.writer import FEATURES, StoreWriter

THREADS_PER_WORKER = 1
# What only a process knows that has loaded networks and decoder: not compared for a feature that is not computed.
KNOWN_WHEN_LOADED = ("weights.sha256", "machine", "decoder.version")


@dataclass(frozen=True)
class Settings:
    """Everything that a worker needs to know, as plain values: picklable, and the same on every machine.

    `store`: its address. `features`: the video features that this run computes. `normalisation` selects the
    preprocessing constants, `audio` the waveform of extractors that offer a choice. `decoding_processes` is per worker.
    """

    store: str
    features: tuple[str, ...]
    weights: WeightsSource
    decoder: str
    device: str
    seconds: int
    padding: Padding
    normalisation: NormalisationChoice = "published"
    audio: AudioChoice = "resampled"
    limits: Limits = field(default_factory=Limits)
    decoding_processes: int = 1


def limit_threads() -> None:
    """Set torch's threads, if torch is loaded, to the number in the specs: it changes the last bits of results."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(THREADS_PER_WORKER)


@contextmanager
def limited_threads() -> Iterator[None]:
    """Set torch's threads to the number in the specs for the block, in a process that also does other work."""
    import torch

    before = torch.get_num_threads()
    limit_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def find_weights(
    weights: WeightsSource, extractors: Collection[FeatureExtractor | QuestionExtractor], on_download: OnDownload
) -> None:
    """Download the weights of `extractors` that are missing, so that not every worker does; raise `UserError`."""
    networks = {network.name: network for one in extractors for network in getattr(one, "networks", ())}
    for network in networks.values() if weights.kind != "seeded" else ():
        find_file(weights, network, on_download)


def make_extractors(settings: Settings) -> dict[str, FeatureExtractor]:
    """Return the extractors of the settings' features, not yet loaded."""
    return {name: make_extractor(name, settings.normalisation, settings.audio) for name in settings.features}


def make_spec(
    extractor: FeatureExtractor | QuestionExtractor, settings: Settings, weights_sha256: str | None
) -> FeatureSpec:
    """Return the spec of the feature that `extractor` computes under `settings` with weights of the given hash.

    `weights_sha256` None: the extractor is not loaded, the spec is without the constants `KNOWN_WHEN_LOADED`.
    """
    is_loaded = weights_sha256 is not None
    constants = {"extractor": extractor.constants(), "weights": settings.weights.constants()}
    if is_loaded:
        constants["weights"]["sha256"] = weights_sha256
        constants["machine"] = {
            "device": settings.device.split(":")[0],
            "torch": importlib.metadata.version("torch").split("+")[0],
            "threads": THREADS_PER_WORKER,
        }
    if extractor.modality != "question":
        rule = _sampling_rule(getattr(extractor, "frame_size", None))
        constants["sampling"] = {"rule": rule, "seconds": settings.seconds, "short": settings.padding}
        # Audio is read by PyAV, whichever of the registered decoders reads the frames.
        reads_with_pyav = extractor.modality == "audio" and settings.decoder in DECODERS
        constants["decoder"] = {"name": "pyav" if reads_with_pyav else settings.decoder}
        if is_loaded:
            constants["decoder"]["version"] = open_decoder(settings.decoder).version(extractor.modality)
    return FeatureSpec(extractor.name, extractor.modality, extractor.dims, extractor.shape, extractor.dtype, constants)


def match_spec(
    writer: StoreWriter,
    spec: FeatureSpec,
    accepted: Collection[str],
    ignore: Sequence[str] = (),
    group: str = FEATURES,
) -> int:
    """Return the index of `spec` among the feature's stored specs, or their number if it is not one of them.

    `ignore` names constants that are not compared. Raises `UserError` with the differences if the feature is stored
    with other specs and `accepted` does not contain it.
    """
    known = writer.feature_specs(spec.name, group)
    if known and known[0].is_imported:
        raise UserError(
            f"feature {spec.name} in {writer.path} was imported from arrays, which extracted rows are never mixed "
            "with: continue it with mavqa-import-features, or pass another --store"
        )
    for index, other in enumerate(known):
        if not spec_differences(other, spec, tuple(ignore)):
            return index
    if known and spec.name not in accepted:
        listed = "; ".join(spec_differences(known[0], spec, tuple(ignore)))
        raise UserError(
            f"feature {spec.name} in {writer.path} was computed with other settings: {listed}. Use the same settings, "
            f"another --store, or --accept {spec.name} to allow both in one feature"
        )
    return len(known)


def _sampling_rule(size: FrameSize | None) -> str:
    if size is None:
        return "audio of each second"
    if size.per_second == 1:
        return "frame shown at the middle of each second"
    return f"frames shown at the middles of {size.per_second} equal parts of each second"
