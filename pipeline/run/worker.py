"""The work of one worker on one partition: decode each video once, run every extractor, write the values.

States are returned to the coordinator (`pipeline.run.coordinator`), which records them afterwards.
"""

import functools
import os
import platform
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from pipeline.errors import UserError
from pipeline.extractors.interface import FeatureExtractor
from pipeline.media.decoder_process import DecoderProcess
from pipeline.media.prefetch import prefetch
from pipeline.media.timeline import Media
from pipeline.run.one_file import decode_file, extract_feature, request_for
from pipeline.run.partitions import Partition, VideoTask
from pipeline.run.settings import Settings, limit_threads, make_extractors, make_spec
from pipeline.store.location import has_store, locate
from pipeline.store.schema import FeatureSpec, State, spec_differences
from pipeline.store.seal import digest_row
from pipeline.store.writer import FeatureRecord, VideoRecord, write_rows

# Larger values are written at once; smaller ones share chunks and are written together at the end of a partition.
_KEEP_BYTES = 1_000_000


@dataclass(frozen=True)
class PartitionOutcome:
    """The results of a partition, for the coordinator to record.

    A feature that is pending is one of a row whose values were lost, in a chunk that could not be read.
    """

    videos: tuple[VideoRecord, ...]
    features: tuple[FeatureRecord, ...]


@dataclass(frozen=True)
class _Tools:
    decoders: tuple[DecoderProcess, ...]
    extractors: dict[str, FeatureExtractor]
    specs: dict[str, FeatureSpec]


def load_specs(settings: Settings) -> dict[str, FeatureSpec]:
    """Load the networks of `settings`; return {feature: complete spec}, with weights and machine."""
    return _tools(settings).specs


def extract_partition(settings: Settings, spec_indices: dict[str, int], partition: Partition) -> PartitionOutcome:
    """Decode the videos of `partition`, compute their features, write the values, and return the records.

    `spec_indices`: {feature: index of this run's spec among the stored ones}.
    """
    tools = _tools(settings)
    videos: list[VideoRecord] = []
    features: list[FeatureRecord] = []
    small: dict[str, dict[int, np.ndarray]] = {}
    decoded = prefetch(tools.decoders, partial(_decode, tools.extractors, settings), partition.videos)
    for task, (record, media) in zip(partition.videos, decoded, strict=True):
        videos.append(record)
        for name in task.features:
            spec = tools.specs[name]
            # Without values the fill value is written: a stopped run may have left those of an earlier file.
            state, reason, values = extract_feature(tools.extractors[name], media, settings, spec)
            digest = digest_row(name, task.video_id, values) if state is State.COMPLETE else ""
            features.append(FeatureRecord(task.row, name, state, reason, spec_indices.get(name, 0), digest))
            if values.nbytes > _KEEP_BYTES:
                write_rows(settings.store, name, partition.first_row, {task.row: values}, spec.fingerprint)
            else:
                small.setdefault(name, {})[task.row] = values
    for name, rows in small.items():
        lost = write_rows(settings.store, name, partition.first_row, rows, tools.specs[name].fingerprint)
        features += [FeatureRecord(row, name, State.PENDING) for row in sorted(lost)]
    return PartitionOutcome(tuple(videos), tuple(features))


@functools.lru_cache(maxsize=1)
def _tools(settings: Settings) -> _Tools:
    """Load the networks, once per worker process."""
    request_large_pages()
    extractors = make_extractors(settings)
    hashes = {name: extractor.load(settings.weights, settings.device) for name, extractor in extractors.items()}
    limit_threads()
    decoders = tuple(DecoderProcess(settings.decoder, settings.limits) for _ in range(settings.decoding_processes))
    specs = {name: make_spec(extractor, settings, hashes[name]) for name, extractor in extractors.items()}
    return _Tools(decoders, extractors, specs)


def request_large_pages() -> None:
    """Make torch request 2 MB pages from Linux, which saves up to a tenth of the networks' time.

    A value set by the user stays. torch reads the variable at its first allocation; later calls change nothing.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def _decode(
    extractors: dict[str, FeatureExtractor], settings: Settings, decoder: DecoderProcess, task: VideoTask
) -> tuple[VideoRecord, Media]:
    request = request_for([extractors[name] for name in task.features], settings)
    return decode_file(Path(task.path), task.sha256, decoder, request, settings.limits.file_bytes, task.row)


def describe_on_worker(settings: Settings, folder: Path, has_shared_store: bool = True) -> dict[str, FeatureSpec]:
    """Check that this worker sees the shared videos folder, and the store if there is one; return the specs."""
    shared: list[tuple[str, object, bool]] = [("videos folder", folder, folder.is_dir())]
    if has_shared_store:
        shared.append(("store", settings.store, has_store(locate(settings.store))))
    for what, place, is_visible in shared:
        if not is_visible:
            raise UserError(
                f"worker {platform.node()} sees no {what} at {place}: use one that every worker sees at the same path"
            )
    return load_specs(settings)


def extract_on_worker(
    settings: Settings,
    folder: Path,
    specs: dict[str, FeatureSpec],
    spec_indices: dict[str, int],
    partition: Partition,
) -> PartitionOutcome:
    """Extract a partition on a worker; raise `UserError` if the worker would compute other values than `specs`."""
    for name, own in describe_on_worker(settings, folder).items():
        if differing := spec_differences(specs[name], own):
            raise UserError(
                f"worker {platform.node()} computes {name} differently: {'; '.join(differing)}. "
                "Install the same versions and weights on all workers"
            )
    return extract_partition(settings, spec_indices, partition)
