"""Export features of a store as the arrays that the releases' own code reads: one float32 `.npy` per video or question.

What will be written, and how large it is, is decided first. Beside the folders, `exported-FEATURE.jsonl` has a line for
each finished array, so that a stopped export goes on, and `export.json` the summary of the last run.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pipeline.arrays.layouts import LAYOUTS, PUBLISHED_DTYPE, Layout, find_layout
from pipeline.arrays.npy_files import SUFFIX
from pipeline.errors import UserError
from pipeline.files import check_plain_name, locked, replace_text, staged
from pipeline.manifests.manifest import Manifest, parse_json
from pipeline.store.reader import FeatureStore, reporting_damage
from pipeline.store.schema import State
from pipeline.store.seal import digest_row

ExportPadding = Literal["repeat", "none"]
# The header that numpy writes before the values.
_HEADER_BYTES = 128


@dataclass(frozen=True)
class PlannedArray:
    """One array to write: `name` without suffix, from `row` of the store, whose key and digest it has.

    Of a video, it has `length` time steps, the stored ones from `first` to `stop` - 1 and repetitions around them.
    """

    name: str
    row: int
    key: str
    digest: str
    length: int = 1
    first: int = 0
    stop: int = 1

    def n_bytes(self, layout: Layout) -> int:
        """Return the size of its file."""
        values = self.length * int(np.prod(layout.shape, dtype=np.int64))
        return _HEADER_BYTES + values * np.dtype(PUBLISHED_DTYPE).itemsize

    def finished_entry(self, size: int) -> dict[str, Any]:
        """Return what is recorded of the finished array: if it is the same in another run, so is the array."""
        return {"name": self.name, "digest": self.digest, "steps": [self.length, self.first, self.stop], "bytes": size}


@dataclass
class ExportPlan:
    """What an export does. `arrays` {feature: those to write}; `finished` {feature: number of those written before}.

    `missing`: the `video_id` (or `question_id`), `feature`, `state` and `reason` of each that is not complete.
    `short`: the `video_id`, `feature` and `steps` [first, stop] of each array with repeated steps around its own, or
    with fewer steps than the store.
    """

    store: FeatureStore
    out: Path
    arrays: dict[str, list[PlannedArray]] = field(default_factory=dict)
    finished: dict[str, int] = field(default_factory=dict)
    missing: list[dict[str, str]] = field(default_factory=list)
    short: list[dict[str, Any]] = field(default_factory=list)

    @property
    def n_bytes(self) -> int:
        """The size of the arrays that are written."""
        return sum(array.n_bytes(LAYOUTS[name]) for name, arrays in self.arrays.items() for array in arrays)

    @property
    def free_bytes(self) -> int:
        """The free space where they are written."""
        folder = next(folder for folder in (self.out, *self.out.absolute().parents) if folder.exists())
        return shutil.disk_usage(folder).free


@dataclass
class ExportSummary:
    """The result of an export: `folders` {feature: folder of its arrays}, `written` and `finished` {feature: arrays}.

    `finished` were written by an earlier run. `missing` and `short` as in `ExportPlan`.
    """

    store: str
    out: str
    folders: dict[str, str]
    written: dict[str, int]
    finished: dict[str, int]
    missing: list[dict[str, str]]
    short: list[dict[str, Any]]

    @property
    def is_complete(self) -> bool:
        """Whether nothing is missing but what is absent."""
        return all(entry["state"] == "absent" for entry in self.missing)


def plan_export(
    store: FeatureStore,
    out: Path,
    features: Sequence[str] | None = None,
    manifest: Manifest | None = None,
    padding: ExportPadding = "repeat",
) -> ExportPlan:
    """Return what has to be written to `out`, of which nothing is written yet.

    `features`: None, all that have a layout. `manifest`: export its videos only, and features of its questions, which
    are named by their ids. `padding`: what fills the steps after a short video, "repeat" its last one, or "none", so
    that the array is shorter. Steps before a late start always repeat the first one.
    Raises `UserError` if a feature is not in the store or has no layout, or if the disk is too small.
    """
    plan = ExportPlan(store, out)
    for name in _choose_features(store, features, manifest):
        layout = LAYOUTS[name]
        if layout.is_of_questions:
            assert manifest is not None
            planned = list(_plan_questions(plan, layout, manifest))
        else:
            planned = list(_plan_videos(plan, layout, manifest, padding))
        finished = _read_finished(_record_path(out, name))
        plan.arrays[name] = [array for array in planned if not _is_finished(out, layout, array, finished)]
        plan.finished[name] = len(planned) - len(plan.arrays[name])
    if not any(plan.arrays.values()) and not any(plan.finished.values()):
        raise UserError(f"store {store.path} has no complete row of {', '.join(plan.arrays)} to export")
    if plan.n_bytes > plan.free_bytes:
        raise UserError(
            f"{out} has {plan.free_bytes / 1e9:.1f} GB free, the export needs {plan.n_bytes / 1e9:.1f} GB: free some, "
            "pass another --out, or fewer --features"
        )
    return plan


def carry_out(plan: ExportPlan, on_progress: Callable[[int, int], None] = lambda done, total: None) -> ExportSummary:
    """Write the arrays of `plan`; `on_progress` receives (arrays done, arrays to write)."""
    total, done = sum(map(len, plan.arrays.values())), 0
    with locked(plan.out, "another export"):
        for name, arrays in plan.arrays.items():
            for block in _write_feature(plan, LAYOUTS[name], arrays):
                done += len(block)
                on_progress(done, total)
        summary = ExportSummary(
            store=plan.store.path,
            out=str(plan.out),
            folders={name: LAYOUTS[name].folders[0] for name in plan.arrays},
            written={name: len(arrays) for name, arrays in plan.arrays.items()},
            finished=plan.finished,
            missing=plan.missing,
            short=plan.short,
        )
        replace_text(plan.out / "export.json", json.dumps({"format": 1, **asdict(summary)}, indent=2) + "\n")
    return summary


def _choose_features(store: FeatureStore, features: Sequence[str] | None, manifest: Manifest | None) -> list[str]:
    stored = [*store.feature_names, *(store.question_feature_names if manifest else ())]
    if features is None:
        chosen = [name for name in LAYOUTS if name in stored]
        if not chosen:
            raise UserError(f"store {store.path} has no feature with a layout: they are {', '.join(LAYOUTS)}")
        return chosen
    if not features:
        raise UserError(f"--features names no feature: choose from {', '.join(LAYOUTS)}")
    for name in features:
        if find_layout(name).is_of_questions and manifest is None:
            raise UserError(f"--features {name}: its arrays are named by question ids: pass --manifest")
        if find_layout(name).feature not in stored:
            raise UserError(f"store {store.path} has no feature {name}: it has {', '.join(stored) or 'none'}")
    return list(dict.fromkeys(find_layout(name).feature for name in features))


def _plan_videos(
    plan: ExportPlan, layout: Layout, manifest: Manifest | None, padding: ExportPadding
) -> Iterator[PlannedArray]:
    """Yield the arrays of a video feature, in the order of their rows; add the others to the plan's `missing`."""
    store, name = plan.store, layout.feature
    states, digests, reasons = store.state(name), store.digests(name), store.feature_reasons(name)
    firsts, stops = store.filled_steps(name)
    videos = store.video_ids if manifest is None else [video.video_id for video in manifest.videos]
    for video_id in videos:
        if video_id not in store.rows:
            entry = {"state": "unknown", "reason": "the store does not have the video"}
            plan.missing.append({"video_id": video_id, "feature": name, **entry})
    for video_id in sorted((v for v in videos if v in store.rows), key=store.rows.__getitem__):
        row = store.rows[video_id]
        if states[row] != State.COMPLETE:
            entry = {"state": State(int(states[row])).name.lower(), "reason": reasons[row]}
            plan.missing.append({"video_id": video_id, "feature": name, **entry})
            continue
        first, stop = int(firsts[row]), int(stops[row])
        length = store.seconds if padding == "repeat" else stop
        if first or stop != store.seconds:
            plan.short.append({"video_id": video_id, "feature": name, "steps": [first, stop]})
        yield PlannedArray(video_id, row, video_id, digests[row], length, first, stop)


