"""The extraction run: plan it, ask a worker for the specs, send partitions to workers, record their results, finalise.

The store's lock is held from the first read to the last write. What is done is decided in `pipeline.run.plan`; the
workers' part is in `pipeline.run.worker`.
"""

import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np

from pipeline.errors import reporting_full_disks
from pipeline.manifests.manifest import Manifest
from pipeline.media.timeline import Padding
from pipeline.run.cluster import connect, query_workers, stream
from pipeline.run.partitions import Partition, VideoTask, plan_partitions
from pipeline.run.pending import find_pending
from pipeline.run.plan import Plan, check_request, make_plan
from pipeline.run.questions import write_questions
from pipeline.run.request import Request
from pipeline.run.settings import match_spec
from pipeline.run.worker import PartitionOutcome, describe_on_worker, extract_on_worker
from pipeline.store.schema import MODALITIES, FeatureSpec, State
from pipeline.store.writer import StoreWriter

# How many times longer the time axis is than the longest video where the user gets a hint.
FAR_SHORTER = 2


@dataclass(frozen=True)
class Progress:
    """The progress of a run, in videos, question texts or megabytes of downloaded weights, or a message for the user.

    `total` None: it is not known; of videos, because workers are starting. `failed` counts the videos of this run with
    a failed modality. `file`: the one that is downloaded. `note`: the message; the numbers mean nothing then.
    """

    done: int
    total: int | None
    failed: int = 0
    note: str = ""
    unit: Literal["videos", "questions", "MB"] = "videos"
    file: str = ""


@dataclass
class Summary:
    """The state of the manifest's videos in the store, by feature, and the work of this run.

    `store`: its address. `videos`, `questions`: the numbers of videos and of question texts of the manifest.
    `extracted`, `encoded`: the numbers of videos that this run recorded, and of question texts that it encoded.
    `states`: {feature: {state: number of videos}}. `failures`: the `video_id`, `feature` and `reason` of each failed
    one.
    """

    store: str
    videos: int
    extracted: int = 0
    questions: int = 0
    encoded: int = 0
    states: dict[str, dict[str, int]] = field(default_factory=dict)
    failures: list[dict[str, str]] = field(default_factory=list)

    @property
    def is_complete(self) -> bool:
        """Whether no feature of the manifest's videos is failed or pending."""
        return not any(counts["failed"] or counts["pending"] for counts in self.states.values())


