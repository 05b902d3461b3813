"""What a run writes down about its epochs: metrics, which a repeated run repeats, and times, which it does not."""

import json
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.files import replace_text

METRICS = "metrics.jsonl"
TIMES = "times.json"


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Return the metrics of each finished epoch, in order."""
    path = run / METRICS
    try:
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): remove {run} and train it again") from None


def best_validation(run: Path) -> dict[str, float]:
    """Return the validation percentages of the epoch that was kept; {} where there is no val split."""
    kept = [row for row in read_metrics(run) if row["selected"]]
    return dict(kept[-1]["validation"]) if kept else {}


def write_metrics(run: Path, metrics: list[dict[str, Any]]) -> None:
    """Replace the metrics file."""
    replace_text(run / METRICS, "".join(json.dumps(row) + "\n" for row in metrics))


def read_times(run: Path) -> dict[int, float]:
    """Return {epoch, from 1: seconds that its training took, without validation}; {} where none were written."""
    path = run / TIMES
    try:
        said = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        return {int(epoch): float(seconds) for epoch, seconds in said.items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}): remove it") from None


def write_time(run: Path, epoch: int, seconds: float) -> None:
    """Note how long the training of `epoch`, from 1, took."""
    times = {**read_times(run), epoch: round(seconds, 3)}
    replace_text(run / TIMES, json.dumps(times) + "\n")
