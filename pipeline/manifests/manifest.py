"""What exists: the videos, the questions and the frozen vocabulary of one dataset release, as files.

It is not a parser of anyone's release (that is `pipeline.manifests.sources`) and knows nothing of features.
Files: `dataset.toml`, `videos.csv`, `questions-<split>.jsonl`, `vocabulary.json` (design: manifest files).
"""

import csv
import json
import tomllib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

from pipeline.errors import UserError
from pipeline.files import replace_text
from pipeline.store.schema import QUESTION_LENGTH

FORMAT = 1
SPLITS = ("train", "val", "test")
PADDING_TOKEN = "<pad>"
UNKNOWN_TOKEN = "<unk>"


@dataclass(frozen=True, slots=True)
class Video:
    """One source item. `path` is relative to the videos folder; `sha256` is "" until the file was seen."""

    video_id: str
    path: str
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class Question:
    """One question about one video. `text` is `template` with its slots filled; `answer` may be outside the list.

    `choices`: the answers offered, None unless it is multiple choice.
    """

    question_id: str
    video_id: str
    text: str
    template: str
    answer: str
    type: str
    modality: str
    choices: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Vocabulary:
    """The frozen order of question tokens (`<pad>` is 0) and of answers; a model's input and output sizes.

    `question_length`: how many words a question may have; its tokens are padded to it. With the token `<unk>` the
    vocabulary is open: every other word reads as that token. Without it other words are refused.
    """

    tokens: tuple[str, ...]
    answers: tuple[str, ...]
    question_length: int = QUESTION_LENGTH

    @property
    def is_open(self) -> bool:
        """Whether words outside the vocabulary may be asked."""
        return UNKNOWN_TOKEN in self.tokens

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; a length of 14 is not mentioned."""
        words = {"tokens": list(self.tokens), "answers": list(self.answers)}
        return words if self.question_length == QUESTION_LENGTH else {**words, "question_length": self.question_length}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "Vocabulary":
        """Return the vocabulary that `to_json` gave; raise KeyError, TypeError or ValueError for anything else."""
        tokens, answers = tuple(record["tokens"]), tuple(record["answers"])
        return cls(tokens, answers, int(record.get("question_length", QUESTION_LENGTH)))


@dataclass(frozen=True)
class Manifest:
    """One dataset release: videos, questions per split, vocabulary, and where it came from.

    `source`: where its annotations and videos are to be had, for people; "" where that is not known.
    """

    name: str
    release: str
    licence: str
    videos: tuple[Video, ...]
    questions: dict[str, tuple[Question, ...]] = field(default_factory=dict)
    vocabulary: Vocabulary = Vocabulary((PADDING_TOKEN,), ())
    source: str = ""

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits that hold questions, in reading order."""
        return tuple(split for split in SPLITS if split in self.questions)

    def texts(self) -> list[str]:
        """Return the unique question texts over all splits, in order of first appearance."""
        return list(dict.fromkeys(q.text for split in self.splits for q in self.questions[split]))


def check_video_id(video_id: str) -> str:
    """Return `video_id`, or raise `UserError` where it could leave a folder or break a file name."""
    if video_id in ("", ".", "..") or "/" in video_id or "\\" in video_id or "\0" in video_id:
        raise UserError(f"video id {video_id!r} is not a plain name: rename the video (no '/', '..' or empty id)")
    return video_id


def check_relative_path(path: str) -> str:
    """Return `path`, or raise `UserError` where it is absolute or climbs out of the videos folder."""
    if not path or path.startswith("/") or ".." in path.split("/") or "\0" in path:
        raise UserError(f"video path {path!r} leaves the videos folder: give a path relative to it, without '..'")
    return path


def save_manifest(manifest: Manifest, folder: Path) -> None:
    """Write the manifest's files into `folder`; each is written beside its name and renamed last.

    A `dataset.toml` that says the same already is left alone, with its comments and whatever else it says.
    """
    for stale in folder.glob("questions-*.jsonl"):
        if stale.stem.removeprefix("questions-") not in manifest.questions:
            stale.unlink()
    replace_text(folder / "videos.csv", _videos_csv(manifest.videos))
    for split in manifest.splits:
        lines = (json.dumps(_plain(q), ensure_ascii=False) for q in manifest.questions[split])
        replace_text(folder / f"questions-{split}.jsonl", "".join(line + "\n" for line in lines))
    replace_text(
        folder / "vocabulary.json", json.dumps(manifest.vocabulary.to_json(), ensure_ascii=False, indent=1) + "\n"
    )
    head = _dataset_toml(manifest)
    if not _says(folder / "dataset.toml", tomllib.loads(head)):
        replace_text(folder / "dataset.toml", head)