def _plan_questions(plan: ExportPlan, layout: Layout, manifest: Manifest) -> Iterator[PlannedArray]:
    """Yield the arrays of a question feature, in the order of their rows; add the others to the plan's `missing`."""
    rows, digests = plan.store.question_rows, plan.store.question_digests(layout.feature)
    texts: dict[str, str] = {}
    for question in (question for split in manifest.splits for question in manifest.questions[split]):
        check_plain_name("question id", question.question_id, "build the manifest with other ids")
        if texts.setdefault(question.question_id, question.text) != question.text:
            raise UserError(
                f"question id {question.question_id!r} has two texts in the manifest of {manifest.name}, such as "
                f"{question.text!r}: export without features of questions"
            )
    for question_id, text in texts.items():
        if text not in digests:
            entry = {"state": "pending", "reason": "the store does not have it for the question's text"}
            plan.missing.append({"question_id": question_id, "feature": layout.feature, **entry})
    for question_id, text in sorted(texts.items(), key=lambda item: rows.get(item[1], -1)):
        if text in digests:
            yield PlannedArray(question_id, rows[text], text, digests[text])


def _write_feature(plan: ExportPlan, layout: Layout, arrays: Iterable[PlannedArray]) -> Iterator[list[PlannedArray]]:
    """Write the arrays of one feature and yield them, a block of the store at a time."""
    store, name = plan.store, layout.feature
    values = store.question_values(name) if layout.is_of_questions else store.values(name)
    stops = None if layout.is_of_questions else store.filled_steps(name)[1]
    record = _record_path(plan.out, name)
    for block, group in groupby(arrays, key=lambda array: array.row // values.chunks[0]):
        own, first = list(group), block * values.chunks[0]
        with reporting_damage(store.path, f"{name}/values"):
            stored = np.asarray(values[first : first + values.chunks[0]])
        lines = []
        for array in own:
            row = stored[array.row - first]
            if digest_row(name, array.key, row if stops is None else row[: stops[array.row]]) != array.digest:
                raise UserError(
                    f"store {store.path}: {name} of {array.key!r} is not what was computed for it: the store is "
                    f"corrupt, list all faults with 'mavqa-inspect {store.path} --verify'"
                )
            steps = np.clip(np.arange(array.length), array.first, array.stop - 1)
            written = row[None] if stops is None else row[steps]
            lines.append(array.finished_entry(_save(_array_path(plan.out, layout, array), written)))
        with record.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
        yield own


def _save(path: Path, values: np.ndarray) -> int:
    """Write an array as float32; return the size of its file."""
    with staged(path) as staging, staging.open("wb") as file:
        np.save(file, np.ascontiguousarray(values, PUBLISHED_DTYPE), allow_pickle=False)
    return path.stat().st_size


def _array_path(out: Path, layout: Layout, array: PlannedArray) -> Path:
    return out / layout.folders[0] / f"{array.name}{SUFFIX}"


def _record_path(out: Path, feature: str) -> Path:
    return out / f"exported-{feature}.jsonl"


def _read_finished(record: Path) -> dict[str, dict[str, Any]]:
    """Return {name: what was recorded of the array}; the last line may be incomplete."""
    finished = {}
    for line in record.read_text(encoding="utf-8").splitlines() if record.exists() else ():
        try:
            entry = parse_json(line)
            finished[str(entry["name"])] = entry
        except (ValueError, KeyError, TypeError):
            continue
    return finished


def _is_finished(out: Path, layout: Layout, array: PlannedArray, finished: dict[str, dict[str, Any]]) -> bool:
    """Return whether the array was written from the same values, and its file still has the size that it had."""
    path = _array_path(out, layout, array)
    if array.name not in finished or not path.is_file():
        return False
    return finished[array.name] == array.finished_entry(path.stat().st_size)
