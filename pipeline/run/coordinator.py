"""The extraction run: find what is pending, send partitions to workers, record their results, finalise.

The store's lock is held from the first read to the last write. The workers' part is in `pipeline.run.worker`.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np

from pipeline.errors import UserError, reporting_full_disks
from pipeline.extractors.registry import make_extractor
from pipeline.manifests.manifest import Manifest, Video
from pipeline.manifests.media_files import refuse_links_out
from pipeline.run.cluster import ClusterOptions, connect, query_workers, stream
from pipeline.run.partitions import VideoTask, plan_partitions
from pipeline.run.plan import (
    ExtractionPlan,
    check_manifest_fits,
    check_padding,
    check_videos_folder,
    make_spec,
    match_spec,
    match_videos,
)
from pipeline.run.questions import has_pending_questions, update_questions
from pipeline.run.worker import (
    PartitionOutcome,
    describe_on_worker,
    extract_on_worker,
)
from pipeline.store.location import has_store, locate
from pipeline.store.schema import MODALITIES, FeatureSpec, State
from pipeline.store.writer import FeatureRecord, StoreWriter


@dataclass(frozen=True)
class Progress:
    """The progress of a run, in videos or question texts (`total` None: workers are starting).

    `failed` counts the videos of this run with a failed modality; `note` is a message for the user.
    """

    done: int
    total: int | None
    failed: int = 0
    note: str = ""
    unit: Literal["videos", "questions"] = "videos"


@dataclass
class Summary:
    """The state of the manifest's videos in the store, by feature, and the work of this run.

    `store`: its address. `videos`, `questions`: the numbers of videos and of question texts of the manifest.
    `extracted`: the number of videos that this run recorded. `states`: {feature: {state: number of videos}}.
    `failures`: the `video_id`, `feature` and `reason` of each failed one.
    """

    store: str
    videos: int
    extracted: int = 0
    questions: int = 0
    states: dict[str, dict[str, int]] = field(default_factory=dict)
    failures: list[dict[str, str]] = field(default_factory=list)

    @property
    def is_complete(self) -> bool:
        """Whether no feature of the manifest's videos is failed or pending."""
        return not any(counts["failed"] or counts["pending"] for counts in self.states.values())


@dataclass(frozen=True)
class RunOptions:
    """How to run: on which workers, whether failed videos are retried, which features may mix settings.

    `break_lock`: take over the lock of a killed run, which remains on an object store.
    """

    cluster: ClusterOptions = field(default_factory=ClusterOptions)
    retry_failed: bool = False
    accept: tuple[str, ...] = ()
    break_lock: bool = False


# Constants that only a worker knows: they are not compared if nothing is pending, when no worker is started.
_UNKNOWN_WHEN_IDLE = ("weights.sha256", "machine")


