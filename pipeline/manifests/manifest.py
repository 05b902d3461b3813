"""The manifest of a dataset release: its videos, questions and frozen vocabulary, as files.

Files: `dataset.toml`, `videos.csv`, `questions-<split>.jsonl`, `vocabulary.json`. Published releases are parsed in
`pipeline.manifests.sources`.
"""

import csv
import io
import json
import reprlib
import tomllib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TextIO

from pipeline.errors import UserError
from pipeline.files import check_file_name, check_plain_name, replace_text
from pipeline.store.schema import QUESTION_LENGTH

FORMAT = 1
SPLITS = ("train", "val", "test")
PADDING_TOKEN = "<pad>"
UNKNOWN_TOKEN = "<unk>"


@dataclass(frozen=True, slots=True)
class Video:
    """One source item. `path` is relative to the videos folder; `sha256` is "" until the file has been hashed."""

    video_id: str
    path: str
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class Question:
    """One question about one video. `text` is `template` with its slots filled.

    `answer` may be outside the vocabulary. `choices`: the answers to choose from, None unless it is multiple choice.
    """

    question_id: str
    video_id: str
    text: str
    template: str
    answer: str
    type: str
    modality: str
    choices: tuple[str, ...] | None = None


_TEXT_FIELDS = tuple(member.name for member in fields(Question) if member.name != "choices")


@dataclass(frozen=True)
class Vocabulary:
    """The frozen order of question tokens (`<pad>` is 0) and of answers: the input and output classes of a model.

    `question_length`: the largest number of words of a question; token sequences are padded to it. A vocabulary with
    the token `<unk>` is open: unknown words become that token. Otherwise unknown words are an error.
    """

    tokens: tuple[str, ...]
    answers: tuple[str, ...]
    question_length: int = QUESTION_LENGTH

    @property
    def is_open(self) -> bool:
        """Whether questions may contain words outside the vocabulary."""
        return UNKNOWN_TOKEN in self.tokens

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; `question_length` is omitted if it is 14."""
        words = {"tokens": list(self.tokens), "answers": list(self.answers)}
        return words if self.question_length == QUESTION_LENGTH else {**words, "question_length": self.question_length}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "Vocabulary":
        """Return the vocabulary of a `to_json` record; raise ValueError with the field for other records."""
        if not isinstance(record, dict):
            raise ValueError("it has no fields")
        for name in ("tokens", "answers"):
            words = record.get(name)
            if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
                raise ValueError(f"field {name!r} is {'not a list of texts' if name in record else 'missing'}")
        length = record.get("question_length", QUESTION_LENGTH)
        if type(length) is not int or length < 1:
            raise ValueError(f"field 'question_length' is {length!r}, not a number of words")
        return cls(tuple(record["tokens"]), tuple(record["answers"]), length)


@dataclass(frozen=True)
class Manifest:
    """One dataset release: videos, questions per split, vocabulary and origin.

    `source`: where to get its annotations and videos, as text for the user; "" if unknown.
    """

    name: str
    release: str
    licence: str
    videos: tuple[Video, ...]
    questions: dict[str, tuple[Question, ...]] = field(default_factory=dict)
    vocabulary: Vocabulary = Vocabulary((PADDING_TOKEN,), ())
    source: str = ""

    def __repr__(self) -> str:
        return f"<Manifest {self.name} ({self.release}): {len(self.videos)} videos; {self.describe_splits()}>"

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits with questions, in the order train, val, test."""
        return tuple(split for split in SPLITS if split in self.questions)

    def describe_splits(self) -> str:
        """Return the splits and their numbers of questions for messages, such as "train (30), val (0)", or "none"."""
        return ", ".join(f"{split} ({len(self.questions[split])})" for split in self.splits) or "none"

    def texts(self) -> list[str]:
        """Return the unique question texts over all splits, in order of first appearance."""
        return list(dict.fromkeys(q.text for split in self.splits for q in self.questions[split]))


def check_video_id(video_id: str) -> str:
    """Return `video_id`; raise `UserError` if it is not a plain name."""
    return check_plain_name("video id", video_id, "rename the video")


