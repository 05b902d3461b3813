"""What a run computes, and checks of it against the manifest, the videos folder and the store.

The checks are made before any video is decoded.
"""

import importlib.metadata
import math
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipeline.errors import UserError
from pipeline.extractors.interface import FeatureExtractor, NormalisationChoice, QuestionExtractor
from pipeline.extractors.registry import DEFAULT_FEATURES, EXTRACTORS, QUESTION_EXTRACTORS, make_extractor
from pipeline.extractors.weights import WeightsSource, hub_cache, parse_weights
from pipeline.machine import available_cores, sees_gpu, visible_gpus
from pipeline.manifests.manifest import Manifest
from pipeline.media.decoder_process import Limits
from pipeline.media.decoders.registry import choose_decoder, open_decoder
from pipeline.media.timeline import FrameSize, Padding
from pipeline.run.cluster import GPU, ClusterOptions, offers_label
from pipeline.store.location import has_store, locate
from pipeline.store.reader import open_store
from pipeline.store.schema import FeatureSpec, spec_differences
from pipeline.store.writer import FEATURES, StoreWriter

THREADS_PER_WORKER = 1
# Networks on a GPU wait for frames: several decoder processes feed one worker.
CORES_PER_GPU_WORKER = 4


@dataclass(frozen=True)
class ExtractionPlan:
    """Everything a worker needs to know, as plain values: picklable, and the same on every machine.

    `features` are features of videos; `question_features` are features of question texts, computed by the coordinator.
    `normalisation` selects the preprocessing constants of extractors that offer a choice. `device` is the workers'
    device, `question_device` the coordinator's if it differs. `decoding_processes` is per worker.
    """

    store: str
    features: tuple[str, ...]
    question_features: tuple[str, ...]
    weights: WeightsSource
    decoder: str
    device: str
    seconds: int
    padding: Padding
    normalisation: NormalisationChoice = "published"
    limits: Limits = field(default_factory=Limits)
    question_device: str | None = None
    decoding_processes: int = 1

    def for_questions(self) -> "ExtractionPlan":
        """Return the plan for the coordinator, which computes the question features itself."""
        return replace(self, device=self.question_device or self.device)


@dataclass(frozen=True)
class StoredChoices:
    """The settings that an existing store fixes, or the defaults of a new one (`auto`: not fixed)."""

    seconds: int = 60
    decoder: str = "auto"


def stored_choices(path: str) -> StoredChoices:
    """Return the seconds and the decoder of the store at `path`, or the defaults if there is no store."""
    if not has_store(locate(path)):
        return StoredChoices()
    store = open_store(path)
    decoders = [store.spec(name).constants["decoder"]["name"] for name in store.feature_names]
    return StoredChoices(store.seconds, decoders[0] if decoders else StoredChoices.decoder)


@dataclass(frozen=True)
class Requested:
    """What the user asks of a run, with the meaning of the options of `mavqa-extract`; None: the default."""

    features: Sequence[str] = DEFAULT_FEATURES
    weights: str = "pretrained"
    decoder: str = "auto"
    device: str = "auto"
    seconds: int | None = None
    padding: Padding = "pad"
    normalisation: NormalisationChoice = "published"
    workers: int | None = None
    decoding_processes: int | None = None
    scheduler: str | None = None
    max_cpu_seconds: int | None = None
    max_memory_gb: float = Limits.memory_bytes / 1e9
    max_pixels: int = Limits.max_pixels
    max_file_gb: float = Limits.file_bytes / 1e9

    @property
    def limits(self) -> Limits:
        """The limits of decoding one file."""
        return Limits(
            cpu_seconds=self.max_cpu_seconds,
            memory_bytes=round(self.max_memory_gb * 1e9),
            file_bytes=round(self.max_file_gb * 1e9),
            max_pixels=self.max_pixels,
        )


@dataclass(frozen=True)
class Prepared:
    """A plan, the workers to run it on, and `notes` for the user on what was chosen."""

    plan: ExtractionPlan
    cluster: ClusterOptions
    notes: tuple[str, ...]


