"""The features of single files, as the store of a training has them, in memory: for questions about new videos.

They are computed by the specs of stored features, with the code of the workers, so that the same file has the same
values as in the store. What cannot be the same is refused, or said if it changes last bits at most.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np

from pipeline.errors import UserError
from pipeline.extractors.interface import FeatureExtractor, QuestionExtractor
from pipeline.extractors.registry import find_choices, make_extractor, make_question_extractor
from pipeline.extractors.weights import OnDownload, WeightsSource, hub_cache, parse_weights
from pipeline.machine import sees_gpu
from pipeline.manifests.manifest import Vocabulary
from pipeline.media.decoder_process import DecoderProcess, Limits
from pipeline.media.timeline import Media, Padding
from pipeline.run.one_file import decode_file, extract_feature, request_for
from pipeline.run.settings import KNOWN_WHEN_LOADED, Settings, find_weights, limited_threads, make_spec
from pipeline.store.memory import HeldFeature, hold
from pipeline.store.reader import FeatureStore
from pipeline.store.schema import FeatureSpec, State, spec_differences

# Constants that may differ between a training and a new file: they change the rounding of values.
ROUNDING = ("machine", "decoder.version")
# The largest amplitude of a waveform (in [-1, 1]) that counts as silent, and of a pixel (0 to 255) that is black.
SILENT_AMPLITUDE = 1e-3
BLACK_PIXEL = 32


@dataclass(frozen=True)
class ExtractedFile:
    """The features of one file.

    `store`: a store in memory of the file and the questions. `hints` {modality: text}: what is odd about a complete
    modality, such as silence.
    """

    store: FeatureStore
    hints: dict[str, str]


@dataclass(frozen=True)
class _Loaded:
    """An extractor with loaded weights, the settings that it runs under, and the spec of what it computes here."""

    extractor: FeatureExtractor | QuestionExtractor
    settings: Settings
    spec: FeatureSpec


class InMemoryExtractor:
    """Computes the features of `specs`, of videos and of questions, for one file at a time.

    `vocabulary`: of the tokens, None without them. `weights`: as for `mavqa-extract`; None: seeded ones if the specs
    have them, else the published ones. `device`: cpu or cuda; "auto" is that of the specs if it is available, else the
    CPU. The decoder process is started on demand and ended by `close`, or at the end of a `with` block.
    Raises `UserError` if a feature cannot be computed here as its spec says: weights, settings or decoder differ, or
    features were decoded in different ways.
    """

    def __init__(
        self,
        specs: Sequence[FeatureSpec],
        vocabulary: Vocabulary | None = None,
        *,
        weights: str | None = None,
        device: str = "auto",
        on_download: OnDownload = lambda name, done, total: None,
    ) -> None:
        self._specs, self._vocabulary = specs, vocabulary
        self._weights, self._on_download = weights, on_download
        self.device = _choose_device(device, specs)
        of_videos = [spec for spec in specs if spec.modality != "question"]
        self.seconds: int = _same(of_videos, "sampling", "seconds")
        self._padding: Padding = _same(of_videos, "sampling", "short")
        # Audio is read by PyAV, unless the decoder is the user's own.
        of_decoder = [
            spec for spec in of_videos if spec.modality == "visual" or ":" in _constant(spec, "decoder", "name")
        ]
        self._decoder_name: str = _same(of_decoder or of_videos, "decoder", "name")
        for spec in specs:
            self._check_settings(spec)
        self._decoder = DecoderProcess(self._decoder_name, Limits())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def close(self) -> None:
        """End the decoder process; the next file starts another one."""
        self._decoder.close()

    @cached_property
    def differences(self) -> tuple[str, ...]:
        """What differs from the training without changing more than the rounding of features, one text each.

        Loads the networks. Raises `UserError` if weights are missing or others than those of the specs.
        """
        listed = (
            difference
            for loaded, spec in zip(self._loaded, self._specs, strict=True)
            for difference in spec_differences(spec, loaded.spec, _unused_by(loaded.extractor))
        )
        return tuple(dict.fromkeys(listed))

    def extract(self, path: Path, texts: Sequence[str] = ()) -> ExtractedFile:
        """Return the features of the file at `path`, and those of the unique question `texts`.

        A modality that is missing or cannot be decoded is absent or failed in the store, with the reason. Raises
        `UserError` if a text cannot be encoded.
        """
        of_videos = [loaded for loaded in self._loaded if loaded.spec.modality != "question"]
        extractors: list[FeatureExtractor] = [loaded.extractor for loaded in of_videos]  # type: ignore[misc]
        request = request_for(extractors, of_videos[0].settings)
        record, media = decode_file(path, "", self._decoder, request, Limits().file_bytes)
        with limited_threads():
            held = []
            for extractor, loaded in zip(extractors, of_videos, strict=True):
                state, reason, values = extract_feature(extractor, media, loaded.settings, loaded.spec)
                held.append(HeldFeature(loaded.spec, state, reason, values))
            texts = tuple(dict.fromkeys(texts))
            questions = self._encode(texts) if texts else []
        name = path.name.encode(errors="replace").decode()
        store = hold(name, self.seconds, record, held, texts, questions)
        return ExtractedFile(store, describe_oddities(media))

    def _encode(self, texts: Sequence[str]) -> list[tuple[FeatureSpec, np.ndarray]]:
        """Return (spec, values [text, ...]) of each question feature."""
        extractors = [(loaded.spec, loaded.extractor) for loaded in self._loaded if loaded.spec.modality == "question"]
        if self._vocabulary is not None:
            tokens = make_question_extractor("tokens", self._vocabulary)
            extractors.append((make_spec(tokens, self._settings(tokens.name, WeightsSource("seeded")), ""), tokens))
        encoded = []
        for spec, extractor in extractors:
            extractor.check(texts)  # type: ignore[union-attr]
            encoded.append((spec, extractor.extract(texts)))  # type: ignore[arg-type]
        return encoded

    @cached_property
    def _loaded(self) -> tuple[_Loaded, ...]:
        return tuple(map(self._load, self._specs))

    def _load(self, spec: FeatureSpec) -> _Loaded:
        """Load the extractor of `spec`. Raises `UserError` if its weights are others than those of the spec."""
        extractor = self._make(spec)
        source = self._source(spec)
        settings = self._settings(spec.name, source)
        find_weights(source, [extractor], self._on_download)
        own = make_spec(extractor, settings, extractor.load(source, self.device))
        if differing := spec_differences(spec, own, (*ROUNDING, *_unused_by(extractor))):
            raise UserError(
                f"{spec.name} of the training cannot be computed with these weights ({'; '.join(differing)}): pass the "
                "folder of the weights that it was extracted with as --weights"
            )
        return _Loaded(extractor, settings, own)

    def _check_settings(self, spec: FeatureSpec) -> None:
        """Raise `UserError` if this version of mavqa computes other values than `spec`, whatever the weights."""
        own = make_spec(self._make(spec), self._settings(spec.name, self._source(spec)), None)
        if differing := spec_differences(spec, own, (*KNOWN_WHEN_LOADED, "weights")):
            raise UserError(
                f"{spec.name} of the training cannot be computed here: {'; '.join(differing)}: use the version of "
                "mavqa that extracted it, or train on a store of this version"
            )

    def _make(self, spec: FeatureSpec) -> FeatureExtractor | QuestionExtractor:
        if spec.modality == "question":
            return make_question_extractor(spec.name, self._vocabulary or Vocabulary((), ()))
        return make_extractor(spec.name, **find_choices(spec))  # type: ignore[arg-type]

    def _source(self, spec: FeatureSpec) -> WeightsSource:
        if self._weights is not None:
            return parse_weights(self._weights, hub_cache())
        if _constant(spec, "weights", "weights") == "seeded":
            return WeightsSource("seeded", seed=_constant(spec, "weights", "seed"))
        return WeightsSource("pretrained", hub_cache())

    def _settings(self, feature: str, source: WeightsSource) -> Settings:
        return Settings("", (feature,), source, self._decoder_name, self.device, self.seconds, self._padding)


def _choose_device(name: str, specs: Sequence[FeatureSpec]) -> str:
    """Return the device of the networks; "auto" is that of the specs if this machine has it."""
    if name == "auto":
        of_specs = {spec.constants.get("machine", {}).get("device") for spec in specs}
        return "cuda" if "cuda" in of_specs and sees_gpu() else "cpu"
    if name != "cpu" and not sees_gpu():
        raise UserError(f"--device {name}: torch finds no CUDA device here: install a driver, or pass --device cpu")
    return name


def _unused_by(extractor: FeatureExtractor | QuestionExtractor) -> tuple[str, ...]:
    """Return the constants of a spec that the values of `extractor` do not depend on."""
    return () if getattr(extractor, "uses_weights", True) else ("weights", "machine")


def _constant(spec: FeatureSpec, group: str, name: str) -> Any:
    try:
        return spec.constants[group][name]
    except KeyError:
        raise UserError(
            f"the spec of {spec.name} has no {group}.{name}: it is not one of mavqa-extract, from which a new file's "
            "features could be computed"
        ) from None


def _same(specs: Sequence[FeatureSpec], group: str, name: str) -> Any:
    """Return the constant that all `specs` have in common; raise `UserError` if they differ."""
    found = {spec.name: _constant(spec, group, name) for spec in specs}
    if len(set(found.values())) != 1:
        listed = ", ".join(f"{feature}: {value}" for feature, value in found.items())
        raise UserError(
            f"the features of the training have different values of {group}.{name} ({listed}), which one file cannot "
            "have: extract them into one store with the same settings, and train on that"
        )
    return next(iter(found.values()))


def describe_oddities(media: Media) -> dict[str, str]:
    """Return {modality: text} of the complete modalities without content: silence, black frames."""
    oddities = {}
    if media.audio.state is State.COMPLETE and np.abs(media.waveform).max(initial=0) <= SILENT_AMPLITUDE:
        oddities["audio"] = "silent"
    frames = list(media.frames.values())
    if media.visual.state is State.COMPLETE and frames and frames[0].max(initial=0) <= BLACK_PIXEL:
        oddities["visual"] = "black"
    return oddities