def load_manifest(folder: Path) -> Manifest:
    """Read a manifest folder.

    Raises `UserError` naming the file and line where a file is missing, of another format or malformed.
    """
    head = _read_toml(folder / "dataset.toml")
    if head.get("format") != FORMAT:
        raise UserError(f"{folder / 'dataset.toml'}: format {head.get('format')!r}, this program reads {FORMAT}")
    for key in ("name", "release", "licence", "splits"):
        if key not in head:
            raise UserError(f"{folder / 'dataset.toml'}: {key!r} is missing: build the manifest again")
    if not isinstance(head["splits"], list) or not set(map(str, head["splits"])) <= set(SPLITS):
        raise UserError(f"{folder / 'dataset.toml'}: splits {head['splits']!r}: use {', '.join(SPLITS)}")
    _check_built(folder, head)
    questions = {split: tuple(_read_questions(folder / f"questions-{split}.jsonl")) for split in head["splits"]}
    return Manifest(
        name=head["name"],
        release=head["release"],
        licence=head["licence"],
        videos=tuple(_read_videos(folder / "videos.csv")),
        questions=questions,
        vocabulary=_read_vocabulary(folder / "vocabulary.json"),
        source=head.get("source", ""),
    )


def parse_json(text: str) -> Any:
    """Return the JSON value of `text`; raise ValueError too where it holds halves of characters, which no file can."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if "\\u" in text:
        json.dumps(value, ensure_ascii=False).encode()
    return value


def _check_built(folder: Path, head: dict[str, Any]) -> None:
    """Raise `UserError` where only the head of a dataset is there: a release whose questions are not ours to give."""
    for name in ("videos.csv", *(f"questions-{split}.jsonl" for split in head["splits"]), "vocabulary.json"):
        if not (folder / name).is_file():
            where = f" from {head['source']}" if head.get("source") else ""
            raise UserError(
                f"{folder / name} is missing: get the annotations and videos of {head['name']}{where}, then build the "
                f"manifest with 'mavqa-manifest build' as {folder / 'dataset.toml'} says, or name another folder"
            )


def _plain(question: Question) -> dict[str, Any]:
    record = asdict(question)
    record["choices"] = None if question.choices is None else list(question.choices)
    return record


def _videos_csv(videos: Iterable[Video]) -> str:
    rows = [["video_id", "path", "sha256"], *([v.video_id, v.path, v.sha256] for v in videos)]
    lines: list[str] = []

    class Sink:
        write = staticmethod(lines.append)

    csv.writer(Sink(), lineterminator="\n").writerows(rows)
    return "".join(lines)


def _dataset_toml(manifest: Manifest) -> str:
    entries = {"format": FORMAT, "name": manifest.name, "release": manifest.release, "licence": manifest.licence}
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in entries.items()]
    lines.append(f"splits = {json.dumps(list(manifest.splits))}")
    if manifest.source:
        lines.append(f"source = {json.dumps(manifest.source, ensure_ascii=False)}")
    return "\n".join(lines) + "\n"


def _says(path: Path, head: dict[str, Any]) -> bool:
    found = _read_toml(path) if path.is_file() else {}
    return all(found.get(key) == value for key, value in head.items())


def _read_text(path: Path) -> str:
    with _open_text(path) as file:
        return file.read()


@contextmanager
def _open_text(path: Path) -> Iterator[TextIO]:
    """Give the text file at `path`, its line ends as they are; a million lines need not be in memory at once."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            yield file
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing: build the manifest with 'mavqa-manifest build', or name its folder"
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
        rows = csv.reader(file)
        if next(rows, None) != ["video_id", "path", "sha256"]:
            raise UserError(f"{path}:1: the columns are not video_id,path,sha256: build the manifest again")
        seen: set[str] = set()
        return [_read_video(row, seen, f"{path}:{rows.line_num}") for row in rows]


def _read_video(row: list[str], seen: set[str], where: str) -> Video:
    if len(row) != 3:
        raise UserError(f"{where}: {len(row)} values instead of video_id,path,sha256: mend the line")
    try:
        video = Video(check_video_id(row[0]), check_relative_path(row[1]), row[2])
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    if video.video_id in seen:
        raise UserError(f"{where}: video id {video.video_id!r} stands twice: each id names one file")
    seen.add(video.video_id)
    return video


def _read_questions(path: Path) -> list[Question]:
    with _open_text(path) as file:
        return [_read_question(line, f"{path}:{number}") for number, line in enumerate(file, start=1) if line.strip()]


def _read_question(line: str, where: str) -> Question:
    try:
        record = parse_json(line)
        choices = record.pop("choices", None)
        if not {*map(type, record.values()), *map(type, choices or ())} <= {str}:
            raise TypeError("a value is not text")
        return Question(**record, choices=None if choices is None else tuple(choices))
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{where}: not a question record: {error}") from None


def _read_vocabulary(path: Path) -> Vocabulary:
    try:
        return Vocabulary.from_json(parse_json(_read_text(path)))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a vocabulary: {error}") from None
