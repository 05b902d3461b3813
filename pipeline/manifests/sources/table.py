"""The user's own questions as a CSV table -> manifest.

Columns: `video`, `question`, `answer`; optional `type`, `modality`, `split`, `choices` (separated by `|`) and
`question_id`. `video` is a path in the videos folder with or without suffix, or a file name without suffix.
"""

from pathlib import Path

from pipeline.errors import UserError
from pipeline.manifests.csv_table import Row, read_choices, read_table
from pipeline.manifests.manifest import (
    SPLITS,
    Manifest,
    Question,
    Video,
    check_relative_path,
)
from pipeline.manifests.media_files import Progress
from pipeline.manifests.media_names import check_name, name_videos, split_suffix
from pipeline.manifests.sources.interface import Built, Option, Source
from pipeline.manifests.sources.records import Located, locate_videos
from pipeline.manifests.sources.vocabulary import UNKNOWN_WORDS, VOCABULARY, choose_vocabulary
from pipeline.manifests.templates import GROUPS, TYPES, group_of, normalise, tokenise

REQUIRED = ("video", "question", "answer")
OPTIONAL = ("type", "modality", "split", "choices", "question_id")
UNSPECIFIED = "unspecified"


def build(
    name: str,
    csv: Path,
    videos: Path | None = None,
    progress: Progress | None = None,
    *,
    unknown_words: str | None = None,
    vocabulary: Path | None = None,
) -> Built:
    """Return the manifest of a CSV file; with a folder of `videos`, their paths and SHA-256 are filled in.

    Rows without a split are `train`. The modality of MUSIC-AVQA's nine types is implied; that of other types is
    "unspecified" unless given. `unknown_words`, `vocabulary`: those of `choose_vocabulary`.
    Raises `UserError` with the file and line of an error.
    """
    rows = list(read_table(csv, REQUIRED, OPTIONAL))
    ids = _name_rows(csv, rows)
    questions: dict[str, list[Question]] = {}
    lines: dict[str, int] = {}
    for position, (line, row) in enumerate(rows, start=1):
        try:
            question = _parse(row, ids[row["video"]], str(position))
            split = _one_of("split", row.get("split", "") or "train", SPLITS)
        except UserError as error:
            raise UserError(f"{csv}:{line}: {error}") from None
        first = lines.setdefault(question.question_id, line)
        if first != line:
            raise UserError(f"{csv}:{line}: question_id {question.question_id!r} is already used in line {first}")
        questions.setdefault(split, []).append(question)
    chosen = choose_vocabulary(questions, unknown_words, vocabulary)
    located = _find_videos(ids, videos, progress)
    manifest = Manifest(
        name=name,
        release="table",
        licence="unknown",
        videos=located.videos,
        questions={split: tuple(questions[split]) for split in SPLITS if split in questions},
        vocabulary=chosen,
    )
    notes = located.notes
    if not any(row.get("split") for _, row in rows):
        notes = ("no splits given: all questions are in 'train'", *notes)
    if unused := [column for column in rows[0][1] if column not in (*REQUIRED, *OPTIONAL)]:
        notes = (f"columns not used: {', '.join(unused)}", *notes)
    return Built(manifest, {"missing_videos": located.missing} if videos else {}, notes, located.skipped)


def _name_rows(table: Path, rows: list[tuple[int, Row]]) -> dict[str, str]:
    """Return {value of the column `video`: video id}; raise `UserError` with the line of an invalid value."""
    for line, row in rows:
        try:
            check_relative_path(check_name(row["video"]))
            name_videos([row["video"]])
        except UserError as error:
            raise UserError(f"{table}:{line}: {error}") from None
    ids, repeated = name_videos(row["video"] for _, row in rows)
    if repeated:
        raise UserError(f"{table}: {repeated[0].message}")
    return ids


def _parse(row: Row, video_id: str, default_id: str) -> Question:
    text = normalise(row["question"])
    if not tokenise(text):
        raise UserError(f"question {row['question']!r} has no words: fix the line")
    choices = read_choices(row)
    if choices and row["answer"] not in choices:
        raise UserError(f"answer {row['answer']!r} is not one of its choices {'|'.join(choices)!r}")
    kind = row.get("type", "") or UNSPECIFIED
    implied = group_of(kind) if kind in TYPES else UNSPECIFIED
    return Question(
        question_id=row.get("question_id", "") or default_id,
        video_id=video_id,
        text=text,
        template=text,
        answer=row["answer"],
        type=kind,
        modality=_one_of("modality", row.get("modality", "") or implied, (*GROUPS, UNSPECIFIED)),
        choices=choices,
    )


def _one_of(column: str, value: str, allowed: tuple[str, ...]) -> str:
    for known in allowed:
        if value.lower() == known.lower():
            return known
    raise UserError(f"{column} {value!r} is not one of {', '.join(allowed)}")


def _find_videos(ids: dict[str, str], folder: Path | None, progress: Progress | None) -> Located:
    if folder is not None:
        return locate_videos({video_id: name for name, video_id in ids.items()}, folder, progress)
    paths = {video_id: name if split_suffix(name)[1] else f"{name}.mp4" for name, video_id in ids.items()}
    return Located(tuple(Video(video_id, path) for video_id, path in paths.items()))


SOURCE = Source(
    build,
    (
        Option("csv", "CSV table with the columns video, question, answer.", is_required=True),
        Option("videos", "Folder searched for the videos, to record paths and SHA-256.", "folder"),
        UNKNOWN_WORDS,
        VOCABULARY,
    ),
    """Build a manifest from your own questions in a CSV file.

    Columns: video (a path in --videos, or a name without suffix), question, answer; optional: type, modality
    (Audio, Visual or Audio-Visual), split (train, val or test), choices (separated by vertical bars), question_id.

    \b
    Example:
      mavqa-manifest build table --csv questions.csv --videos clips --out data_manifests/mine
    """,
)
