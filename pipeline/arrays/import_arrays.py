"""Import published arrays into a feature store: what is pending is planned, read a partition at a time, and recorded.

No video is read. The spec of an imported feature says what the user states about the arrays; each row has the SHA-256
of its file. Features that were extracted and features that were imported are never mixed.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from itertools import groupby
from pathlib import Path

import numpy as np

from pipeline.arrays.layouts import LAYOUTS, Layout
from pipeline.arrays.npy_files import ArrayError
from pipeline.arrays.question_arrays import import_question_feature
from pipeline.arrays.survey import Survey, survey_folder
from pipeline.errors import UserError, reporting_full_disks, unknown_name
from pipeline.manifests.manifest import Manifest
from pipeline.store.schema import IMPORTED, MODALITIES, VIDEOS_PER_PARTITION, FeatureSpec, State
from pipeline.store.seal import digest_row
from pipeline.store.writer import FEATURES, QUESTIONS, FeatureRecord, StoreWriter, VideoRecord, write_rows

# The length of the videos of MUSIC-AVQA, and of the arrays of its releases.
DEFAULT_SECONDS = 60
# Larger values are written at once; smaller ones share chunks and are written together at the end of a partition.
_KEEP_BYTES = 1_000_000

# Called with the task, such as "check" or "import", what is done of it, and its total.
OnProgress = Callable[[str, int, int], None]


@dataclass
class ImportSummary:
    """The state of the manifest's videos and question texts in the store, by feature, and the work of this run.

    `store`: its address. `imported`: the number of arrays that this run imported. `states` {feature: {state: number of
    videos, or of question texts}}. `failures`: the `video_id` (or `question_id`), `feature` and `reason` of each failed
    one. `differing`: the `question_id`, `feature` and `largest_difference` of each question whose array is another one
    than that of an earlier question with the same text, which is the one imported. `notes`: for the user.
    """

    store: str
    videos: int
    questions: int
    imported: int = 0
    states: dict[str, dict[str, int]] = field(default_factory=dict)
    failures: list[dict[str, str]] = field(default_factory=list)
    differing: list[dict[str, str | float]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def is_complete(self) -> bool:
        """Whether no feature is failed or pending."""
        return not any(counts["failed"] or counts["pending"] for counts in self.states.values())


def import_features(
    manifest: Manifest,
    store: str,
    sources: Mapping[str, Path],
    *,
    seconds: int | None = None,
    made_by: str | None = None,
    absent: Collection[str] = (),
    break_lock: bool = False,
    on_progress: OnProgress = lambda task, done, total: None,
) -> ImportSummary:
    """Import what is not complete yet of the features of `manifest`'s videos and questions into `store`.

    `sources` {feature: folder of its arrays}. `seconds`: time steps of a new store (60); arrays with more steps are
    cut, those with fewer leave the other steps missing. `made_by`: what is known about how the arrays were made; None:
    what the store says. `absent`: the modalities that a video without an array does not have; of the others, a missing
    array is a failure. `on_progress` receives the task, what is done of it, and its total.
    Raises `UserError`, before anything is written, if the folders, the manifest and the store do not fit each other.
    """
    for modality in absent:
        if modality not in MODALITIES:
            raise unknown_name("modality", modality, MODALITIES)
    surveys = _survey(manifest, sources, on_progress)
    of_videos = {name: survey for name, survey in surveys.items() if not survey.layout.is_of_questions}
    videos = [video.video_id for video in manifest.videos] if of_videos else []
    summary = ImportSummary(store, len(manifest.videos), len(manifest.texts()))
    with reporting_full_disks(store), StoreWriter(store, f"mavqa {version('mavqa')}", break_lock) as writer:
        steps = _settle_seconds(writer, seconds)
        specs = {name: _match_spec(writer, survey.layout, steps, made_by) for name, survey in surveys.items()}
        summary.notes += _describe_lengths(of_videos, steps)
        rows = _match_videos(writer, videos)
        work = _VideoImport(writer, of_videos, specs, rows, steps, absent)
        pending = work.find_pending(videos)
        texts = {n: set(manifest.texts()) - writer.question_texts(n) for n in surveys.keys() - of_videos.keys()}
        if pending or any(texts.values()):
            _check_writable(writer)
            writer.create(steps)
        if pending:
            summary.imported += work.carry_out(pending, on_progress)
        for name in (name for name in surveys if name in texts):
            progress = partial(on_progress, f"import {name}")
            outcome = import_question_feature(writer, manifest, surveys[name], specs[name], texts[name], progress)
            summary.imported += outcome.imported
            summary.states[name] = outcome.states
            summary.failures += outcome.failures
            summary.differing += outcome.differing
        if not writer.is_read_only:
            writer.seal()
        for name in of_videos:
            _summarise(writer, summary, name, {video: rows[video] for video in videos})
    return summary


def _check_writable(writer: StoreWriter) -> None:
    if writer.is_read_only:
        raise UserError(
            f"store {writer.path} cannot be written: copy it to a disk that can be written, or pass another --store"
        )


def _survey(manifest: Manifest, sources: Mapping[str, Path], on_progress: OnProgress) -> dict[str, Survey]:
    """Return {feature: what its folder has}. Raises `UserError` if one has nothing for the manifest."""
    if not sources:
        raise UserError("no folder of arrays is named: pass --from FEATURE=DIR")
    for name in sources:
        if name not in LAYOUTS:
            raise unknown_name("feature", name, LAYOUTS)
    layouts = {name: LAYOUTS[name] for name in sources}
    videos = [video.video_id for video in manifest.videos]
    questions = [question.question_id for split in manifest.splits for question in manifest.questions[split]]
    for name, layout in layouts.items():
        if not (questions if layout.is_of_questions else videos):
            unit = "questions" if layout.is_of_questions else "videos"
            raise UserError(f"the manifest of {manifest.name} lists no {unit}, for which {name} has arrays")
    names = {name: questions if layout.is_of_questions else videos for name, layout in layouts.items()}
    total, done = sum(map(len, names.values())), 0

    def count() -> None:
        nonlocal done
        done += 1
        on_progress("check", done, total)

    found = {name: survey_folder(layout, sources[name], names[name], count) for name, layout in layouts.items()}
    on_progress("check", total, total)
    return found


def _settle_seconds(writer: StoreWriter, requested: int | None) -> int:
    """Return the time steps per video. Raises `UserError` if the store has others."""
    seconds = requested or writer.seconds or DEFAULT_SECONDS
    if writer.feature_names() and seconds != writer.seconds:
        raise UserError(
            f"store {writer.path} has {writer.seconds} seconds per video, not {seconds}: "
            f"pass --seconds {writer.seconds} or another --store"
        )
    return seconds


def _match_spec(writer: StoreWriter, layout: Layout, seconds: int, made_by: str | None) -> FeatureSpec:
    """Return the spec of a feature. Raises `UserError` if the store has the feature, or other ones, from elsewhere."""
    group = QUESTIONS if layout.is_of_questions else FEATURES
    others = [layout.feature] if layout.is_of_questions else writer.feature_names()
    extracted = [n for n in others if any(not spec.is_imported for spec in writer.feature_specs(n, group))]
    if extracted:
        raise UserError(
            f"store {writer.path} has {', '.join(extracted)} from mavqa-extract, which imported features are never "
            "mixed with: import into another --store"
        )
    known = writer.feature_specs(layout.feature, group)
    stored = known[0].constants[IMPORTED]["made_by"] if known else None
    if stored is not None and made_by not in (None, stored):
        raise UserError(
            f"feature {layout.feature} in {writer.path} was imported with --made-by {stored!r}, not {made_by!r}: "
            "pass the same, leave it out, or import into another --store"
        )
    made_by = stored or made_by or ""
    constants: dict[str, object] = {IMPORTED: {"made_by": made_by}}
    if not layout.is_of_questions:
        constants["sampling"] = {"rule": "that of the arrays", "seconds": seconds, "short": "pad"}
    return layout.spec(constants)


def _match_videos(writer: StoreWriter, videos: Collection[str]) -> dict[str, int]:
    """Return {video id: row} of the store, with the rows that new ones of `videos` will get."""
    rows = {video_id: row for row, video_id in enumerate(writer.video_ids())}
    for video_id in videos:
        rows.setdefault(video_id, len(rows))
    return rows


def _describe_lengths(surveys: Mapping[str, Survey], seconds: int) -> Iterator[str]:
    """Yield a line for the user on each video feature whose arrays are not as long as the time axis."""
    for name, survey in surveys.items():
        longer = sum(steps > seconds for steps in survey.steps.values())
        shorter = sum(steps < seconds for steps in survey.steps.values())
        if longer:
            yield f"{name}: {longer} arrays have more than {seconds} steps and are cut to {seconds}"
        if shorter:
            longest = max(survey.steps.values())
            hint = f"; none has more than {longest}: pass --seconds {longest}" if longest < seconds else ""
            yield f"{name}: {shorter} arrays have fewer than {seconds} steps; the others are missing{hint}"


@dataclass(frozen=True)
class _Pending:
    """A video with features that are not complete."""

    row: int
    video_id: str
    features: tuple[str, ...]


class _VideoImport:
    """The import of video features into one store."""

    def __init__(
        self,
        writer: StoreWriter,
        surveys: Mapping[str, Survey],
        specs: Mapping[str, FeatureSpec],
        rows: Mapping[str, int],
        seconds: int,
        absent: Collection[str],
    ) -> None:
        self._writer, self._surveys, self._specs, self._rows = writer, surveys, specs, rows
        self._seconds, self._absent = seconds, absent
        stored = len(writer.video_ids())
        self._presence = {m: _padded(writer.read_index(f"videos/{m}")[:stored], len(rows)) for m in MODALITIES}
        self._steps = {m: _padded(writer.read_index(f"videos/steps_{m}")[:stored], len(rows)) for m in MODALITIES}
        self._new_videos = list(rows)[stored:]
        # A stopped run may have recorded the length of a video, but none of its features: its array may be another now.
        for modality in MODALITIES:
            own = [n for n in writer.feature_names() if writer.feature_specs(n)[0].modality == modality]
            complete = [_padded(writer.read_index(f"features/{n}/state"), len(rows)) == State.COMPLETE for n in own]
            is_stale = (self._presence[modality] == State.COMPLETE) & ~np.any([*complete, np.zeros(len(rows), bool)], 0)
            self._presence[modality][is_stale] = State.PENDING

    def find_pending(self, videos: Collection[str]) -> list[_Pending]:
        """Return the videos whose features this run records, in the order of their rows.

        A feature that is absent or failed stays so, without being recorded again, if there still is no array.
        """
        kept: dict[str, set[int]] = {}
        for name in self._surveys:
            states, reasons = np.zeros(0, np.uint8), np.zeros(0, object)
            if name in self._writer.feature_names():
                states = self._writer.read_index(f"features/{name}/state")
                reasons = self._writer.read_index(f"features/{name}/reason")
            complete = set(np.flatnonzero(states == State.COMPLETE).tolist())
            unchanged = {
                row
                for video, row in self._rows.items()
                if row < len(states)
                and (state := self._state_without(name, video)) == states[row] != State.PENDING
                and (state == State.ABSENT or self._surveys[name].problem(video) == reasons[row])
            }
            kept[name] = complete | unchanged
        found = []
        for video in sorted(videos, key=self._rows.__getitem__):
            row = self._rows[video]
            if features := tuple(name for name in self._surveys if row not in kept[name]):
                found.append(_Pending(row, video, features))
        return found

    def carry_out(self, pending: list[_Pending], on_progress: OnProgress) -> int:
        """Import the pending features, a partition at a time; return the number of imported arrays."""
        self._writer.append_videos(self._new_videos)
        for name in self._surveys:
            self._writer.add_spec(self._specs[name])
        self._writer.unseal()
        done = imported = 0
        for block, videos in groupby(pending, key=lambda video: video.row // VIDEOS_PER_PARTITION):
            partition = list(videos)
            imported += self._import_partition(block * VIDEOS_PER_PARTITION, partition)
            done += len(partition)
            on_progress("import", done, len(pending))
        return imported

    def _import_partition(self, first_row: int, videos: list[_Pending]) -> int:
        """Write the values of one partition, then record its videos and features."""
        records: list[FeatureRecord] = []
        small: dict[str, dict[int, np.ndarray]] = {}
        for video in videos:
            for name in video.features:
                record, values = self._read(name, video)
                records.append(record)
                if values.nbytes > _KEEP_BYTES:
                    self._write(name, first_row, {video.row: values})
                else:
                    small.setdefault(name, {})[video.row] = values
        for name, rows in small.items():
            lost = self._write(name, first_row, rows)
            records += [FeatureRecord(row, name, State.PENDING) for row in sorted(lost)]
        self._writer.record_videos([self._describe(video, records) for video in videos])
        self._writer.record_features(records)
        return sum(record.state is State.COMPLETE for record in records)

    def _write(self, name: str, first_row: int, rows: dict[int, np.ndarray]) -> set[int]:
        return write_rows(self._writer.path, name, first_row, rows, self._specs[name].fingerprint)

    def _read(self, name: str, video: _Pending) -> tuple[FeatureRecord, np.ndarray]:
        """Return the record and the values [step, ...] of one feature; no values unless it is complete."""
        survey = self._surveys[name]
        layout, row = survey.layout, video.row
        # Of a stopped run, which may have read another version of the array: nothing replaces its values.
        nothing = np.empty((0, *layout.shape), layout.dtype)
        if problem := survey.problem(video.video_id):
            state = self._state_without(name, video.video_id)
            return FeatureRecord(row, name, state, problem if state is State.FAILED else ""), nothing
        try:
            values, sha256 = survey.read(video.video_id, self._seconds)
        except ArrayError as error:
            return FeatureRecord(row, name, State.FAILED, str(error)), nothing
        known = int(self._steps[layout.modality][row])
        if self._presence[layout.modality][row] == State.COMPLETE and known != len(values):
            reason = (
                f"{survey.path(video.video_id).name} has {len(values)} steps, the video's other {layout.modality} "
                f"features have {known}"
            )
            return FeatureRecord(row, name, State.FAILED, reason), nothing
        self._presence[layout.modality][row], self._steps[layout.modality][row] = State.COMPLETE, len(values)
        digest = digest_row(name, video.video_id, values)
        return FeatureRecord(row, name, State.COMPLETE, "", 0, digest, sha256), values

    def _state_without(self, name: str, video: str) -> State:
        """Return the state of a feature of a video without a usable array; pending if it has one."""
        survey, row = self._surveys[name], self._rows[video]
        if not survey.problem(video):
            return State.PENDING
        modality = survey.layout.modality
        others = [other for other in self._surveys.values() if other.layout.modality == modality]
        is_absent = self._presence[modality][row] == State.ABSENT or (
            modality in self._absent and self._presence[modality][row] != State.COMPLETE
        )
        return State.ABSENT if is_absent and not any(other.has_file(video) for other in others) else State.FAILED

    def _describe(self, video: _Pending, records: list[FeatureRecord]) -> VideoRecord:
        """Return the record of a video: a modality is what the best of its features in this run is."""
        states, reasons = dict.fromkeys(MODALITIES, State.PENDING), dict.fromkeys(MODALITIES, "")
        own = [record for record in records if record.row == video.row and record.state is not State.PENDING]
        for modality in MODALITIES:
            found = {r.state: r.reason for r in own if self._specs[r.feature].modality == modality}
            for state in (State.COMPLETE, State.ABSENT, State.FAILED):
                if state in found:
                    states[modality], reasons[modality] = state, found[state]
                    break
        steps = {m: int(self._steps[m][video.row]) if states[m] is State.COMPLETE else 0 for m in MODALITIES}
        return VideoRecord(video.row, "", states, steps, reasons)


def _padded(stored: np.ndarray, total: int) -> np.ndarray:
    """Return an index array of integers for `total` videos: 0 for those that the store does not have yet."""
    values = np.zeros(total, stored.dtype)
    values[: len(stored)] = stored[:total]
    return values


def _summarise(writer: StoreWriter, summary: ImportSummary, feature: str, rows: Mapping[str, int]) -> None:
    """Add the states and failures of a feature of the videos `rows` {video id: row} to `summary`."""
    videos, own = list(rows), np.array(list(rows.values()), dtype=np.int64)
    states, reasons = (writer.read_index(f"features/{feature}/{what}")[own] for what in ("state", "reason"))
    summary.states[feature] = {state.name.lower(): int((states == state).sum()) for state in State}
    for index in np.flatnonzero(states == State.FAILED):
        summary.failures.append({"video_id": videos[index], "feature": feature, "reason": str(reasons[index])})
