"""The extraction run: plan what is pending, hand partitions to workers, record what became of them, finalise.

It holds the store's lock from the first look to the last write. What workers do is in `pipeline.run.worker`.
"""

import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np

from pipeline.errors import UserError, naming_full_disks
from pipeline.extractors.interface import FeatureExtractor
from pipeline.extractors.registry import make_extractor
from pipeline.manifests.manifest import Manifest, Video
from pipeline.manifests.media_files import refuse_links_out
from pipeline.run.cluster import ClusterOptions, ask_first, connect, stream
from pipeline.run.partitions import Partition, VideoTask, plan_partitions
from pipeline.run.plan import settle_description
from pipeline.run.questions import update_questions
from pipeline.run.worker import (
    ExtractionPlan,
    PartitionOutcome,
    describe,
    describe_features,
    extract_partition,
)
from pipeline.store.location import has_store, locate
from pipeline.store.reader import open_store
from pipeline.store.schema import MODALITIES, FeatureSpec, State, differences
from pipeline.store.writer import FeatureRecord, StoreWriter


@dataclass(frozen=True)
class Progress:
    """How far a run is, in videos or question texts (`total` None: workers are being started).

    `failed` counts the videos of this run with a failed modality; `note` is for people.
    """

    done: int
    total: int | None
    failed: int = 0
    note: str = ""
    unit: Literal["videos", "questions"] = "videos"


@dataclass
class Summary:
    """What the store now holds for the manifest's videos, by feature and state, and what this run did."""

    store: str
    videos: int
    extracted: int = 0
    questions: int = 0
    states: dict[str, dict[str, int]] = field(default_factory=dict)
    failures: list[dict[str, str]] = field(default_factory=list)

    @property
    def is_whole(self) -> bool:
        """Whether nothing of the manifest is failed or pending."""
        return not any(counts["failed"] or counts["pending"] for counts in self.states.values())


@dataclass(frozen=True)
class RunOptions:
    """How to run: where, whether failures are tried again, and features whose differences are accepted.

    `break_lock`: whether the lock of a killed run is taken over (on an object store it stays).
    """

    cluster: ClusterOptions = field(default_factory=ClusterOptions)
    retry_failed: bool = False
    accept: tuple[str, ...] = ()
    break_lock: bool = False


# What only a worker can tell; where nothing is pending nothing is mixed, and no worker is started to ask.
_UNKNOWN_WHEN_IDLE = ("weights.sha256", "machine")


