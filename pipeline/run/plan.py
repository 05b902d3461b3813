"""The plan of a run, decided before anything is written: what is asked, what the store holds, whether they fit."""

import importlib.metadata
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.extractors.interface import FeatureExtractor, NormalisationChoice, QuestionExtractor
from pipeline.extractors.registry import make_extractor
from pipeline.extractors.weights import WeightsSource
from pipeline.manifests.manifest import Manifest
from pipeline.media.decoder_process import Limits
from pipeline.media.decoders.registry import open_decoder
from pipeline.media.timeline import FrameSize, Short
from pipeline.store.location import has_store, locate
from pipeline.store.reader import open_store
from pipeline.store.schema import FeatureSpec, spec_differences
from pipeline.store.writer import FEATURES, StoreWriter

THREADS_PER_WORKER = 1


@dataclass(frozen=True)
class ExtractionPlan:
    """Everything a worker needs to know, as plain values: a task is picklable and the same on every machine.

    `features` are of videos, `question_features` of question texts (those are made by the coordinator).
    `normalisation` is the preprocessing constants' choice of those extractors that have one. `device` is the workers';
    the coordinator's own may be another, `question_device`. `decoding_processes` are those of one worker.
    """

    store: str
    features: tuple[str, ...]
    question_features: tuple[str, ...]
    weights: WeightsSource
    decoder: str
    device: str
    seconds: int
    short: Short
    normalisation: NormalisationChoice = "published"
    limits: Limits = field(default_factory=Limits)
    question_device: str | None = None
    decoding_processes: int = 1

    def for_questions(self) -> "ExtractionPlan":
        """Return the plan as the coordinator follows it, which makes the questions' features itself."""
        return replace(self, device=self.question_device or self.device)


@dataclass(frozen=True)
class StoredChoices:
    """What an existing store already fixed, and the defaults of a new one; `auto` is no store's decoder."""

    seconds: int = 60
    decoder: str = "auto"


def stored_choices(path: str) -> StoredChoices:
    """Return the seconds and the decoder of the store at `path`, or the defaults where there is none yet."""
    if not has_store(locate(path)):
        return StoredChoices()
    store = open_store(path)
    decoders = [store.spec(name).constants["decoder"]["name"] for name in store.feature_names]
    return StoredChoices(store.seconds, decoders[0] if decoders else StoredChoices.decoder)


def check_manifest_fits(manifest: Manifest, plan: ExtractionPlan) -> None:
    if plan.features and not manifest.videos:
        raise UserError(f"the manifest of {manifest.name} names no videos: build it again, or mend its videos.csv")
    known = {video.video_id for video in manifest.videos}
    for split in manifest.splits:
        for question in manifest.questions[split]:
            if not question.text:
                raise UserError(f"question {question.question_id} of split {split} has no text: mend the manifest")
            if question.video_id not in known:
                raise UserError(
                    f"question {question.question_id} of split {split} is about video {question.video_id!r}, which "
                    f"videos.csv does not name: mend the manifest ('mavqa-manifest check' lists them all)"
                )


def check_padding(plan: ExtractionPlan) -> None:
    sizes = {name: make_extractor(name).frame_size for name in plan.features if plan.short == "released"}
    for name, size in sizes.items():
        if size is not None and size.per_second > 1:
            raise UserError(
                f"--short released counts single frames, and {name} reads {size.per_second} of each second: "
                f"give --short pad or cycle, or leave {name} out of --features"
            )


def check_videos_folder(folder: Path, manifest: Manifest) -> None:
    """Raise `UserError` where `folder` is not there or holds none of the manifest's videos."""
    source = f" (from {manifest.source})" if manifest.source else ""
    fill = (
        f"put the videos of {manifest.name}{source} there, as videos.csv names them, or name their folder with --videos"
    )
    if not folder.is_dir():
        raise UserError(f"videos folder {folder} does not exist: {fill}")
    if manifest.videos and not any(os.path.exists(folder / video.path) for video in manifest.videos):
        raise UserError(
            f"videos folder {folder} holds none of the {len(manifest.videos)} videos, such as "
            f"{manifest.videos[0].path}: {fill}"
        )


def match_videos(writer: StoreWriter, manifest: Manifest) -> dict[str, int]:
    """Return the row that each of the manifest's videos has, or will have once it is appended."""
    stored = writer.video_ids()
    rows = {video_id: row for row, video_id in enumerate(stored)}
    found = writer.read_index("videos/source_sha256")
    for video in manifest.videos:
        row = rows.setdefault(video.video_id, len(rows))
        known = str(found[row]) if row < len(stored) else ""
        if known and video.sha256 and known != video.sha256:
            raise UserError(
                f"video {video.video_id}: the store was made from a file with sha256 {known}, the manifest names "
                f"{video.sha256}: use another --store, or the manifest that this store was made with"
            )
    return rows


def make_spec(extractor: FeatureExtractor | QuestionExtractor, plan: ExtractionPlan, weights_sha256: str) -> FeatureSpec:
    """Return the description of what `extractor` makes under `plan`, with the given hash of its weights."""
    constants = {
        "extractor": extractor.constants(),
        "weights": {**plan.weights.constants(), "sha256": weights_sha256},
        "machine": _machine(plan.device),
    }
    if extractor.modality != "question":
        constants["sampling"] = {"rule": _sampling_rule(getattr(extractor, "frame_size", None)), "short": plan.short}
        constants["decoder"] = {"name": plan.decoder, "version": open_decoder(plan.decoder).version()}
    return FeatureSpec(extractor.name, extractor.modality, extractor.dims, extractor.shape, extractor.dtype, constants)


def match_spec(
    writer: StoreWriter,
    spec: FeatureSpec,
    accepted: Collection[str],
    ignore: Sequence[str] = (),
    group: str = FEATURES,
    is_idle: bool = False,
) -> int:
    """Return which of the stored descriptions of its feature `spec` is, 0 for a feature that is not there yet.

    A new one is recorded where `accepted` names the feature, unless the run is idle: it makes no row of the feature,
    and `spec` is not whole. `ignore` names constants that are not compared.
    Raises `UserError` that says what differs where it was not accepted.
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
        f"feature {spec.name} in {writer.path} was made differently: {listed}. Use the same settings, "
        f"another --store, or --accept {spec.name} to mix them knowingly"
    )


def _sampling_rule(size: FrameSize | None) -> str:
    if size is None or size.per_second == 1:
        return "frame shown at the middle of each second"
    return f"frames shown at the middles of {size.per_second} equal parts of each second"


def _machine(device: str) -> dict[str, Any]:
    return {
        "device": device.split(":")[0],
        "torch": importlib.metadata.version("torch").split("+")[0],
        "threads": THREADS_PER_WORKER,
    }