def extract(
    manifest: Manifest,
    videos_folder: Path,
    store: str,
    request: Request,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Summary:
    """Compute what is pending of the requested features of the videos and questions of `manifest` into `store`.

    Raises `UserError`, before anything is written, if the request, the manifest, the videos folder, the store and the
    workers do not fit each other.
    """
    check_request(manifest, videos_folder, store, request)
    created_by = f"mavqa {version('mavqa')}"
    with reporting_full_disks(store), StoreWriter(store, created_by, request.break_lock) as writer:
        plan = make_plan(writer, manifest, videos_folder, request, partial(_show_download, on_progress))
        for note in plan.notes:
            on_progress(Progress(0, None, note=note))
        run = _Run(plan, writer, manifest, videos_folder, on_progress)
        extracted = 0 if plan.is_idle else run.carry_out(request.accept)
        if not writer.is_read_only:
            writer.seal()
        if extracted and (hint := _hint_at_seconds(writer, plan.settings.padding)):
            on_progress(Progress(0, None, note=hint))
        return _summarise(writer, manifest, plan, extracted)


class _Run:
    """One run over one store: the writing of what was planned."""

    def __init__(
        self, plan: Plan, writer: StoreWriter, manifest: Manifest, folder: Path, on_progress: Callable[[Progress], None]
    ) -> None:
        self._plan, self._writer, self._manifest, self._folder = plan, writer, manifest, folder
        self._on_progress = on_progress
        # Rows of chunks that could not be read: they are pending again.
        self._lost_rows: set[int] = set()

    def carry_out(self, accepted: Collection[str]) -> int:
        """Do what is planned; return the number of videos that were recorded."""
        if not self._plan.settings.features:
            self._begin({}, {})
            return 0
        self._on_progress(Progress(0, None))
        settings, folder = self._plan.settings, self._folder
        with connect(self._plan.cluster) as workers:
            is_stored = self._writer.seconds is not None
            specs = query_workers(workers, partial(describe_on_worker, settings, folder, is_stored))
            indices = {name: match_spec(self._writer, spec, accepted) for name, spec in specs.items()}
            self._begin(specs, indices)
            extract_one = partial(extract_on_worker, settings, folder, specs, indices)
            done = self._decode(self._plan.tasks, partial(stream, workers, extract_one))
            if self._lost_rows:
                modalities = {name: spec.modality for name, spec in specs.items()}
                again, _ = find_pending(self._writer, self._manifest.videos, self._plan.rows, modalities)
                done += self._decode(again, partial(stream, workers, extract_one))
                self._report_others(len(self._lost_rows - {task.row for task in again}))
        return done

    def _begin(self, specs: Mapping[str, FeatureSpec], indices: Mapping[str, int]) -> None:
        """Write everything but the features of decoded videos. Until here, nothing is written."""
        self._writer.create(self._plan.settings.seconds)
        if self._plan.questions:
            write_questions(self._writer, self._manifest, self._plan.questions, self._show_texts)
        self._writer.append_videos(self._plan.new_videos)
        for name, spec in specs.items():
            self._writer.add_spec(spec, indices[name])
        self._writer.record_features(self._plan.known)

    def _decode(
        self,
        tasks: Sequence[VideoTask],
        send: Callable[[Iterator[Partition]], Iterator[PartitionOutcome | None]],
    ) -> int:
        """Decode the videos of `tasks` on workers, to which `send` sends partitions; return how many were recorded."""
        self._on_progress(Progress(0, len(tasks)))
        if tasks:
            self._writer.unseal()
        partitions = plan_partitions(replace(task, path=os.path.join(self._folder, task.path)) for task in tasks)
        return self._record_all(send(partitions), len(tasks))

    def _record_all(self, outcomes: Iterator[PartitionOutcome | None], total: int) -> int:
        """Record outcomes as they arrive, in batches if they arrive fast: each batch rewrites the same few files."""
        done = failed = 0
        for batch in _batch_outcomes(outcomes):
            if None in batch:
                note = "workers died on one partition; run again to repeat it"
                self._on_progress(Progress(done, total, failed, note))
            finished = [outcome for outcome in batch if outcome is not None]
            videos = [video for outcome in finished for video in outcome.videos]
            if videos:
                self._writer.record_videos(videos)
                features = [feature for outcome in finished for feature in outcome.features]
                self._writer.record_features(features)
                self._lost_rows |= {feature.row for feature in features if feature.state is State.PENDING}
            done += len(videos)
            failed += sum(State.FAILED in video.states.values() for video in videos)
            self._on_progress(Progress(done, total, failed))
        return done

    def _report_others(self, videos: int) -> None:
        """Report lost rows of videos that are not in the manifest, if there are any."""
        if videos:
            note = f"a corrupt chunk also had rows of {videos} videos of other manifests: extract these again"
            self._on_progress(Progress(0, None, note=note))

    def _show_texts(self, done: int, total: int) -> None:
        self._on_progress(Progress(done, total, unit="questions"))


def _show_download(on_progress: Callable[[Progress], None], name: str, done: int, total: int) -> None:
    """Report the progress of a download, in megabytes."""
    on_progress(Progress(round(done / 1e6), round(total / 1e6) or None, unit="MB", file=name))


def _batch_outcomes(outcomes: Iterator[PartitionOutcome | None]) -> Iterator[list[PartitionOutcome | None]]:
    """Yield the outcomes in lists, each collected for as long as recording the previous list took.

    On an object store, recording a list of any size takes seconds; on a disk the delay is negligible. If `outcomes` is
    interrupted, for example by the user, the outcomes that have arrived are yielded before the exception is raised.
    """
    waiting: list[PartitionOutcome | None] = []
    due = time.monotonic()
    try:
        for outcome in outcomes:
            waiting.append(outcome)
            started = time.monotonic()
            if started >= due:
                ready, waiting = waiting, []
                yield ready
                ended = time.monotonic()
                due = ended + (ended - started)
    finally:
        if waiting:
            yield waiting


def _hint_at_seconds(writer: StoreWriter, padding: Padding) -> str:
    """Return a hint for the user if all videos are far shorter than the time axis, else ""."""
    steps = np.concatenate([writer.read_index(f"videos/steps_{modality}") for modality in MODALITIES])
    longest, seconds = int(steps.max(initial=0)), writer.seconds or 0
    if padding != "pad" or not 0 < FAR_SHORTER * longest <= seconds:
        return ""
    return (
        f"hint: the longest of {len(writer.video_ids())} videos has {longest} seconds, the store {seconds} time steps, "
        f"and models read steps spread over all {seconds}: extract with --seconds {longest} into another --store"
    )


def _summarise(writer: StoreWriter, manifest: Manifest, plan: Plan, extracted: int) -> Summary:
    encoded = set().union(*(part.texts for part in plan.questions))
    summary = Summary(plan.settings.store, len(manifest.videos), extracted, len(manifest.texts()), len(encoded))
    for name in plan.features:
        own = np.array([plan.rows[video.video_id] for video in manifest.videos], dtype=np.int64)
        states = writer.read_index(f"features/{name}/state")[own]
        reasons = writer.read_index(f"features/{name}/reason")[own]
        summary.states[name] = {state.name.lower(): int((states == state).sum()) for state in State}
        for index in np.flatnonzero(states == State.FAILED):
            entry = {
                "video_id": manifest.videos[index].video_id,
                "feature": name,
                "reason": str(reasons[index]),
            }
            summary.failures.append(entry)
    return summary