def make_plan(store: str, requested: Requested) -> Prepared:
    """Return the plan of a run that extracts into `store`, with every default resolved.

    Raises `UserError` if a feature is unknown, or if the weights, the decoder or the device are not available.
    """
    if requested.workers and requested.scheduler:
        raise UserError("--workers starts local workers, --scheduler uses existing ones: pass only one of them")
    stored = stored_choices(store)
    features, question_features = _split_features(requested.features)
    weights = parse_weights(requested.weights, hub_cache())
    device, question_device = _choose_devices(requested.device, requested.scheduler)
    cores_per_worker = CORES_PER_GPU_WORKER if device == "cuda" else 1
    decoder, reason = requested.decoder, "as requested"
    if decoder == "auto":
        decoder, reason = (stored.decoder, "the store's decoder") if stored.decoder != "auto" else choose_decoder()
    notes = [f"decoder: {decoder}, {reason}: {open_decoder(decoder).version()}"]
    if weights.kind == "seeded":
        notes.append("weights: seeded (random networks, for trials; not comparable with published features)")
    plan = ExtractionPlan(
        store=store,
        features=features,
        question_features=question_features,
        weights=weights,
        decoder=decoder,
        device=device,
        question_device=question_device,
        seconds=requested.seconds or stored.seconds,
        padding=requested.padding,
        normalisation=requested.normalisation,
        limits=requested.limits,
        decoding_processes=requested.decoding_processes or cores_per_worker,
    )
    label = GPU if requested.scheduler and device == "cuda" else ""
    gpus = visible_gpus() if device == "cuda" and not requested.scheduler else ()
    workers = requested.workers or max(len(gpus), math.ceil(available_cores() / cores_per_worker))
    return Prepared(plan, ClusterOptions(workers, requested.scheduler, label, gpus=gpus), tuple(notes))


