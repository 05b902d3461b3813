"""The log of a run's epochs: metrics, which are reproducible, and training times, which are not."""

import json
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.files import replace_text
from pipeline.manifests.manifest import parse_json

METRICS = "metrics.jsonl"
TIMES = "times.json"


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Return the metrics of each finished epoch, in order. Raises `UserError` if the file is corrupt."""
    path = run / METRICS
    try:
        rows = [parse_json(line) for line in path.read_text().splitlines()] if path.exists() else []
    except ValueError as error:
        raise UserError(f"{path} is corrupt ({error}): remove {run} and train it again") from None
    for number, row in enumerate(rows, start=1):
        if not _is_epoch(row):
            raise UserError(f"{path}:{number} has no metrics of an epoch: remove {run} and train it again")
    return rows


def _is_epoch(row: Any) -> bool:
    """Return whether the row has the fields of an epoch that reports read."""
    return (
        isinstance(row, dict)
        and isinstance(row.get("epoch"), int)
        and isinstance(row.get("losses"), dict)
        and isinstance(row["losses"].get("total"), (int, float))
        and isinstance(row.get("validation"), dict)
        and "selected" in row
    )


def best_validation(run: Path) -> dict[str, float]:
    """Return the validation accuracies, in percent, of the selected epoch; {} without a val split."""
    selected = [row for row in read_metrics(run) if row["selected"]]
    return dict(selected[-1]["validation"]) if selected else {}


def write_metrics(run: Path, metrics: list[dict[str, Any]]) -> None:
    """Replace the metrics file."""
    replace_text(run / METRICS, "".join(json.dumps(row) + "\n" for row in metrics))


def read_times(run: Path) -> dict[int, float]:
    """Return {epoch, from 1: seconds of its training, without validation}; {} if none were recorded.

    Raises `UserError` if the file is corrupt.
    """
    path = run / TIMES
    try:
        times = parse_json(path.read_text(encoding="utf-8")) if path.exists() else {}
        return {int(epoch): float(seconds) for epoch, seconds in times.items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{path} is corrupt ({error}): remove it") from None


def write_time(run: Path, epoch: int, seconds: float) -> None:
    """Record the training time of `epoch` (from 1)."""
    times = {**read_times(run), epoch: round(seconds, 3)}
    replace_text(run / TIMES, json.dumps(times) + "\n")
