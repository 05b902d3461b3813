"""Anyone's questions as a CSV table -> manifest.

Columns: `video`, `question`, `answer`; optional `type`, `modality`, `split`, `choices` (divided by `|`) and
`question_id`. `video` is a path below the videos folder, or such a path or a file name without its suffix.
"""

import csv
import io
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from pipeline.errors import UserError
from pipeline.manifests.manifest import (
    SPLITS,
    Manifest,
    Question,
    Video,
    check_relative_path,
)
from pipeline.manifests.media_files import Progress, check_text, name_videos, split_suffix
from pipeline.manifests.sources.interface import Built, Option, Source
from pipeline.manifests.sources.records import describe_missing, locate_videos
from pipeline.manifests.templates import GROUPS, TYPES, freeze_vocabulary, group_of, normalise, tokenise

NEEDED = ("video", "question", "answer")
OPTIONAL = ("type", "modality", "split", "choices", "question_id")
UNSPECIFIED = "unspecified"

Row = dict[str, str]


def build(name: str, csv: Path, videos: Path | None = None, progress: Progress | None = None) -> Built:
    """Return the manifest of a CSV file; with a folder of `videos`, their paths and SHA-256 are filled in.

    Rows without a split are `train`; a type outside MUSIC-AVQA's nine needs a modality, or has none. The
    vocabulary comes from the training split, from all splits where there is none. Raises `UserError` with the
    file and line of what is wrong.
    """
    rows = list(_read_rows(csv))
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
            raise UserError(f"{csv}:{line}: question_id {question.question_id!r} stands in line {first} too")
        questions.setdefault(split, []).append(question)
    found, missing = _find_videos(ids, videos, progress)
    manifest = Manifest(
        name=name,
        release="table",
        licence="unknown",
        videos=found,
        questions={split: tuple(questions[split]) for split in SPLITS if split in questions},
        vocabulary=freeze_vocabulary(questions),
    )
    notes = () if videos is None else describe_missing(missing, videos)
    if not any(row.get("split") for _, row in rows):
        notes = ("no split is given: every question is in 'train'", *notes)
    return Built(manifest, {"missing_videos": len(missing)} if videos else {}, (*_unused(rows), *notes))


def _read_rows(table: Path) -> Iterator[tuple[int, Row]]:
    """Yield (line, row) of the table, names and values stripped; raise `UserError` where it is none."""
    try:
        text = table.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"table {str(table)!r} is not there: name a CSV file") from None
    except (UnicodeDecodeError, IsADirectoryError):
        raise UserError(f"table {str(table)!r} is not UTF-8 text: save it as CSV in UTF-8") from None
    reader = csv.reader(io.StringIO(text, newline=""))
    header = [column.strip().lower() for column in next(reader, [])]
    absent = [column for column in NEEDED if column not in header]
    if absent:
        raise UserError(
            f"{table}:1: column {absent[0]!r} is missing in {','.join(header)!r}: "
            f"expected {','.join(NEEDED)} and perhaps {','.join(OPTIONAL)}, divided by commas"
        )
    count = 0
    for values in reader:
        if not any(value.strip() for value in values):
            continue
        if len(values) != len(header):
            raise UserError(f"{table}:{reader.line_num}: {len(values)} values for {len(header)} columns")
        row = {key: value.strip() for key, value in zip(header, values, strict=True)}
        for column in NEEDED:
            if not row[column]:
                raise UserError(f"{table}:{reader.line_num}: column {column!r} is empty: fill it in")
        row["video"] = str(PurePosixPath(row["video"]))
        yield reader.line_num, row
        count += 1
    if not count:
        raise UserError(f"table {str(table)!r} holds no questions: add rows below its header")


def _name_rows(table: Path, rows: list[tuple[int, Row]]) -> dict[str, str]:
    """Return {value of the column `video`: video id}; raise `UserError` with the line of a bad one."""
    for line, row in rows:
        try:
            check_relative_path(check_text(row["video"]))
            name_videos([row["video"]])
        except UserError as error:
            raise UserError(f"{table}:{line}: {error}") from None
    return name_videos(row["video"] for _, row in rows)


def _parse(row: Row, video_id: str, default_id: str) -> Question:
    text = normalise(row["question"])
    if not tokenise(text):
        raise UserError(f"question {row['question']!r} has no words: write one")
    choices = tuple(choice.strip() for choice in row.get("choices", "").split("|") if choice.strip()) or None
    if choices and row["answer"] not in choices:
        raise UserError(f"answer {row['answer']!r} is none of its choices {'|'.join(choices)!r}")
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
    raise UserError(f"{column} {value!r} is none of {', '.join(allowed)}")


def _find_videos(
    ids: dict[str, str], folder: Path | None, progress: Progress | None
) -> tuple[tuple[Video, ...], tuple[str, ...]]:
    if folder is not None:
        return locate_videos({video_id: name for name, video_id in ids.items()}, folder, progress)
    paths = {video_id: name if split_suffix(name)[1] else f"{name}.mp4" for name, video_id in ids.items()}
    return tuple(Video(video_id, path) for video_id, path in paths.items()), ()


def _unused(rows: list[tuple[int, Row]]) -> tuple[str, ...]:
    names = [column for column in rows[0][1] if column not in (*NEEDED, *OPTIONAL)]
    return (f"columns not used: {', '.join(names)}",) if names else ()


SOURCE = Source(
    build,
    (
        Option("csv", "Table with the columns video, question, answer.", is_required=True),
        Option("videos", "Folder of the videos, searched to note paths and SHA-256.", "folder"),
    ),
    """Build a manifest from your own questions in a CSV file.

    Columns: video (a path below --videos, or a name without suffix), question, answer; optional type,
    modality (Audio, Visual or Audio-Visual), split (train, val or test), choices (divided by |), question_id.

    \b
    Example:
      mavqa-manifest build table --csv questions.csv --videos clips --out data_manifests/mine
    """,
)