def check_relative_path(path: str) -> str:
    """Return `path`; raise `UserError` if it is absolute or leads out of the videos folder."""
    if not path or path.startswith("/") or ".." in path.split("/") or "\0" in path:
        raise UserError(f"video path {path!r} leaves the videos folder: use a path relative to it, without '..'")
    return path


def save_manifest(manifest: Manifest, folder: Path) -> None:
    """Write the manifest's files into `folder`, each under a staging name first and renamed last.

    A `dataset.toml` that already has the same entries is not rewritten; it keeps its comments and further entries.
    Raises `UserError` if the manifest's name is not a plain name: folders and runs are named after it.
    """
    check_file_name("dataset name", manifest.name, "choose another folder or name")
    for stale in folder.glob("questions-*.jsonl"):
        if stale.stem.removeprefix("questions-") not in manifest.questions:
            stale.unlink()
    replace_text(folder / "videos.csv", _videos_csv(manifest.videos))
    for split in manifest.splits:
        lines = (json.dumps(asdict(question), ensure_ascii=False) for question in manifest.questions[split])
        replace_text(folder / f"questions-{split}.jsonl", "".join(line + "\n" for line in lines))
    replace_text(
        folder / "vocabulary.json", json.dumps(manifest.vocabulary.to_json(), ensure_ascii=False, indent=1) + "\n"
    )
    head = _dataset_toml(manifest)
    found = _read_toml(folder / "dataset.toml") if (folder / "dataset.toml").is_file() else {}
    if any(found.get(key) != value for key, value in tomllib.loads(head).items()):
        replace_text(folder / "dataset.toml", head)


def load_manifest(folder: str | Path) -> Manifest:
    """Return the manifest in `folder`.

    Raises `UserError` with the file and line if a file is missing, malformed or of another format version.
    """
    folder = Path(folder)
    head = _read_toml(folder / "dataset.toml")
    if head.get("format") != FORMAT:
        raise UserError(f"{folder / 'dataset.toml'}: format {head.get('format')!r} is not supported, only {FORMAT}")
    for key in ("name", "release", "licence", "splits"):
        if key not in head:
            raise UserError(f"{folder / 'dataset.toml'}: {key!r} is missing: build the manifest again")
    for key in ("name", "release", "licence", "source"):
        if not isinstance(head.get(key, ""), str):
            raise UserError(f"{folder / 'dataset.toml'}: {key} = {head[key]!r} is not text: put it in quotes")
    if not isinstance(head["splits"], list) or not set(map(str, head["splits"])) <= set(SPLITS):
        raise UserError(f"{folder / 'dataset.toml'}: invalid splits {head['splits']!r}: use {', '.join(SPLITS)}")
    check_file_name(f"{folder / 'dataset.toml'}: name", head["name"], "choose another")
    _check_built(folder, head)
    questions = {split: tuple(_read_questions(folder / f"questions-{split}.jsonl")) for split in head["splits"]}
    return Manifest(
        name=head["name"],
        release=head["release"],
        licence=head["licence"],
        videos=tuple(_read_videos(folder / "videos.csv")),
        questions=questions,
        vocabulary=load_vocabulary(folder / "vocabulary.json"),
        source=head.get("source", ""),
    )


def load_vocabulary(path: Path) -> Vocabulary:
    """Return the vocabulary in a file `vocabulary.json`; raise `UserError` if it is missing or malformed."""
    try:
        return Vocabulary.from_json(parse_json(_read_text(path)))
    except ValueError as error:
        raise UserError(f"{path}: not a vocabulary: {error}; build the manifest again") from None


def parse_json(text: str) -> Any:
    """Return the JSON value of `text`; raise ValueError if it is invalid, too deep, or contains lone surrogates."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if "\\u" in text:
        json.dumps(value, ensure_ascii=False).encode()
    return value


def read_csv(lines: Iterable[str], path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield (last line, values) of each row of a CSV file.

    Raises `UserError` with the first line of a row whose quotes are not closed, or that is invalid otherwise.
    """
    rows = csv.reader(lines, strict=True)
    while True:
        first_line = rows.line_num + 1
        try:
            values = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            raise UserError(f"{path}:{first_line}: not valid CSV ({error}): check the quotes of this line") from None
        yield rows.line_num, values


