"""What a run is, by content: its settings, its data and its checkpoint, not the name of its folder."""

import hashlib
import json
from collections.abc import Collection
from pathlib import Path

from pipeline.errors import UserError, one_line
from pipeline.files import hash_file
from pipeline.manifests.manifest import parse_json

CONFIG = "config.json"
DATA = "data.json"
CHECKPOINT = "checkpoint.safetensors"
# Settings that may differ between two runs of the same training.
LOCATION_SETTINGS = frozenset({"device", "manifest", "store", "sizes"})
ID_LENGTH = 16


def is_run_folder(folder: Path) -> bool:
    """Return whether `folder` contains a run, not only results that were written elsewhere."""
    return (folder / CONFIG).is_file()


def run_id(run: Path) -> str:
    """Return 16 hex digits of the SHA-256 of the settings and the data of `run`, which determine its training.

    Raises `UserError` if a file of it is missing or corrupt.
    """
    return _hash_record(run, without=LOCATION_SETTINGS)


def training_id(run: Path) -> str:
    """Return the id that the runs of all seeds of a training have in common, as `run_id` does for one of them."""
    return _hash_record(run, without=LOCATION_SETTINGS | {"seed", "start_from"})


def is_current(run: Path, of_run: str, checkpoint_sha256: str) -> bool:
    """Return whether `run` has this id and checkpoint; any checkpoint, if its file was removed."""
    if run_id(run) != of_run:
        return False
    return not (run / CHECKPOINT).exists() or hash_file(run / CHECKPOINT) == checkpoint_sha256


def _hash_record(run: Path, without: Collection[str]) -> str:
    settings = _read(run / CONFIG)
    # Runs of the first version have no data.
    data = _read(run / DATA) if (run / DATA).exists() else {}
    records = [{name: value for name, value in record.items() if name not in without} for record in (settings, data)]
    return hashlib.sha256(json.dumps(records, sort_keys=True).encode()).hexdigest()[:ID_LENGTH]


def _read(path: Path) -> dict[str, object]:
    try:
        record = parse_json(path.read_text(encoding="utf-8"))
        if not isinstance(record, dict):
            raise ValueError("it is not a JSON object")
        return record
    except FileNotFoundError:
        raise UserError(f"{path} is missing: {path.parent} is not a run folder, create one with mavqa-train") from None
    except ValueError as error:
        raise UserError(f"{path} is corrupt ({one_line(error)}): train the run again") from None
