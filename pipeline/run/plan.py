"""What a run will do, decided from the request, the manifest and the store before anything is written."""

import math
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.errors import UserError, did_you_mean
from pipeline.extractors.interface import FeatureExtractor
from pipeline.extractors.registry import EXTRACTORS, QUESTION_EXTRACTORS
from pipeline.extractors.weights import OnDownload, hub_cache, parse_weights
from pipeline.machine import available_cores, sees_gpu, visible_gpus
from pipeline.manifests.manifest import Manifest
from pipeline.manifests.media_files import refuse_links_out
from pipeline.media.decoders.registry import choose_decoder, open_decoder
from pipeline.media.timeline import FrameSize, Padding
from pipeline.run.choices import inherit, stored_choices
from pipeline.run.cluster import GPU, ClusterOptions, offers_label
from pipeline.run.partitions import VideoTask
from pipeline.run.pending import find_pending, has_any_in_state
from pipeline.run.questions import PendingQuestions, find_missing_texts, load_questions
from pipeline.run.request import Request
from pipeline.run.settings import KNOWN_WHEN_LOADED, Settings, find_weights, make_extractors, make_spec, match_spec
from pipeline.store.location import has_store, locate
from pipeline.store.schema import State
from pipeline.store.writer import FeatureRecord, StoreWriter

DEFAULT_SECONDS = 60
# Networks on a GPU wait for frames: several decoder processes feed one worker.
CORES_PER_GPU_WORKER = 4


@dataclass(frozen=True)
class Plan:
    """The work of a run, of which nothing is done yet.

    `features`: the requested video features. `settings`: for the workers, with those of the features that they compute.
    `rows`: {video id: row}, with those of the `new_videos`, which are appended. `tasks`: the videos to decode, with
    paths relative to the videos folder. `known`: the states of features that need no decoding. `questions`: the
    question features to compute, loaded. `notes`: for the user, on what was chosen.
    """

    features: tuple[str, ...]
    settings: Settings
    cluster: ClusterOptions
    rows: Mapping[str, int]
    new_videos: tuple[str, ...]
    tasks: tuple[VideoTask, ...]
    known: tuple[FeatureRecord, ...]
    questions: tuple[PendingQuestions, ...]
    notes: tuple[str, ...]

    @property
    def is_idle(self) -> bool:
        """Whether nothing is pending."""
        return not (self.new_videos or self.tasks or self.known or self.questions)


def check_request(manifest: Manifest, videos_folder: Path, store: str, request: Request) -> None:
    """Raise `UserError` if the request and the manifest cannot be right for any store, or the videos for a new one."""
    features, _ = _split_features(request.features)
    _check_manifest(manifest, features)
    if request.workers and request.scheduler:
        raise UserError("--workers starts local workers, --scheduler uses existing ones: pass only one of them")
    if features and not has_store(locate(store)):
        _check_videos_folder(videos_folder, manifest)


def make_plan(
    writer: StoreWriter, manifest: Manifest, videos_folder: Path, request: Request, on_download: OnDownload
) -> Plan:
    """Return the plan of a run over the store of `writer`; weights that it needs are downloaded, nothing is written.

    `request` has passed `check_request`. Raises `UserError` if it, the manifest, the videos folder and the store do not
    fit each other, or if the weights, the decoder or the device are not available.
    """
    features, question_features = _split_features(request.features)
    specs = [writer.feature_specs(name)[0] for name in writer.feature_names()]
    if features and (imported := [spec.name for spec in specs if spec.is_imported]):
        raise UserError(
            f"store {writer.path} has {', '.join(imported)} imported from arrays, which extracted features of videos "
            "are never mixed with: pass another --store, or --features of questions only, such as tokens"
        )
    stored = stored_choices(specs)
    decoder, why = _choose_decoder(request.decoder, stored["decoder"], features)
    device, question_device = _choose_devices(request.device, request.scheduler)
    settings = _settle(writer, features, request, stored, decoder, device)
    extractors = make_extractors(settings)
    _check_padding(extractors, settings.padding)
    rows = _match_videos(writer, manifest) if features else {}
    modalities = {name: extractor.modality for name, extractor in extractors.items()}
    tasks, known = find_pending(writer, manifest.videos if features else (), rows, modalities, request.retry_failed)
    computed = _list_computed(writer, features, tasks, known)
    for name in features:
        if name not in computed:
            spec = make_spec(extractors[name], settings, None)
            match_spec(writer, spec, request.accept, KNOWN_WHEN_LOADED)
    missing = find_missing_texts(writer, manifest, question_features)
    computable = {*features, *(extractor.name for extractor, _ in missing), *question_features}
    if unknown := sorted(set(request.accept) - computable):
        raise UserError(f"--accept {unknown[0]}: this run has no such feature: it has {', '.join(sorted(computable))}")
    new_videos = tuple(list(rows)[len(writer.video_ids()) :])
    if writer.is_read_only and (tasks or known or new_videos or any(texts for _, texts in missing)):
        raise UserError(
            f"store {writer.path} cannot be written, and features of the manifest are pending: "
            "copy it to a disk that can be written, or pass another --store"
        )
    if tasks:
        _check_videos_folder(videos_folder, manifest)
        refuse_links_out(videos_folder, (task.path for task in tasks))
    loaded = [extractors[name] for name in computed] + [extractor for extractor, texts in missing if texts]
    find_weights(settings.weights, loaded, on_download)
    return Plan(
        features=features,
        settings=replace(settings, features=computed),
        cluster=_choose_cluster(request, device),
        rows=rows,
        new_videos=new_videos,
        tasks=tuple(tasks),
        known=tuple(known),
        questions=load_questions(writer, missing, replace(settings, device=question_device), request.accept),
        notes=tuple(_describe_choices(settings, why, is_decoding=bool(computed))) if loaded else (),
    )