def extract(
    manifest: Manifest,
    videos_folder: Path,
    plan: ExtractionPlan,
    options: RunOptions,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Summary:
    """Bring the store of `plan` up to date with `manifest`: every pending feature of every video, every question.

    Raises `UserError` before any work where the videos folder, the manifest and the store do not fit each other.
    """
    _check_manifest(manifest, plan)
    _check_short(plan)
    if not has_store(locate(plan.store)):
        check_videos_folder(videos_folder, manifest)
    created_by = f"mavqa {version('mavqa')}"
    with (
        naming_full_disks(plan.store),
        StoreWriter(plan.store, plan.seconds, created_by, options.break_lock) as writer,
    ):
        rows = _match_videos(writer, manifest)
        run = _Run(writer, plan, options, on_progress)
        work = run.plan_work(manifest.videos, rows)
        if work:
            check_videos_folder(videos_folder, manifest)
            refuse_links_out(videos_folder, (task.path for task in work))
        update_questions(writer, manifest, plan.for_questions(), options.accept, _in_questions(on_progress))
        _append_videos(writer, manifest, rows)
        extracted = run.work(work, videos_folder) if work else 0
        writer.consolidate()
        return _summarise(writer, manifest, rows, plan, extracted)


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


def _check_manifest(manifest: Manifest, plan: ExtractionPlan) -> None:
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


def _check_short(plan: ExtractionPlan) -> None:
    sizes = {name: make_extractor(name).frame_size for name in plan.features if plan.short == "released"}
    for name, size in sizes.items():
        if size is not None and size.per_second > 1:
            raise UserError(
                f"--short released counts single frames, and {name} reads {size.per_second} of each second: "
                f"give --short pad or cycle, or leave {name} out of --features"
            )


def _match_videos(writer: StoreWriter, manifest: Manifest) -> dict[str, int]:
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


def _append_videos(writer: StoreWriter, manifest: Manifest, rows: dict[str, int]) -> None:
    stored = len(writer.video_ids())
    writer.append_videos([video.video_id for video in manifest.videos if rows[video.video_id] >= stored])


def _in_questions(on_progress: Callable[[Progress], None]) -> Callable[[int, int], None]:
    return lambda done, total: on_progress(Progress(done, total, unit="questions"))


def _describe_there(plan: ExtractionPlan, folder: Path) -> dict[str, FeatureSpec]:
    """On a worker: check that it sees what all must share, and describe the features as it makes them."""
    shared = {"videos folder": (folder, folder.is_dir()), "store": (plan.store, has_store(locate(plan.store)))}
    for what, (place, is_there) in shared.items():
        if not is_there:
            raise UserError(
                f"worker {platform.node()} sees no {what} at {place}: give one that every worker sees at the same path"
            )
    return describe_features(plan)


def _extract_there(
    plan: ExtractionPlan,
    folder: Path,
    specs: dict[str, FeatureSpec],
    made_by: dict[str, int],
    partition: Partition,
) -> PartitionOutcome:
    """On a worker: extract a partition, unless this worker makes other numbers than the features' descriptions say."""
    for name, ours in _describe_there(plan, folder).items():
        if differing := differences(specs[name], ours):
            raise UserError(
                f"worker {platform.node()} makes {name} differently: {'; '.join(differing)}. "
                "Give all workers the same versions and weights"
            )
    return extract_partition(plan, made_by, partition)


class _Run:
    """One run over one store: what is pending, under which descriptions, and the loop over partitions."""

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

    def _make(self, name: str) -> FeatureExtractor:
        return make_extractor(name, self._plan.normalisation)

    def plan_work(self, videos: Sequence[Video], rows: dict[str, int]) -> list[VideoTask]:
        """Return the videos that lack a feature, in the order of their rows; paths are relative to the folder."""
        redo = (State.PENDING, State.FAILED) if self._options.retry_failed else (State.PENDING,)
        pending = {name: self._rows_in(name, len(rows), redo) for name in self._plan.features}
        tasks = []
        for video in sorted(videos, key=lambda video: rows[video.video_id]):
            row = rows[video.video_id]
            lacking = tuple(name for name in self._plan.features if pending[name][row])
            if lacking:
                tasks.append(VideoTask(row, video.video_id, video.path, video.sha256, lacking))
        if tasks:
            sources = self._sources_kept()
            return [replace(task, sha256=task.sha256 or sources.get(task.row, "")) for task in tasks]
        self._refuse_differences(
            {name: describe(self._make(name), self._plan, "") for name in self._plan.features},
            is_idle=True,
        )
        return []

    def _sources_kept(self) -> dict[int, str]:
        """Return by row the SHA-256 of the file that features were made of, or are absent from: others must be too."""
        stored = self._writer.read_index("videos/source_sha256")
        kept = self._rows_of_any(len(stored), (State.COMPLETE, State.ABSENT))
        return {int(row): str(stored[row]) for row in np.flatnonzero(kept)}

    def _rows_of_any(self, total: int, of_interest: tuple[State, ...]) -> np.ndarray:
        rows = np.zeros(total, dtype=bool)
        for name in self._writer.feature_names():
            rows |= self._rows_in(name, total, of_interest)
        return rows

    def _rows_in(self, name: str, total: int, of_interest: tuple[State, ...]) -> np.ndarray:
        states = np.zeros(total, dtype=np.uint8)
        if name in self._writer.feature_names():
            stored = self._writer.read_index(f"features/{name}/state")[:total]
            states[: len(stored)] = stored
        return np.isin(states, of_interest)

    def work(self, tasks: list[VideoTask], folder: Path) -> int:
        """Extract `tasks` on workers; return how many videos were recorded."""
        self._on_progress(Progress(0, None))
        with connect(self._options.cluster) as workers:
            specs = ask_first(workers, partial(_describe_there, self._plan, folder))
            made_by = self._refuse_differences(specs)
            for spec in specs.values():
                self._writer.ensure_feature(spec)
            tasks = self._settle_known(tasks)
            total = len(tasks)
            self._on_progress(Progress(0, total))
            partitions = plan_partitions(replace(task, path=os.path.join(folder, task.path)) for task in tasks)
            task_of = partial(_extract_there, self._plan, folder, specs, made_by)
            return self._record_all(stream(workers, task_of, partitions), total)

    def _refuse_differences(self, specs: dict[str, FeatureSpec], is_idle: bool = False) -> dict[str, int]:
        """Return which of a feature's descriptions this run makes; refuse to mix in one that was not accepted."""
        accepted, ignore = self._options.accept, _UNKNOWN_WHEN_IDLE if is_idle else ()
        return {
            name: settle_description(self._writer, spec, accepted, ignore, is_idle=is_idle)
            for name, spec in specs.items()
        }

    def _settle_known(self, tasks: list[VideoTask]) -> list[VideoTask]:
        """Record what needs no decoding (the modality is known to be absent or failed); return what does.

        A video none of whose features is recorded may itself be recorded in part: its run was killed in between.
        """
        presence = {modality: self._writer.read_index(f"videos/{modality}") for modality in MODALITIES}
        reasons = {m: self._writer.read_index(f"videos/{m}_reason") for m in presence}
        modality_of = {name: self._make(name).modality for name in self._plan.features}
        settled = (State.ABSENT,) if self._options.retry_failed else (State.ABSENT, State.FAILED)
        is_whole = self._rows_of_any(len(presence["audio"]), (State.COMPLETE, State.ABSENT, State.FAILED))
        records, left = [], []
        for task in tasks:
            looked_at = task.features if is_whole[task.row] else ()
            known = [name for name in looked_at if presence[modality_of[name]][task.row] in settled]
            for name in known:
                modality = modality_of[name]
                state, reason = State(int(presence[modality][task.row])), str(reasons[modality][task.row])
                records.append(FeatureRecord(task.row, name, state, reason))
            rest = tuple(name for name in task.features if name not in known)
            if rest:
                left.append(replace(task, features=rest) if known else task)
        self._writer.record_features(records)
        return left

    def _record_all(self, outcomes: Iterator[PartitionOutcome | None], total: int) -> int:
        """Record what comes, several at once where they come fast: each time rewrites the same few files."""
        done = failed = 0
        for batch in _gather_fast(outcomes):
            if None in batch:
                note = "workers died over one partition; run again to redo it"
                self._on_progress(Progress(done, total, failed, note))
            whole = [outcome for outcome in batch if outcome is not None]
            videos = [video for outcome in whole for video in outcome.videos]
            if videos:
                self._writer.record_videos(videos)
                self._writer.record_features([feature for outcome in whole for feature in outcome.features])
            done += len(videos)
            failed += sum(State.FAILED in video.states.values() for video in videos)
            self._on_progress(Progress(done, total, failed))
        return done


def _gather_fast(outcomes: Iterator[PartitionOutcome | None]) -> Iterator[list[PartitionOutcome | None]]:
    """Yield the outcomes in lists: all that come before as much time has passed as the last list took to be recorded.

    On an object store a recording takes seconds, however much is recorded; on a disk nothing waits noticeably. What
    has come is also yielded before what ends `outcomes` early is raised, be it the user.
    """
    waiting: list[PartitionOutcome | None] = []
    due = time.monotonic()
    try:
        for outcome in outcomes:
            waiting.append(outcome)
            begun = time.monotonic()
            if begun >= due:
                come, waiting = waiting, []
                yield come
                ended = time.monotonic()
                due = ended + (ended - begun)
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