def extract(
    manifest: Manifest,
    videos_folder: Path,
    plan: ExtractionPlan,
    options: RunOptions,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Summary:
    """Compute every pending feature of the videos and questions of `manifest` into the store of `plan`.

    Raises `UserError` before any work if the videos folder, the manifest and the store do not match.
    """
    check_manifest_fits(manifest, plan)
    check_padding(plan)
    if not has_store(locate(plan.store)):
        check_videos_folder(videos_folder, manifest)
    created_by = f"mavqa {version('mavqa')}"
    with (
        reporting_full_disks(plan.store),
        StoreWriter(plan.store, plan.seconds, created_by, options.break_lock) as writer,
    ):
        rows = match_videos(writer, manifest)
        run = _Run(writer, plan, options, on_progress)
        work = run.plan_work(manifest.videos, rows)
        stored = len(writer.video_ids())
        new = [video.video_id for video in manifest.videos if rows[video.video_id] >= stored]
        if writer.is_read_only and (work or new or has_pending_questions(writer, manifest, plan.for_questions())):
            raise UserError(
                f"store {plan.store} cannot be written, and features of the manifest are pending: "
                "copy it to a disk that can be written, or pass another --store"
            )
        if work:
            check_videos_folder(videos_folder, manifest)
            refuse_links_out(videos_folder, (task.path for task in work))
        update_questions(
            writer,
            manifest,
            plan.for_questions(),
            options.accept,
            lambda done, total: on_progress(Progress(done, total, unit="questions")),
        )
        writer.append_videos(new)
        extracted = run.work(work, videos_folder) if work else 0
        if run.has_lost_rows:
            extracted += run.work(run.plan_work(manifest.videos, rows), videos_folder)
        if not writer.is_read_only:
            writer.seal()
        return _summarise(writer, manifest, rows, plan, extracted)


class _Run:
    """One run over one store: what is pending, under which specs, and the loop over partitions."""

    def __init__(
        self,
        writer: StoreWriter,
        plan: ExtractionPlan,
        options: RunOptions,
        on_progress: Callable[[Progress], None],
    ) -> None:
        self._writer = writer
        self._plan = plan
        self._options = options
        self._on_progress = on_progress
        # Rows of chunks that could not be read: they are pending again.
        self.has_lost_rows = False

    def plan_work(self, videos: Sequence[Video], rows: dict[str, int]) -> list[VideoTask]:
        """Return the videos with a pending feature, in the order of their rows; paths are relative to the folder."""
        wanted = (State.PENDING, State.FAILED) if self._options.retry_failed else (State.PENDING,)
        pending = {name: self._is_in_state(name, len(rows), wanted) for name in self._plan.features}
        tasks = []
        for video in sorted(videos, key=lambda video: rows[video.video_id]):
            row = rows[video.video_id]
            missing = tuple(name for name in self._plan.features if pending[name][row])
            if missing:
                tasks.append(VideoTask(row, video.video_id, video.path, video.sha256, missing))
        if tasks:
            sources = self._stored_sources()
            return [replace(task, sha256=task.sha256 or sources.get(task.row, "")) for task in tasks]
        extractors = {name: make_extractor(name, self._plan.normalisation) for name in self._plan.features}
        specs = {name: make_spec(extractor, self._plan, "") for name, extractor in extractors.items()}
        self._match_specs(specs, is_idle=True)
        return []

    def _stored_sources(self) -> dict[int, str]:
        """Return {row: SHA-256} of the files with complete or absent features: other features need the same file."""
        stored = self._writer.read_index("videos/source_sha256")
        has_features = self._has_any_in_state(len(stored), (State.COMPLETE, State.ABSENT))
        return {int(row): str(stored[row]) for row in np.flatnonzero(has_features)}

    def _has_any_in_state(self, total: int, wanted: tuple[State, ...]) -> np.ndarray:
        """Return whether some stored feature has one of the states `wanted`, bool [video] for `total` videos."""
        found = np.zeros(total, dtype=bool)
        for name in self._writer.feature_names():
            found |= self._is_in_state(name, total, wanted)
        return found

    def _is_in_state(self, name: str, total: int, wanted: tuple[State, ...]) -> np.ndarray:
        """Return whether the feature `name` has one of the states `wanted`, bool [video] for `total` videos."""
        states = np.zeros(total, dtype=np.uint8)
        if name in self._writer.feature_names():
            stored = self._writer.read_index(f"features/{name}/state")[:total]
            states[: len(stored)] = stored
        return np.isin(states, wanted)

    def work(self, tasks: list[VideoTask], folder: Path) -> int:
        """Extract `tasks` on workers; return how many videos were recorded."""
        self._on_progress(Progress(0, None))
        with connect(self._options.cluster) as workers:
            specs = query_workers(workers, partial(describe_on_worker, self._plan, folder))
            spec_indices = self._match_specs(specs)
            for spec in specs.values():
                self._writer.ensure_feature(spec)
            tasks = self._record_known(tasks)
            total = len(tasks)
            self._on_progress(Progress(0, total))
            self._writer.unseal()
            partitions = plan_partitions(replace(task, path=os.path.join(folder, task.path)) for task in tasks)
            extract_one = partial(extract_on_worker, self._plan, folder, specs, spec_indices)
            return self._record_all(stream(workers, extract_one, partitions), total)

    def _match_specs(self, specs: dict[str, FeatureSpec], is_idle: bool = False) -> dict[str, int]:
        """Return {feature: index of this run's spec}; raise `UserError` for a differing spec that was not accepted."""
        accepted, ignore = self._options.accept, _UNKNOWN_WHEN_IDLE if is_idle else ()
        return {name: match_spec(self._writer, spec, accepted, ignore, is_idle=is_idle) for name, spec in specs.items()}

    def _record_known(self, tasks: list[VideoTask]) -> list[VideoTask]:
        """Record features whose modality is known to be absent or failed; return the tasks that need decoding.

        A video without any recorded feature is decoded: a run may have been killed while it recorded the video.
        """
        presence = {modality: self._writer.read_index(f"videos/{modality}") for modality in MODALITIES}
        reasons = {m: self._writer.read_index(f"videos/{m}_reason") for m in presence}
        modality_of = {name: make_extractor(name, self._plan.normalisation).modality for name in self._plan.features}
        final = (State.ABSENT,) if self._options.retry_failed else (State.ABSENT, State.FAILED)
        is_recorded = self._has_any_in_state(len(presence["audio"]), (State.COMPLETE, State.ABSENT, State.FAILED))
        records, remaining = [], []
        for task in tasks:
            candidates = task.features if is_recorded[task.row] else ()
            known = [name for name in candidates if presence[modality_of[name]][task.row] in final]
            for name in known:
                modality = modality_of[name]
                state, reason = State(int(presence[modality][task.row])), str(reasons[modality][task.row])
                records.append(FeatureRecord(task.row, name, state, reason))
            rest = tuple(name for name in task.features if name not in known)
            if rest:
                remaining.append(replace(task, features=rest) if known else task)
        self._writer.record_features(records)
        return remaining

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
                self.has_lost_rows |= any(feature.state is State.PENDING for feature in features)
            done += len(videos)
            failed += sum(State.FAILED in video.states.values() for video in videos)
            self._on_progress(Progress(done, total, failed))
        return done


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


def _summarise(
    writer: StoreWriter,
    manifest: Manifest,
    rows: dict[str, int],
    plan: ExtractionPlan,
    extracted: int,
) -> Summary:
    own = np.array([rows[video.video_id] for video in manifest.videos], dtype=np.int64)
    summary = Summary(plan.store, len(own), extracted, len(manifest.texts()))
    for name in plan.features:
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
