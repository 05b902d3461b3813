"""Shared by the sources: reading published records, and looking up videos in a folder."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.manifests.findings import Finding
from pipeline.manifests.manifest import Question, Video, parse_json
from pipeline.manifests.media_files import MediaIndex, Progress, describe_unhashed, hash_files
from pipeline.manifests.sources.interface import Built


def read_records(path: Path) -> list[dict[str, Any]]:
    """Return the records of a JSON file; raise `UserError` if it is missing or not a list of records."""
    try:
        records = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"annotation file {str(path)!r} does not exist: pass an existing file") from None
    except ValueError as error:
        raise UserError(f"annotation file {str(path)!r} is not JSON: {error}") from None
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise UserError(f"annotation file {str(path)!r} is not a list of records: pass an official split file")
    return records


def text_of(record: dict[str, Any], key: str) -> str:
    """Return the stripped text at `key`; raise KeyError if it is missing, `UserError` if it is empty or not text."""
    value = record[key]
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{key} {value!r} is not text: fix the record")
    return value.strip()


def number_copies(questions: Iterable[Question]) -> tuple[tuple[Question, ...], Counter[str]]:
    """Rename later copies of an id to `<id>#2`, `<id>#3`; return the questions, and the counts of such ids.

    `repeated_ids` occur more than once, `contradicting_ids` with different answers.
    """
    answers_by_id: dict[str, list[str]] = {}
    numbered = []
    for question in questions:
        answers = answers_by_id.setdefault(question.question_id, [])
        answers.append(question.answer)
        copy = f"{question.question_id}#{len(answers)}"
        numbered.append(replace(question, question_id=copy) if len(answers) > 1 else question)
    repeated = [answers for answers in answers_by_id.values() if len(answers) > 1]
    contradicting = sum(len(set(answers)) > 1 for answers in repeated)
    return tuple(numbered), Counter(repeated_ids=len(repeated), contradicting_ids=contradicting)


def with_videos(built: Built, folder: Path | None, progress: Progress | None) -> Built:
    """Return `built` with the videos of its questions, looked up in `folder` if it is given."""
    questions = (question for split in built.manifest.questions.values() for question in split)
    ids = sorted({question.video_id for question in questions})
    if folder is None:
        return replace(built, manifest=replace(built.manifest, videos=tuple(map(_expected_video, ids))))
    located = locate_videos({video_id: video_id for video_id in ids}, folder, progress)
    return replace(
        built,
        manifest=replace(built.manifest, videos=located.videos),
        counts={**built.counts, "missing_videos": located.missing},
        notes=(*built.notes, *located.notes),
        skipped=located.skipped,
    )


@dataclass(frozen=True)
class Located:
    """Videos looked up in a folder.

    `missing`: the number of videos that are missing or unreadable. `skipped`: files that are left out and may be
    theirs.
    """

    videos: tuple[Video, ...]
    missing: int = 0
    notes: tuple[str, ...] = ()
    skipped: tuple[Finding, ...] = ()


def locate_videos(names: dict[str, str], folder: Path, progress: Progress | None = None) -> Located:
    """Return the videos of {id: name to look up}, with path and SHA-256 as found in `folder`.

    A missing video gets the path `<id>.mp4` and no SHA-256. Raises `UserError` if all are missing.
    """
    index = MediaIndex(folder)
    found = {video_id: path for video_id, name in names.items() if (path := index.find(name))}
    near = index.describe_near([name for video_id, name in names.items() if video_id not in found])
    if names and not found:
        example = next(iter(names.values()))
        fix = f"{near}: write them as the files are named" if near else "pass another"
        raise UserError(f"none of the {len(names)} videos (first: {example!r}) is in {str(folder)!r}: {fix}")
    digests, unreadable = hash_files(folder, dict.fromkeys(found.values()), progress)
    videos = {video_id: Video(video_id, path, digests[path]) for video_id, path in found.items() if path in digests}
    missing = [video_id for video_id in names if video_id not in videos]
    return Located(
        tuple(videos.get(video_id) or _expected_video(video_id) for video_id in names),
        len(missing),
        (*_describe_missing(missing, near, folder), *describe_unhashed(digests)),
        (*index.unusable, *unreadable) if missing else (),
    )


def _expected_video(video_id: str) -> Video:
    """Return the video of a file that was not found: the path where it is expected, and no SHA-256."""
    return Video(video_id, f"{video_id}.mp4")


def _describe_missing(missing: Sequence[str], near: str, folder: Path) -> tuple[str, ...]:
    """Return the notes on the missing videos; empty if none are missing."""
    if not missing:
        return ()
    note = f"{len(missing)} videos are not in {str(folder)!r} (first: {missing[0]!r})"
    return (note, f"of these, {near}: write them as the files are named") if near else (note,)
