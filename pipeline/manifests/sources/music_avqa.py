"""The dataset MUSIC-AVQA: its published files -> manifest. Releases `json`, `json_update`, `v2`, `video-disjoint`.

Supports the files' irregularities: the key `anser`, JSON inside strings, ids that occur twice with contradicting
answers, ids that are floats or missing, several record layouts in v2. No record is corrected or dropped.
Source: Li et al., CVPR 2022 (`json`, `json_update`); Liu et al., WACV 2024 (`v2`); Li et al., "Progressive
Spatio-temporal Perception for Audio-Visual Question Answering", ACM MM 2023 (splits by video).
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.manifests.manifest import SPLITS, Manifest, Question, check_video_id, parse_json
from pipeline.manifests.media_files import Progress
from pipeline.manifests.sources.interface import Built, Option, Source
from pipeline.manifests.sources.records import number_copies, read_records, text_of, with_videos
from pipeline.manifests.sources.vocabulary import UNKNOWN_WORDS, VOCABULARY, choose_vocabulary
from pipeline.manifests.templates import GROUPS, TYPES, fill, normalise, order_answers


@dataclass(frozen=True)
class Release:
    """The files of a release: candidate `folders` in a folder of annotations, and candidate `files` of each split.

    `licence`: that of the annotations. `source`: where to get them and the videos.
    """

    folders: tuple[str, ...]
    files: dict[str, tuple[str, ...]]
    licence: str = "none stated for the annotations; videos from YouTube, for research use"
    source: str = "https://gewu-lab.github.io/MUSIC-AVQA/"


RELEASES = {
    "json": Release(("json", "data/json"), {split: (f"avqa-{split}.json",) for split in SPLITS}),
    "json_update": Release(("json_update", "data/json_update"), {split: (f"avqa-{split}.json",) for split in SPLITS}),
    "v2": Release(
        ("music-avqa-v2", "balance_full_set", "data/balance_full_set"),
        {
            "train": ("balance_train.json", "train_balance.json"),
            "val": ("balance_valid.json", "valid_balance.json"),
            "test": ("balance_test.json", "test_balance.json"),
        },
        licence="GPL-3.0 for the annotations; videos from YouTube, for research use",
        source="https://github.com/DragonLiu1995/MUSIC-AVQA-v2.0 (its own videos), "
        "https://gewu-lab.github.io/MUSIC-AVQA/ (the others)",
    ),
    "video-disjoint": Release(
        ("video_disjoint", "split_vid_id"), {split: (f"music_avqa_{split}.json",) for split in SPLITS}
    ),
}


def build(
    name: str,
    release: str,
    annotations: Path | None = None,
    *,
    train: Path | None = None,
    val: Path | None = None,
    test: Path | None = None,
    videos: Path | None = None,
    progress: Progress | None = None,
    unknown_words: str | None = None,
    vocabulary: Path | None = None,
) -> Built:
    """Return the manifest of `release` from the split files in `annotations`; `train`, `val`, `test` take precedence.

    With a folder of `videos`, their paths and SHA-256 are filled in. `unknown_words`, `vocabulary`: those of
    `choose_vocabulary`. Raises `UserError` if files are missing or malformed.
    """
    given = {split: path for split, path in zip(SPLITS, (train, val, test), strict=True) if path}
    sources = {**(find_files(release, annotations) if annotations else {}), **given}
    if not sources:
        raise UserError("no annotation files: pass --annotations DIR, or --train, --val or --test FILE")
    splits = {split: _read_split(split, sources[split]) for split in SPLITS if split in sources}
    questions = {split: found for split, (found, _) in splits.items()}
    if release == "video-disjoint":
        _check_disjoint(questions)
    chosen = choose_vocabulary(questions, unknown_words, vocabulary)
    answers = order_answers(chosen.answers) if vocabulary is None else chosen.answers
    manifest = Manifest(
        name=name,
        release=release,
        licence=RELEASES[release].licence,
        videos=(),
        questions=questions,
        vocabulary=replace(chosen, answers=answers),
        source=RELEASES[release].source,
    )
    counts: Counter[str] = Counter()
    for _, irregular in splits.values():
        counts.update(irregular)
    notes = () if "train" in questions or vocabulary else ("no training split: the vocabulary comes from all splits",)
    return with_videos(Built(manifest, dict(counts), notes), videos, progress)


def find_files(release: str, annotations: Path) -> dict[str, Path]:
    """Return {split: file} of `release` from its own folder in `annotations`, or from `annotations` itself.

    Raises `UserError` if there are none, or if `annotations` is the folder of another release.
    """
    layout = RELEASES[release]
    below = [annotations / parent / folder for folder in layout.folders for parent in ("", "music-avqa")]
    for folder in (*below, annotations):
        if found := _files_in(folder, layout):
            break
    else:
        names = ", ".join(name for names in layout.files.values() for name in names)
        raise UserError(f"no files of release {release!r} in {str(annotations)!r}: looked for {names}")
    for other, other_layout in RELEASES.items():
        same_files = other_layout.files == layout.files
        if other != release and same_files and folder.resolve().name in {Path(n).name for n in other_layout.folders}:
            raise UserError(f"{str(folder)!r} contains release {other!r}, not {release!r}: pass --release {other}")
    return found


def _files_in(folder: Path, layout: Release) -> dict[str, Path]:
    paths = {split: [folder / name for name in names] for split, names in layout.files.items()}
    return {split: path for split, candidates in paths.items() for path in candidates if path.is_file()}


def _check_disjoint(questions: Mapping[str, Iterable[Question]]) -> None:
    split_of: dict[str, str] = {}
    for split, members in questions.items():
        for question in members:
            first = split_of.setdefault(question.video_id, split)
            if first != split:
                raise UserError(
                    f"release 'video-disjoint': video {question.video_id!r} is in {first!r} and {split!r}: "
                    "pass files that are split by video, or another --release"
                )


def _read_split(split: str, path: Path) -> tuple[tuple[Question, ...], Counter[str]]:
    """Return the questions of a file in order, and the numbers of repeated, contradicting and invented ids."""
    questions: list[Question] = []
    invented = 0
    for number, record in enumerate(read_records(path), start=1):
        try:
            questions.append(_parse(record, split))
        except (UserError, KeyError, TypeError, ValueError) as error:
            problem = f"{error} is missing" if isinstance(error, KeyError) else error
            raise UserError(f"{path}: record {number}: {problem}") from None
        invented += record.get("question_id") is None
    numbered, counts = number_copies(questions)
    counts["invented_ids"] = invented
    return numbered, counts


def _parse(record: dict[str, Any], split: str) -> Question:
    group, kind = _json_list(record["type"])
    question_type = f"{group} {kind}"
    if group not in GROUPS or question_type not in TYPES:
        raise UserError(f"type {question_type!r} is not one of {', '.join(TYPES)}")
    template = normalise(text_of(record, "question_content"))
    values = _json_list(record["templ_values"])
    return Question(
        question_id=_question_id(record, split, template, values),
        video_id=check_video_id(text_of(record, "video_id")),
        text=fill(template, values),
        template=template,
        answer=text_of(record, "anser"),
        type=question_type,
        modality=group,
    )


def _json_list(value: Any) -> list[str]:
    items = parse_json(value) if isinstance(value, str) else value
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise UserError(f"{value!r} is not a list of words: fix the record")
    return items


def _question_id(record: dict[str, Any], split: str, template: str, values: list[str]) -> str:
    """Return the record's id as text; if missing, one derived from its split, video and question."""
    given = record.get("question_id")
    if given is None:
        content = json.dumps([record["video_id"], template, values])
        return f"{split}-{hashlib.sha256(content.encode()).hexdigest()[:12]}"
    if isinstance(given, float):
        if not given.is_integer():
            raise UserError(f"question_id {given} is not an integer: fix the record")
        given = int(given)
    return str(given)


SOURCE = Source(
    build,
    (
        Option("annotations", "Folder of the published annotation files.", "folder"),
        Option("release", "Release to build.", tuple(RELEASES), default="json_update"),
        Option("train", "Training questions. Takes precedence over --annotations."),
        Option("val", "Validation questions. Takes precedence over --annotations."),
        Option("test", "Test questions. Takes precedence over --annotations."),
        Option("videos", "Folder searched for <video id>.*, to record paths and SHA-256.", "folder"),
        UNKNOWN_WORDS,
        VOCABULARY,
    ),
    """Build the manifest of MUSIC-AVQA from its JSON files.

    One release is built, with all splits found.

    \b
    Examples:
      mavqa-manifest build music-avqa --annotations MUSIC-AVQA/data --out data_manifests/music-avqa
      mavqa-manifest build music-avqa --release v2 --test test_balance.json --out data_manifests/v2
    """,
)