def _split_features(names: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the video features and the question features among `names`; raise `UserError` if one is unknown."""
    unique = tuple(dict.fromkeys(names))
    unknown = [name for name in unique if name not in EXTRACTORS and name not in QUESTION_EXTRACTORS]
    if unknown or not unique:
        known = [*EXTRACTORS, *QUESTION_EXTRACTORS]
        hinted = ", ".join(f"{name}{did_you_mean(name, known)}" for name in unknown)
        problem = f"unknown feature {hinted}" if unknown else "no feature is named"
        raise UserError(f"--features {','.join(names)!r}: {problem}: choose from {', '.join(known)}")
    return tuple(n for n in unique if n in EXTRACTORS), tuple(n for n in unique if n in QUESTION_EXTRACTORS)


def _settle(
    writer: StoreWriter,
    features: Collection[str],
    request: Request,
    stored: Mapping[str, Mapping[str, Any]],
    decoder: str,
    device: str,
) -> Settings:
    """Return the settings of all `features`; raise `UserError` if they do not fit the store."""
    seconds = request.seconds or writer.seconds or DEFAULT_SECONDS
    if writer.feature_names() and seconds != writer.seconds:
        raise UserError(
            f"store {writer.path} has {writer.seconds} seconds per video, not {seconds}: "
            f"pass --seconds {writer.seconds} or another --store"
        )
    return Settings(
        store=writer.path,
        features=tuple(features),
        weights=parse_weights(request.weights, hub_cache()),
        decoder=decoder,
        device=device,
        seconds=seconds,
        padding=request.padding or inherit("padding", stored["padding"], features) or "pad",
        normalisation=request.normalisation
        or inherit("normalisation", stored["normalisation"], features)
        or "published",
        audio=request.audio or inherit("audio", stored["audio"], features) or "resampled",
        limits=request.limits,
        decoding_processes=request.decoding_processes or _cores_per_worker(device),
    )


def _choose_decoder(requested: str, stored: Mapping[str, str], features: Collection[str]) -> tuple[str, str]:
    """Return the name of the decoder, and why it was chosen."""
    if requested != "auto":
        return requested, "as requested"
    found = inherit("decoder", stored, features)
    return (found, "the store's decoder") if found else choose_decoder()


def _describe_choices(settings: Settings, why_decoder: str, is_decoding: bool) -> Iterator[str]:
    """Yield a line for the user on each choice that was not asked for, or that makes features incomparable."""
    if is_decoding:
        yield f"decoder: {settings.decoder}, {why_decoder}: {open_decoder(settings.decoder).version()}"
    if settings.weights.kind == "seeded":
        yield "weights: seeded (random networks, for trials; not comparable with published features)"


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


def _choose_cluster(request: Request, device: str) -> ClusterOptions:
    label = GPU if request.scheduler and device == "cuda" else ""
    gpus = visible_gpus() if device == "cuda" and not request.scheduler else ()
    workers = request.workers or max(len(gpus), math.ceil(available_cores() / _cores_per_worker(device)))
    return ClusterOptions(workers, request.scheduler, label, gpus=gpus)


def _cores_per_worker(device: str) -> int:
    return CORES_PER_GPU_WORKER if device == "cuda" else 1


def _list_computed(
    writer: StoreWriter, features: Collection[str], tasks: Collection[VideoTask], known: Collection[FeatureRecord]
) -> tuple[str, ...]:
    """Return those of `features` that workers compute, or that are new and need a spec to be recorded."""
    decoded = {name for task in tasks for name in task.features}
    new = {record.feature for record in known} - set(writer.feature_names())
    return tuple(name for name in features if name in decoded | new)


def _check_manifest(manifest: Manifest, features: Collection[str]) -> None:
    """Raise `UserError` if the manifest has no videos, or a question without text or about an unlisted video."""
    if features and not manifest.videos:
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


def _check_padding(extractors: Mapping[str, FeatureExtractor], padding: Padding) -> None:
    """Raise `UserError` if a feature samples several frames per second under the padding `released`."""
    for name, extractor in extractors.items():
        size: FrameSize | None = getattr(extractor, "frame_size", None)
        if padding == "released" and size is not None and size.per_second > 1:
            raise UserError(
                f"--padding released counts single frames, but {name} samples {size.per_second} per second: "
                f"pass --padding pad or cycle, or remove {name} from --features"
            )


def _check_videos_folder(folder: Path, manifest: Manifest) -> None:
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


def _match_videos(writer: StoreWriter, manifest: Manifest) -> dict[str, int]:
    """Return {video id: row} of the store, with the rows that the manifest's new videos will get.

    Raises `UserError` if a video's file differs from the one that its features were computed from. A file of which no
    feature could be computed may be replaced.
    """
    stored = writer.video_ids()
    rows = {video_id: row for row, video_id in enumerate(stored)}
    found = writer.read_index("videos/source_sha256")
    is_fixed = has_any_in_state(writer, len(stored), (State.COMPLETE, State.ABSENT))
    for video in manifest.videos:
        row = rows.setdefault(video.video_id, len(rows))
        known = str(found[row]) if row < len(stored) and is_fixed[row] else ""
        if known and video.sha256 and known != video.sha256:
            raise UserError(
                f"video {video.video_id}: the store was extracted from a file with sha256 {known}, the manifest lists "
                f"{video.sha256}: use another --store, or the manifest that this store was extracted with"
            )
    return rows
