"""The data of a run: the questions and the features that it was trained on, recorded before it is trained."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError
from pipeline.files import hash_file
from pipeline.manifests.manifest import Manifest, Question, parse_json
from train.data.feature_bank import FeatureBank
from train.runs.config import TrainConfig
from train.runs.features import read_digests, read_specs
from train.runs.identity import CHECKPOINT, DATA, is_run_folder, training_id
from train.runs.results import hash_questions

if TYPE_CHECKING:
    from pipeline.store.reader import FeatureStore

TRAINING_SPLITS = ("train", "val")
# All that is recorded of an imported run, with its vocabulary: the SHA-256 of the official checkpoint.
IMPORTED = "imported_sha256"
# What is recorded of each stored feature.
PER_FEATURE = ("features", "rows")
# What is recorded of the run that a training starts from.
OF_START = ("start_from", "start_training")


def describe_data(run: Path, config: TrainConfig, manifest: Manifest, bank: FeatureBank) -> dict[str, Any]:
    """Return what `run` is trained on, by content: questions, words and answers, seconds, features and their rows.

    `order`: a hash of the order of questions and videos, which decides what the seed shuffles; the others ignore it.
    Of a run that it starts from: `start_from`, the hash of its checkpoint, and `start_training`, its `training_id`.
    """
    start = run.parent / config.start_from
    questions = [question for split in TRAINING_SPLITS for question in manifest.questions.get(split, ())]
    data: dict[str, Any] = {
        "questions": {split: hash_questions(manifest.questions[split]) for split in manifest.splits},
        "vocabulary": manifest.vocabulary.to_json(),
        "seconds": bank.store.seconds,
        "features": {name: spec.fingerprint for name, spec in read_specs(config.backbone, bank.store).items()},
        "rows": read_digests(config.backbone, bank.store, questions),
        "order": _hash_order(questions, bank.store),
    }
    if config.start_from and (start / CHECKPOINT).exists():
        data |= {"start_from": hash_file(start / CHECKPOINT), "start_training": training_id(start)}
    return data


def _hash_order(questions: Sequence[Question], store: "FeatureStore") -> str:
    """Return the SHA-256 of the order of the questions, and of their videos in the store, which seeds shuffle."""
    videos = {question.video_id for question in questions} & store.rows.keys()
    order = [[question.question_id for question in questions], sorted(videos, key=store.rows.__getitem__)]
    return hashlib.sha256(json.dumps(order).encode()).hexdigest()


def check_data(run: Path, config: TrainConfig, data: dict[str, Any]) -> None:
    """Raise `UserError` unless a training on `data` fits in the folder `run`, and to the run that it starts from.

    A started run on other data would be resumed with two datasets. A run to start from that used other questions may
    number other words, and its training questions may be test questions here.
    """
    start = run.parent / config.start_from
    known = read_data(start) if config.start_from else {}
    known = {name: value for name, value in known.items() if name not in ("rows", "order", IMPORTED)}
    if not _fits(known, data):
        raise UserError(f"cannot start from {start}: it was trained on other questions or features than {run} will be")
    if is_run_folder(run):
        recorded = read_data(run)
        if not recorded or not _fits(recorded, data):
            raise UserError(
                f"{run} contains a run on other questions or features than those of manifest {config.manifest} "
                f"and store {config.store}, or in another order: remove it, or pass another --out"
            )


def hash_training_data(data: dict[str, Any]) -> str:
    """Return the SHA-256 of what `describe_data` says of train and val; "" if it is not known.

    A run has it in common with its floors, and with the other seeds of its method, whatever they start from.
    """
    if not data:
        return ""
    questions = {split: text for split, text in data.get("questions", {}).items() if split in TRAINING_SPLITS}
    common = {name: value for name, value in data.items() if name not in OF_START} | {"questions": questions}
    return hashlib.sha256(json.dumps(common, sort_keys=True).encode()).hexdigest()


def read_data(run: Path) -> dict[str, Any]:
    """Return what `describe_data` returned before the training of `run`; {} if that is unknown.

    Of an imported run: `IMPORTED` and, if its weights number words or answers, the vocabulary.
    Raises `UserError` if the file is corrupt.
    """
    path = run / DATA
    try:
        data = parse_json(path.read_text(encoding="utf-8")) if path.exists() else {}
        tables = [data.get(name, {}) for name in ("questions", *PER_FEATURE)] if isinstance(data, dict) else [None]
        if not all(isinstance(t, dict) and all(isinstance(text, str) for text in t.values()) for t in tables):
            raise ValueError("it has not the fields of a run's data")
        return data
    except ValueError as error:
        raise UserError(f"{path} is corrupt ({error}): train the run again") from None


def _fits(recorded: dict[str, Any], data: dict[str, Any]) -> bool:
    """Return whether the data are those recorded; earlier versions recorded fewer fields and features.

    What a run started from does not matter any more: it may be gone, or trained again.
    """
    return all(
        value.items() <= data[name].items() if name in PER_FEATURE else data.get(name) == value
        for name, value in recorded.items()
        if name not in OF_START
    )
