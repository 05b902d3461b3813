"""The dataset AVQA: its published files -> manifest. Multiple choice of four answers, eight question types.

Records are not corrected: none is dropped, and answers that differ in case are different answers. An answer is the
index of a choice (in the release) or a text (in re-splits), choices may be missing, and a split is one file or one file
per type. Spaces around texts are removed; for answers the number of such cases is reported.
Source: Yang et al., "AVQA: A Dataset for Audio-Visual Question Answering on Videos", ACM MM 2022.
Differs from the released code: an answer is a class of the training split, not a text that the network reads; words
keep their case.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.manifests.manifest import SPLITS, Manifest, Question, check_video_id
from pipeline.manifests.media_files import Progress
from pipeline.manifests.media_names import split_suffix
from pipeline.manifests.sources.interface import Built, Option, Source
from pipeline.manifests.sources.records import number_copies, read_records, text_of, with_videos
from pipeline.manifests.sources.vocabulary import UNKNOWN_WORDS, VOCABULARY, choose_vocabulary
from pipeline.manifests.templates import AVQA_TYPES, normalise, tokenise

RELEASE = "2022"
LICENCE = "none stated for the annotations; videos from YouTube, for research use"
WEBSITE = "https://mn.cs.tsinghua.edu.cn/avqa (its videos are clips of VGG-Sound)"
NULL_CHOICE = "null"

MODALITY_OF = {"both": "Audio-Visual", "view": "Visual", "sound": "Audio"}


def build(
    name: str,
    annotations: Path | None = None,
    *,
    train: Sequence[Path] = (),
    val: Sequence[Path] = (),
    test: Sequence[Path] = (),
    videos: Path | None = None,
    progress: Progress | None = None,
    unknown_words: str = "map",
    vocabulary: Path | None = None,
) -> Built:
    """Return the manifest of the split files in `annotations`; `train`, `val`, `test` (lists of files) take precedence.

    With a folder of `videos`, their paths and SHA-256 are filled in. `unknown_words`, `vocabulary`: those of
    `choose_vocabulary`; by default the vocabulary is open. Raises `UserError` if files are missing or malformed.
    """
    given = {split: paths for split, paths in zip(SPLITS, (train, val, test), strict=True) if paths}
    sources = {**(find_files(annotations) if annotations else {}), **given}
    if not sources:
        raise UserError("no annotation files: pass --annotations DIR, or --train, --val or --test FILE")
    counts: Counter[str] = Counter()
    questions = {split: _read_split(sources[split], counts) for split in SPLITS if split in sources}
    chosen = choose_vocabulary(questions, unknown_words, vocabulary)
    counts["case_variants"] = len(chosen.answers) - len({answer.casefold() for answer in chosen.answers})
    manifest = Manifest(
        name=name,
        release=RELEASE,
        licence=LICENCE,
        videos=(),
        questions=questions,
        vocabulary=chosen,
        source=WEBSITE,
    )
    return with_videos(Built(manifest, dict(counts), tuple(_notes(manifest, vocabulary is not None))), videos, progress)


def find_files(annotations: Path) -> dict[str, list[Path]]:
    """Return {split: files} of the folder `annotations/avqa`, or of `annotations` itself.

    A split is one file or, if that is missing, one file per type. Raises `UserError` if there are none.
    """
    for folder in (annotations / "avqa", annotations):
        if found := {split: paths for split in SPLITS if (paths := _files_in(folder, split))}:
            return found
    names = ", ".join(f"{split}_qa.json" for split in SPLITS)
    raise UserError(f"no files of AVQA in {str(annotations)!r}: looked for {names}, or files such as train_Where.json")


def _files_in(folder: Path, split: str) -> list[Path]:
    for name in (f"{split}_qa.json", f"{split}_qa_all.json"):
        if (folder / name).is_file():
            return [folder / name]
    typed = sorted(folder.glob(f"{split}_*.json"))
    return [path for path in typed if _letters(path.stem.removeprefix(f"{split}_")) in _TYPE_OF]


def _read_split(paths: Iterable[Path], counts: Counter[str]) -> tuple[Question, ...]:
    """Return the questions of a split's files in order; add the number of each kind of irregularity to `counts`."""
    questions = []
    for path in paths:
        for number, record in enumerate(read_records(path), start=1):
            try:
                questions.append(_parse(record))
            except (UserError, KeyError) as error:
                problem = f"{error} is missing" if isinstance(error, KeyError) else error
                raise UserError(f"{path}: record {number}: {problem}") from None
            counts.update(_irregularities(record, questions[-1]))
    numbered, copies = number_copies(questions)
    counts.update(copies)
    return numbered


