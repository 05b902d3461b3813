"""Checks of a manifest for `mavqa-manifest check`: whether it is consistent, and whether its video files match.

Errors make a manifest unusable. Warnings are about questions that a model may be unable to answer; of answers and words
outside the vocabulary, they are expected of datasets with an open one. The counts are for review by the user.
"""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.manifests.findings import Finding
from pipeline.manifests.manifest import PADDING_TOKEN, Manifest, Question, Video
from pipeline.manifests.media_files import Progress, hash_files
from pipeline.manifests.near_names import NearNames
from pipeline.manifests.review import review_questions
from pipeline.manifests.templates import tokenise

TOLERATED = ("unknown answer", "answer is no choice", "unknown word")
ALWAYS_TOLERATED = ("answers alike", "contradicting answers", "one word")


@dataclass(frozen=True)
class Report:
    """The result of a check; `files_checked` is False if no videos folder was given."""

    errors: tuple[Finding, ...]
    files_checked: bool
    counts: dict[str, Any]
    warnings: tuple[Finding, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        return {
            "ok": not self.errors,
            "errors": [asdict(finding) for finding in self.errors],
            "warnings": [asdict(finding) for finding in self.warnings],
            "files_checked": self.files_checked,
            "counts": self.counts,
        }


def check_manifest(manifest: Manifest, videos: Path | None, progress: Progress | None = None) -> Report:
    """Return the report on `manifest`; with a folder `videos`, its files are looked up and hashed.

    `progress` is called with (files hashed, files in all). Raises `UserError` if the folder is missing.
    """
    found = [*_check_ids(manifest), *_check_answers(manifest), *_check_words(manifest)]
    if videos is not None:
        found += _check_files(manifest.videos, videos, progress)
    found += review_questions(manifest)
    tolerated = (*ALWAYS_TOLERATED, *(TOLERATED if manifest.vocabulary.is_open else ()))
    errors = tuple(finding for finding in found if finding.kind not in tolerated)
    warnings = tuple(finding for finding in found if finding.kind in tolerated)
    return Report(errors, videos is not None, count(manifest), warnings)


def count(manifest: Manifest) -> dict[str, Any]:
    """Return the counts of a manifest: its videos, the contents of each split, and what pairs of splits share."""
    return {
        "videos": len(manifest.videos),
        "videos_without_sha256": sum(not video.sha256 for video in manifest.videos),
        "tokens": len(manifest.vocabulary.tokens),
        "answers": len(manifest.vocabulary.answers),
        "splits": {split: _count_split(manifest.questions[split]) for split in manifest.splits},
        "shared": {
            f"{one}, {other}": _count_shared(manifest.questions[one], manifest.questions[other])
            for one, other in combinations(manifest.splits, 2)
        },
    }


def _count_split(questions: Sequence[Question]) -> dict[str, Any]:
    return {
        "questions": len(questions),
        "videos": len({question.video_id for question in questions}),
        "multiple_choice": sum(question.choices is not None for question in questions),
        "types": dict(sorted(Counter(question.type for question in questions).items())),
        "answers": dict(Counter(question.answer for question in questions).most_common()),
    }


def _count_shared(one: Sequence[Question], other: Sequence[Question]) -> dict[str, int]:
    return {
        "videos": len({q.video_id for q in one} & {q.video_id for q in other}),
        "questions": len({(q.video_id, q.text) for q in one} & {(q.video_id, q.text) for q in other}),
    }


def _check_ids(manifest: Manifest) -> Iterator[Finding]:
    known = {video.video_id for video in manifest.videos}
    seen: dict[str, str] = {}
    unknown: dict[str, str] = {}
    for split, question in _questions(manifest):
        if question.video_id not in known:
            unknown.setdefault(question.video_id, f"question {question.question_id!r} of {split!r}")
        if first := seen.get(question.question_id):
            where = f"twice in {split!r}" if first == split else f"in {first!r} and in {split!r}"
            yield Finding("repeated id", question.question_id, f"question id {question.question_id!r} is {where}")
        seen[question.question_id] = split
    near_names = NearNames(known) if unknown else None
    for video_id, where in unknown.items():
        near = near_names.find(video_id) if near_names else None
        hint = f", which has {near[0]!r}: they differ in {near[1]}" if near else ""
        yield Finding("unknown video", video_id, f"video {video_id!r} of {where} is not in videos.csv{hint}")


def _check_answers(manifest: Manifest) -> Iterator[Finding]:
    known = set(manifest.vocabulary.answers)
    unknown = Counter((split, q.answer) for split, q in _questions(manifest) if q.answer not in known)
    for (split, answer), number in unknown.items():
        message = f"answer {answer!r} of {number} questions of {split!r} is not in the vocabulary"
        yield Finding("unknown answer", answer, message)
    for split, question in _questions(manifest):
        if question.choices is not None and question.answer not in question.choices:
            where = f"question {question.question_id!r} of {split!r}"
            message = f"{where}: answer {question.answer!r} is not one of its choices"
            yield Finding("answer is no choice", question.question_id, message)


def _check_words(manifest: Manifest) -> Iterator[Finding]:
    if manifest.vocabulary.tokens[:1] != (PADDING_TOKEN,):
        yield Finding("vocabulary", PADDING_TOKEN, f"the first token of the vocabulary is not {PADDING_TOKEN!r}")
    for kind in ("tokens", "answers"):
        entries: tuple[str, ...] = getattr(manifest.vocabulary, kind)
        for entry, number in Counter(entries).items():
            if number > 1:
                yield Finding("vocabulary", entry, f"{entry!r} occurs {number} times among the {kind}")
    known, length = set(manifest.vocabulary.tokens), manifest.vocabulary.question_length
    words: Counter[str] = Counter()
    for text in manifest.texts():
        tokens = tokenise(text)
        words.update({token for token in tokens if token not in known})
        if len(tokens) > length:
            message = f"question {text!r} has {len(tokens)} words, at most {length} are allowed"
            yield Finding("long question", text, message)
    for word, number in words.items():
        yield Finding("unknown word", word, f"word {word!r} of {number} question texts is not in the vocabulary")


def _check_files(videos: tuple[Video, ...], folder: Path, progress: Progress | None) -> Iterator[Finding]:
    if not folder.is_dir():
        raise UserError(f"videos folder {str(folder)!r} does not exist: pass the folder of the videos")
    available = [video for video in videos if os.path.isfile(folder / video.path)]
    for video in videos:
        if not os.path.isfile(folder / video.path):
            message = f"video {video.video_id!r}: no file {str(folder / video.path)!r}"
            yield Finding("missing file", video.video_id, message)
    digests, unreadable = hash_files(folder, [video.path for video in available if video.sha256], progress)
    yield from unreadable
    for video in available:
        digest = digests.get(video.path, video.sha256)
        if digest != video.sha256:
            found = f"sha256 {digest}" if digest else "another size"
            message = f"video {video.video_id!r}: its file has {found}, not sha256 {video.sha256}"
            yield Finding("different file", video.video_id, message)


def _questions(manifest: Manifest) -> Iterator[tuple[str, Question]]:
    for split in manifest.splits:
        for question in manifest.questions[split]:
            yield split, question