def _check_built(folder: Path, head: dict[str, Any]) -> None:
    """Raise `UserError` if the files of the questions are missing, as for datasets that we may not redistribute."""
    for name in ("videos.csv", *(f"questions-{split}.jsonl" for split in head["splits"]), "vocabulary.json"):
        if not (folder / name).is_file():
            source = f" from {head['source']}" if head.get("source") else ""
            raise UserError(
                f"{folder / name} is missing: get the annotations and videos of {head['name']}{source}, then build the "
                f"manifest with 'mavqa-manifest build' as {folder / 'dataset.toml'} shows, or pass another folder"
            )


def _videos_csv(videos: Iterable[Video]) -> str:
    file = io.StringIO(newline="")
    rows = csv.writer(file, lineterminator="\n")
    rows.writerow(["video_id", "path", "sha256"])
    rows.writerows([video.video_id, video.path, video.sha256] for video in videos)
    return file.getvalue()


def _dataset_toml(manifest: Manifest) -> str:
    entries = {"format": FORMAT, "name": manifest.name, "release": manifest.release, "licence": manifest.licence}
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in entries.items()]
    lines.append(f"splits = {json.dumps(list(manifest.splits))}")
    if manifest.source:
        lines.append(f"source = {json.dumps(manifest.source, ensure_ascii=False)}")
    return "\n".join(lines) + "\n"


def _read_text(path: Path) -> str:
    with _open_text(path) as file:
        return file.read()


@contextmanager
def _open_text(path: Path) -> Iterator[TextIO]:
    """Open the text file at `path` without newline translation, to be read line by line."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            yield file
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing: build the manifest with 'mavqa-manifest build' (see its --help), "
            "or pass another folder (--manifest)"
        ) from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason}): save it as UTF-8") from None


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(_read_text(path))
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path} is not valid TOML: {error}") from None


def _read_videos(path: Path) -> list[Video]:
    with _open_text(path) as file:
        rows = read_csv(file, path)
        _, header = next(rows, (1, []))
        if header != ["video_id", "path", "sha256"]:
            raise UserError(f"{path}:1: the columns are not video_id,path,sha256: build the manifest again")
        seen: set[str] = set()
        return [_read_video(row, seen, f"{path}:{line}") for line, row in rows]


def _read_video(row: list[str], seen: set[str], where: str) -> Video:
    if len(row) != 3:
        raise UserError(f"{where}: {len(row)} values instead of video_id,path,sha256: fix the line")
    try:
        video = Video(check_video_id(row[0]), check_relative_path(row[1]), row[2])
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    if video.video_id in seen:
        raise UserError(f"{where}: video id {video.video_id!r} occurs twice: ids must be unique")
    seen.add(video.video_id)
    return video


def _read_questions(path: Path) -> list[Question]:
    with _open_text(path) as file:
        return [_read_question(line, f"{path}:{number}") for number, line in enumerate(file, start=1) if line.strip()]


def _read_question(line: str, where: str) -> Question:
    try:
        record = parse_json(line)
        if not isinstance(record, dict):
            raise ValueError("it has no fields")
        choices = record.pop("choices", None)
        for name in (name for name in _TEXT_FIELDS if name not in record):
            raise ValueError(f"field {name!r} is missing")
        for name, value in record.items():
            if name not in _TEXT_FIELDS:
                raise ValueError(f"field {name!r} is unknown, the fields are {', '.join((*_TEXT_FIELDS, 'choices'))}")
            if not isinstance(value, str):
                raise ValueError(f"field {name!r} is {reprlib.repr(value)}, not text")
        if choices is not None and not (isinstance(choices, list) and all(isinstance(c, str) for c in choices)):
            raise ValueError(f"field 'choices' is {reprlib.repr(choices)}, not a list of texts")
        return Question(**record, choices=None if choices is None else tuple(choices))
    except ValueError as error:
        raise UserError(f"{where}: not a question record: {error}; fix the line or build the manifest again") from None
