"""The features of one media file: decode it once in the decoder process, run extractors on what was decoded.

Workers (`pipeline.run.worker`) write them to a store; `pipeline.run.in_memory` keeps them, for files of no dataset.
"""

import hashlib
from collections.abc import Collection
from pathlib import Path

import numpy as np

from pipeline.extractors.interface import FeatureExtractor
from pipeline.media.decoder_process import DecoderProcess
from pipeline.media.timeline import DecodeRequest, Media, fail_media
from pipeline.run.settings import Settings
from pipeline.store.schema import FeatureSpec, State
from pipeline.store.writer import VideoRecord


def decode_file(
    path: Path, sha256: str, decoder: DecoderProcess, request: DecodeRequest, max_bytes: int, row: int = 0
) -> tuple[VideoRecord, Media]:
    """Return what is recorded of the file at `path`, in `row`, and its media.

    `sha256`: the expected one, "" for any. A file that is missing, larger than `max_bytes`, another one, or replaced
    while it is decoded has two failed tracks with the reason.
    """
    before = _identify(path)
    found, problem = _hash_file(path, sha256, max_bytes)
    if problem:
        media = fail_media(problem)
    else:
        media = decoder.decode(path, request)
        if _identify(path) != before:
            problem = (
                f"{path.name} was changed or replaced while it was decoded: "
                "pass --retry-failed when it is no longer written"
            )
            media = fail_media(problem)
    tracks = {"visual": media.visual, "audio": media.audio}
    record = VideoRecord(
        row=row,
        source_sha256="" if problem else found,
        states={modality: track.state for modality, track in tracks.items()},
        steps={modality: track.steps for modality, track in tracks.items()},
        reasons={modality: track.reason for modality, track in tracks.items()},
        firsts={modality: track.first for modality, track in tracks.items()},
    )
    return record, media


def request_for(extractors: Collection[FeatureExtractor], settings: Settings) -> DecodeRequest:
    """Return what to decode of a file for `extractors`."""
    sizes = [extractor.frame_size for extractor in extractors]
    audio = [getattr(extractor, "audio", "resampled") for extractor in extractors]
    return DecodeRequest(
        seconds=settings.seconds,
        frame_sizes=tuple(dict.fromkeys(size for size in sizes if size is not None)),
        wants_released_audio="released" in audio,
        padding=settings.padding,
        max_pixels=settings.limits.max_pixels,
    )


def extract_feature(
    extractor: FeatureExtractor, media: Media, settings: Settings, spec: FeatureSpec
) -> tuple[State, str, np.ndarray]:
    """Return the state of the feature of `media`, the reason, and its values [time, ...] in the dtype of `spec`.

    There are no time steps unless the state is complete, else those of the modality; with padding up to
    `settings.seconds`. Steps before the first one of the modality are the fill value.
    """
    nothing = np.empty((0, *spec.shape), spec.dtype)
    track = media.visual if extractor.modality == "visual" else media.audio
    if track.state is not State.COMPLETE:
        return track.state, track.reason, nothing
    try:
        values = extractor.extract(media)
    except FloatingPointError as error:
        return State.FAILED, f"{extractor.name}: {error}", nothing
    if settings.padding == "cycle":
        values = values[track.first + (np.arange(settings.seconds) - track.first) % (len(values) - track.first)]
    elif track.first:
        values = np.concatenate([np.full_like(values[: track.first], spec.fill_value), values[track.first :]])
    return State.COMPLETE, "", np.asarray(values[: settings.seconds], spec.dtype)


def _identify(path: Path) -> tuple[int, ...]:
    """Return a signature that changes if the file is replaced, without reading the file."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _hash_file(path: Path, expected: str, max_bytes: int) -> tuple[str, str]:
    """Return the file's SHA-256 and the reason why it cannot be used ("" if it can).

    Special files and files of more than `max_bytes` are not opened.
    """
    try:
        if not path.is_file():
            if path.exists():
                return "", f"{path.name} in the videos folder is not a regular file"
            return "", f"no file {path.name} in the videos folder"
        if (size := path.stat().st_size) > max_bytes:
            return "", f"the file has {size} bytes, more than {max_bytes} (to allow more: --max-file-gb)"
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return "", f"{path.name} cannot be read: {error.strerror}"
    if expected and found != expected:
        return "", (
            f"the file's sha256 is {found}, but the manifest or the video's other features have {expected}: "
            "restore that file and pass --retry-failed, or build the manifest again and use another --store"
        )
    return found, ""