def _split_features(names: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the video features and the question features among `names`; raise `UserError` if one is unknown."""
    unique = tuple(dict.fromkeys(names))
    unknown = [name for name in unique if name not in EXTRACTORS and name not in QUESTION_EXTRACTORS]
    if unknown or not unique:
        known = ", ".join([*EXTRACTORS, *QUESTION_EXTRACTORS])
        problem = f"unknown feature {', '.join(unknown)}" if unknown else "no feature is named"
        raise UserError(f"--features {','.join(names)!r}: {problem}: choose from {known}")
    return tuple(n for n in unique if n in EXTRACTORS), tuple(n for n in unique if n in QUESTION_EXTRACTORS)


def _choose_devices(name: str, scheduler: str | None) -> tuple[str, str]:
    """Return the device of the workers, and that of this process, which computes the question features."""
    if name == "cpu":
        return name, name
    here = "cuda" if sees_gpu() else "cpu"
    if scheduler:
        return "cuda" if name == "cuda" or offers_label(scheduler, GPU) else "cpu", here
    if name == "cuda" and here == "cpu":
        raise UserError("--device cuda: torch finds no CUDA device here: install a driver, or pass --device cpu")
    return here, here


def check_manifest_fits(manifest: Manifest, plan: ExtractionPlan) -> None:
    """Raise `UserError` if the manifest has no videos, or a question without text or about an unlisted video."""
    if plan.features and not manifest.videos:
        raise UserError(f"the manifest of {manifest.name} lists no videos: build it again, or fix its videos.csv")
    known = {video.video_id for video in manifest.videos}
    for split in manifest.splits:
        for question in manifest.questions[split]:
            if not question.text:
                raise UserError(f"question {question.question_id} of split {split} has no text: fix the manifest")
            if question.video_id not in known:
                raise UserError(
                    f"question {question.question_id} of split {split} is about video {question.video_id!r}, which "
                    f"videos.csv does not list: fix the manifest ('mavqa-manifest check' reports all of them)"
                )


def check_padding(plan: ExtractionPlan) -> None:
    """Raise `UserError` if a feature samples several frames per second under the padding `released`."""
    sizes = {name: make_extractor(name).frame_size for name in plan.features if plan.padding == "released"}
    for name, size in sizes.items():
        if size is not None and size.per_second > 1:
            raise UserError(
                f"--padding released counts single frames, but {name} samples {size.per_second} per second: "
                f"pass --padding pad or cycle, or remove {name} from --features"
            )


def check_videos_folder(folder: Path, manifest: Manifest) -> None:
    """Raise `UserError` if `folder` is missing or contains none of the manifest's videos."""
    source = f" (from {manifest.source})" if manifest.source else ""
    remedy = (
        f"put the videos of {manifest.name}{source} there, named as in videos.csv, or pass their folder with --videos"
    )
    if not folder.is_dir():
        raise UserError(f"videos folder {folder} does not exist: {remedy}")
    if manifest.videos and not any(os.path.exists(folder / video.path) for video in manifest.videos):
        raise UserError(
            f"videos folder {folder} contains none of the {len(manifest.videos)} videos, such as "
            f"{manifest.videos[0].path}: {remedy}"
        )


def match_videos(writer: StoreWriter, manifest: Manifest) -> dict[str, int]:
    """Return {video id: row} of the store, with the rows that the manifest's new videos will get.

    Raises `UserError` if a video's file differs from the one that the store was extracted from.
    """
    stored = writer.video_ids()
    rows = {video_id: row for row, video_id in enumerate(stored)}
    found = writer.read_index("videos/source_sha256")
    for video in manifest.videos:
        row = rows.setdefault(video.video_id, len(rows))
        known = str(found[row]) if row < len(stored) else ""
        if known and video.sha256 and known != video.sha256:
            raise UserError(
                f"video {video.video_id}: the store was extracted from a file with sha256 {known}, the manifest lists "
                f"{video.sha256}: use another --store, or the manifest that this store was extracted with"
            )
    return rows


def make_spec(
    extractor: FeatureExtractor | QuestionExtractor, plan: ExtractionPlan, weights_sha256: str
) -> FeatureSpec:
    """Return the spec of the feature that `extractor` computes under `plan` with weights of the given hash."""
    constants = {
        "extractor": extractor.constants(),
        "weights": {**plan.weights.constants(), "sha256": weights_sha256},
        "machine": {
            "device": plan.device.split(":")[0],
            "torch": importlib.metadata.version("torch").split("+")[0],
            "threads": THREADS_PER_WORKER,
        },
    }
    if extractor.modality != "question":
        rule = _sampling_rule(getattr(extractor, "frame_size", None))
        constants["sampling"] = {"rule": rule, "seconds": plan.seconds, "short": plan.padding}
        constants["decoder"] = {
            "name": plan.decoder,
            "version": open_decoder(plan.decoder).version(extractor.modality),
        }
    return FeatureSpec(extractor.name, extractor.modality, extractor.dims, extractor.shape, extractor.dtype, constants)


def match_spec(
    writer: StoreWriter,
    spec: FeatureSpec,
    accepted: Collection[str],
    ignore: Sequence[str] = (),
    group: str = FEATURES,
    is_idle: bool = False,
) -> int:
    """Return the index of `spec` among the feature's stored specs; 0 if the feature is new.

    A spec that differs is recorded if `accepted` contains the feature, unless the run is idle, that is, computes no row
    (`spec` is incomplete then). `ignore` names constants that are not compared.
    Raises `UserError` with the differences if the feature was not accepted.
    """
    known = writer.feature_specs(spec.name, group)
    matches = [index for index, other in enumerate(known) if not spec_differences(other, spec, tuple(ignore))]
    if matches or not known:
        return matches[0] if matches else 0
    if spec.name in accepted:
        if not is_idle:
            writer.accept(spec, group)
        return len(known)
    listed = "; ".join(spec_differences(known[0], spec, tuple(ignore)))
    raise UserError(
        f"feature {spec.name} in {writer.path} was computed with other settings: {listed}. Use the same settings, "
        f"another --store, or --accept {spec.name} to allow both in one feature"
    )


def _sampling_rule(size: FrameSize | None) -> str:
    if size is None:
        return "audio of each second"
    if size.per_second == 1:
        return "frame shown at the middle of each second"
    return f"frames shown at the middles of {size.per_second} equal parts of each second"