def _parse(record: dict[str, Any]) -> Question:
    text = normalise(text_of(record, "question_text"))
    if not tokenise(text):
        raise UserError(f"question_text {text!r} has no words: fix the record")
    choices = _choices(record)
    return Question(
        question_id=_question_id(record),
        video_id=check_video_id(split_suffix(text_of(record, "video_name"))[0]),
        text=text,
        template=text,
        answer=_answer(record, choices),
        type=_one_of(record, "question_type", _TYPE_OF, AVQA_TYPES),
        modality=_one_of(record, "question_relation", MODALITY_OF, ("Both", "View", "Sound")),
        choices=choices,
    )


def _question_id(record: dict[str, Any]) -> str:
    given = record["id"]
    if isinstance(given, bool) or not isinstance(given, int | str):
        raise UserError(f"id {given!r} is not an integer: fix the record")
    return str(given)


def _choices(record: dict[str, Any]) -> tuple[str, ...] | None:
    """Return the choices in order; null becomes the word "null", as in the release's code."""
    given = record.get("multi_choice")
    if given is None:
        return None
    if not isinstance(given, list) or not given:
        raise UserError(f"multi_choice {given!r} is not a list of answers: fix the record")
    named = [{"multi_choice": NULL_CHOICE if choice is None else choice} for choice in given]
    return tuple(text_of(choice, "multi_choice") for choice in named)


def _answer(record: dict[str, Any], choices: tuple[str, ...] | None) -> str:
    given = record["answer"]
    if isinstance(given, bool) or not isinstance(given, int):
        return text_of(record, "answer")
    if choices is None or not 0 <= given < len(choices):
        raise UserError(f"answer {given} is not the index of one of {len(choices or ())} choices: fix the record")
    return choices[given]


def _one_of(record: dict[str, Any], key: str, table: Mapping[str, str], known: Iterable[str]) -> str:
    given = text_of(record, key)
    if _letters(given) not in table:
        raise UserError(f"{key} {given!r} is not one of {', '.join(known)}")
    return table[_letters(given)]


def _irregularities(record: dict[str, Any], question: Question) -> dict[str, int]:
    given, choices = record["answer"], question.choices
    return {
        "trimmed_answers": isinstance(given, str) and given != question.answer,
        "multiple_choice": choices is not None,
        "answers_outside_choices": choices is not None and question.answer not in choices,
        "repeated_choices": choices is not None and len(set(choices)) < len(choices),
        "null_choices": choices is not None and None in record["multi_choice"],
    }


def _notes(manifest: Manifest, has_vocabulary: bool) -> Iterable[str]:
    if "train" not in manifest.questions and not has_vocabulary:
        yield "no training split: the vocabulary comes from all splits"
    if "val" in manifest.questions and "test" not in manifest.questions:
        yield "no test split: 'val' both selects the epoch and is evaluated; pass its file as --test to avoid this"
    for split, questions in manifest.questions.items():
        if not any(question.choices for question in questions):
            yield f"no question of {split!r} has choices: predictions range over all answers"


def _letters(name: str) -> str:
    """Return the lower-case letters of `name`; case, spaces and signs differ between releases."""
    return "".join(letter for letter in name.lower() if letter.isalpha())


_TYPE_OF = {_letters(name): name for name in AVQA_TYPES}


SOURCE = Source(
    build,
    (
        Option("annotations", "Folder of the published annotation files.", "folder"),
        Option("train", "Training questions. Takes precedence over --annotations. Repeatable.", is_repeatable=True),
        Option("val", "Validation questions. Takes precedence over --annotations. Repeatable.", is_repeatable=True),
        Option("test", "Test questions. Takes precedence over --annotations. Repeatable.", is_repeatable=True),
        Option("videos", "Folder searched for <video name>.*, to record paths and SHA-256.", "folder"),
        replace(UNKNOWN_WORDS, default="map", help=UNKNOWN_WORDS.help.partition("  [")[0]),
        VOCABULARY,
    ),
    """Build the manifest of AVQA from its JSON files.

    In --annotations a split is <split>_qa.json, or one file per question type, such as train_Where.json. All splits
    found are built; AVQA has train and val, and multiple choice.

    \b
    Examples:
      mavqa-manifest build avqa --annotations AVQA --out data_manifests/avqa
      mavqa-manifest build avqa --train a.json --train b.json --test val_qa.json --out data_manifests/avqa
    """,
)
